// SPDX-License-Identifier: Apache-2.0
//
// Leases, consumption, the budget and zero-copy: what every backend that stores bytes promises of them.
#include <map>
#include <thread>

#include "store/conformance.h"
#include "store/store_testing.h"

namespace draftflow {
namespace {

using store_testing::expect_same;
using store_testing::message_of;
using store_testing::random_tensor;
using store_testing::run_metadata;
using store_testing::small_tensors;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr std::uint64_t kSmallBytes = 16 * 8 + 16 * 8 * 2;  // of small_tensors

class Leases : public Conformance {
 protected:
  std::unique_ptr<FeatureStore> consume_once() { return attach("once", {.kind = StoreKind::kConsumeOnce}); }
  static SampleRef put(FeatureStore& store, const std::string& id = "a", std::uint64_t seed = 1) {
    return store.put(small_tensors(seed), SampleId(id), run_metadata());
  }
};

TEST_P(Leases, GetLeasesAndReleaseEndsTheLease) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  const Fetched one = store->get(ref), two = store->get(ref);
  expect_same(one.tensors, small_tensors());
  EXPECT_EQ(one.handle.sample_id, ref.sample_id);
  EXPECT_EQ(one.handle.generation, ref.generation);
  EXPECT_NE(one.handle.lease_token, two.handle.lease_token);
  EXPECT_EQ(store->health().live_leases, 2u);
  store->release(one.handle);
  EXPECT_EQ(store->health().live_leases, 1u);
  store->release(two.handle);
  EXPECT_EQ(store->health().live_leases, 0u);
}

TEST_P(Leases, OnlyTheNamedTensorsInTheRefsOrder) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  const Fetched some = store->get(ref, {.names = {"hidden_state"}});
  expect_same(some.tensors, {small_tensors()[1]});
  store->release(some.handle);
  EXPECT_THROW(store->get(ref, {.names = {"nobody"}}), NotFound);
}

TEST_P(Leases, AnotherReleaseOfTheSameHandleDoesNothing) {
  const auto store = consume_once();
  const SampleRef ref = put(*store);
  const Fetched one = store->get(ref), two = store->get(ref);
  for (int i = 0; i < 3; ++i) store->release(one.handle);
  EXPECT_EQ(store->health().live_leases, 1u);
  expect_same(store->read(ref), small_tensors());
  store->release(two.handle);
  EXPECT_THROW(store->read(ref), NotFound);
}

TEST_P(Leases, UnknownAndForeignHandlesDoNothing) {
  const auto store = consume_once(), other = attach("other", {.kind = StoreKind::kConsumeOnce});
  const SampleRef ref = put(*store);
  const Fetched mine = store->get(ref);
  other->release(mine.handle);
  FeatureHandle wrong = mine.handle;
  wrong.generation += 1;
  store->release(wrong);
  wrong = mine.handle;
  wrong.sample_id = SampleId("b");
  store->release(wrong);
  for (const char* token : {"", ".", "1", "x.1", "../../etc.1", "\n"}) {
    store->release({ref.sample_id, ref.generation, token});
    store->release({ref.sample_id, ref.generation, mine.handle.lease_token + "." + token});
  }
  EXPECT_EQ(store->health().live_leases, 1u);
  expect_same(store->read(ref), small_tensors());
  store->release(mine.handle);
  EXPECT_EQ(store->health().resident_samples, 0u);
}

TEST_P(Leases, ALedgeredStoreFreesNothingOnReleaseOrGc) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  store->release(store->get(ref).handle);
  store->gc();
  expect_same(store->read(ref), small_tensors());
  EXPECT_EQ(store->kind(), StoreKind::kLedgered);
  EXPECT_EQ(store->health().freed_total, 0u);
}

TEST_P(Leases, TheLastReleaseFreesInAConsumeOnceStore) {
  const auto store = consume_once();
  const SampleRef ref = put(*store), other = put(*store, "b", 2);
  const Fetched one = store->get(ref), two = store->get(ref);
  store->release(one.handle);
  expect_same(store->read(ref), small_tensors());
  store->release(two.handle);
  EXPECT_THAT(message_of<NotFound>([&] { store->get(ref); }), HasSubstr("sample 'a' generation"));
  expect_same(store->read(other), small_tensors(2));
  const StoreHealth health = store->health();
  EXPECT_EQ(health.kind, StoreKind::kConsumeOnce);
  EXPECT_EQ(health.resident_samples, 1u);
  EXPECT_EQ(health.resident_bytes, kSmallBytes);
  EXPECT_EQ(health.freed_total, 1u);
  EXPECT_EQ(health.freed_bytes_total, kSmallBytes);
}

TEST_P(Leases, ReadConsumesNothing) {
  const auto store = consume_once();
  const SampleRef ref = put(*store);
  for (int i = 0; i < 3; ++i) expect_same(store->read(ref), small_tensors());
  EXPECT_EQ(store->health().live_leases, 0u);
  EXPECT_EQ(store->gc().generations_removed, 0u);
  expect_same(store->read(ref), small_tensors());
}

TEST_P(Leases, ARetainingAttachNeverConsumes) {
  const auto store = attach("kept", {.kind = StoreKind::kConsumeOnce, .retain_on_release = true});
  const SampleRef ref = put(*store);
  for (int i = 0; i < 3; ++i) store->release(store->get(ref).handle);
  store->gc();
  expect_same(store->read(ref), small_tensors());
}

TEST_P(Leases, ARemovedGenerationStaysOnTheBooksUntilTheLastLeaseEnds) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  const Fetched one = store->get(ref), two = store->get(ref);
  EXPECT_TRUE(store->remove(ref));
  EXPECT_FALSE(store->remove(ref));
  EXPECT_THROW(store->get(ref), NotFound);
  EXPECT_THROW(store->read(ref), NotFound);
  EXPECT_EQ(store->health().resident_bytes, kSmallBytes);
  store->release(one.handle);
  store->gc();
  EXPECT_EQ(store->health().resident_bytes, kSmallBytes);
  EXPECT_EQ(store->health().freed_bytes_total, 0u);
  store->release(two.handle);
  EXPECT_EQ(store->health().resident_bytes, 0u);
  EXPECT_EQ(store->health().resident_samples, 0u);
  EXPECT_EQ(store->health().freed_bytes_total, kSmallBytes);
}

TEST_P(Leases, ASupersededGenerationStaysOnTheBooksUntilItsLeaseEnds) {
  const auto store = consume_once();
  const SampleRef old = put(*store, "a", 1);
  const Fetched reading = store->get(old);
  const SampleRef current = put(*store, "a", 2);
  EXPECT_THROW(store->get(old), NotFound);
  expect_same(store->read(current), small_tensors(2));
  EXPECT_EQ(store->health().resident_samples, 2u);
  EXPECT_EQ(store->health().resident_bytes, 2 * kSmallBytes);
  store->release(reading.handle);  // a release of the old generation never reaches the new one
  EXPECT_EQ(store->health().resident_samples, 1u);
  expect_same(store->read(current), small_tensors(2));
}

TEST_P(Leases, AbortTakesEveryGenerationOfThatSampleAlone) {
  const auto store = attach();
  const SampleRef a = put(*store, "a"), b = put(*store, "b", 2);
  const Fetched reading = store->get(a);
  EXPECT_EQ(store->abort(SampleId("a")), 1u);
  EXPECT_EQ(store->abort(SampleId("a")), 0u);
  EXPECT_EQ(store->abort(SampleId("never")), 0u);
  EXPECT_THROW(store->read(a), NotFound);
  expect_same(store->read(b), small_tensors(2));
  expect_same(reading.tensors, small_tensors());
  store->release(reading.handle);
  EXPECT_EQ(store->health().resident_samples, 1u);
  const SampleRef again = put(*store, "a", 3);
  EXPECT_GT(again.generation, a.generation);
}

// Packed or encrypted bytes are not what is asked for: a view of them would lie.
void expect_no_views(FeatureStore& store) {
  const TensorMap tensors = store_testing::sample_tensors(5);
  const SampleRef ref = store.put(tensors, SampleId("a"), run_metadata());
  EXPECT_THAT(
      message_of<InvalidArgument>([&] { store.get(ref, {.zero_copy = true}); }),
      AllOf(HasSubstr("sample 'a'"), HasSubstr("leave zero_copy out"), AnyOf(HasSubstr("zstd"), HasSubstr("encrypted"))));
  EXPECT_EQ(store.health().live_leases, 0u);
  expect_same(store.get(ref).tensors, tensors);
}

TEST_P(Leases, ZeroCopyBytesOutliveEverything) {
  if (!GetParam().views) return expect_no_views(*attach());
  const TensorMap wanted = store_testing::sample_tensors(5);
  TensorMap views, single;
  {
    const auto store = attach();
    const SampleRef ref = store->put(wanted, SampleId("a"), run_metadata());
    Fetched fetched = store->get(ref, {.zero_copy = true});
    Fetched named = store->get(ref, {.names = {"large"}, .zero_copy = true});
    views = fetched.tensors;
    single = named.tensors;
    EXPECT_EQ(store->get(ref, {.zero_copy = true}).tensors.size(), wanted.size());  // a lease that nobody releases
    store->release(fetched.handle);
    store->release(named.handle);
    store->put(small_tensors(), SampleId("a"), run_metadata());
    store->abort(SampleId("a"));
    store->gc();
  }
  expect_same(views, wanted);
  expect_same(single, {*std::find_if(wanted.begin(), wanted.end(), [](const auto& t) { return t.first == "large"; })});
  for (const auto& [name, tensor] : views) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % dtype_bytes(tensor.dtype), 0u) << name;
  }
}

TEST_P(Leases, ACopyIsTheCallersOwn) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  const Fetched one = store->get(ref), two = store->get(ref);
  EXPECT_NE(one.tensors[0].second.bytes.data(), two.tensors[0].second.bytes.data());
}

TEST_P(Leases, AFailedGetLeavesNoLease) {
  const auto store = consume_once();
  const SampleRef ref = put(*store);
  SampleRef lying = ref;
  lying.feature_specs.edit([](auto& specs) { specs[1].shape = {8, 16}; });
  EXPECT_THROW(store->get(lying), Corrupt);
  if (GetParam().views) {
    EXPECT_THROW(store->get(lying, {.zero_copy = true}), Corrupt);
  }
  EXPECT_EQ(store->health().live_leases, 0u);
  expect_same(store->read(ref), small_tensors());
}

TEST_P(Leases, TheBudgetRefusesBeforeItIsPassed) {
  const auto store = attach("capped", {.max_resident_bytes = 2 * kSmallBytes + 10});
  const SampleRef a = put(*store, "a");
  const SampleRef b = put(*store, "b");
  const std::string message = message_of<Exhausted>([&] { put(*store, "c"); });
  EXPECT_THAT(message, HasSubstr("sample 'c' asks for 384 bytes"));
  EXPECT_THAT(message, HasSubstr("may hold 778 and has 768 resident"));
  // A re-put needs its full size while the old one is there.
  EXPECT_THROW(put(*store, "a", 2), Exhausted);
  expect_same(store->read(a), small_tensors());
  EXPECT_EQ(store->health().resident_bytes, 2 * kSmallBytes);
  const Fetched reading = store->get(b);
  store->remove(b);
  EXPECT_THROW(put(*store, "c"), Exhausted) << "bytes that a lease keeps count";
  store->release(reading.handle);
  put(*store, "c");
  EXPECT_EQ(store->health().max_resident_bytes, 2 * kSmallBytes + 10);
}

TEST_P(Leases, PutsAtOnceThatFitTheBudgetAllSucceed) {
  constexpr int kThreads = 4;
  const auto store = attach("exact", {.max_resident_bytes = kThreads * kSmallBytes});
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&store, t] {
      for (int i = 0; i < 100; ++i)
        EXPECT_NO_THROW(store->remove(put(*store, std::to_string(t)))) << "never more than one each";
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store->health().resident_bytes, 0u);
  for (int t = 0; t < kThreads; ++t) put(*store, std::to_string(t));
  EXPECT_THROW(put(*store, "more"), Exhausted);
}

TEST_P(Leases, ThreadsNeverPassTheBudget) {
  constexpr std::uint64_t kCap = 5 * kSmallBytes;
  const auto store = attach("capped", {.max_resident_bytes = kCap});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&store, t] {
      for (int i = 0; i < 50; ++i) {
        try {
          const SampleRef ref = put(*store, std::to_string(t) + ":" + std::to_string(i));
          EXPECT_LE(store->health().resident_samples, 5u);
          store->remove(ref);
        } catch (const Exhausted&) {
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store->health().resident_bytes, 0u);
}

TEST_P(Leases, ThreadsThatConsumeOneSampleFreeItOnceAndNobodyReadsOtherBytes) {
  const auto store = consume_once();
  for (int round = 0; round < 30; ++round) {
    const SampleRef ref = put(*store, "a", round);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        try {
          const Fetched fetched = store->get(ref);
          expect_same(fetched.tensors, small_tensors(round));
          store->release(fetched.handle);
        } catch (const NotFound&) {  // consumed
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_THROW(store->get(ref), NotFound);
    EXPECT_EQ(store->health().live_leases, 0u);
    EXPECT_EQ(store->health().resident_samples, 0u);
    EXPECT_EQ(store->health().freed_total, static_cast<std::uint64_t>(round) + 1);
  }
}

TEST_P(Leases, HealthTellsAges) {
  const auto store = attach();
  EXPECT_EQ(store->health().oldest_age_s, 0);
  put(*store);
  const StoreHealth health = store->health();
  EXPECT_GE(health.oldest_age_s, health.average_age_s);
  EXPECT_LE(health.oldest_age_s, 200);
}

TEST_P(Leases, FindAndForEachShowWhatIsThere) {
  const auto store = attach();
  const std::string strange = GetParam().any_id ? "a\n/\xF0\x9F\x98\x80" : "a\t~\xF0\x9F\x98\x80";
  const SampleRef a = put(*store, strange), b = put(*store, "b");
  const Fetched reading = store->get(b);
  std::map<std::string, ResidentSample> found;
  store->for_each(
      [&](const ResidentSample& sample) {
        found.emplace(sample.sample_id.str(), sample);
        return true;
      },
      [](const std::filesystem::path& path, const std::string& why) { ADD_FAILURE() << path << ": " << why; });
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found.at(strange).generation, a.generation);
  EXPECT_EQ(found.at("b").bytes, kSmallBytes);
  EXPECT_EQ(found.at("b").leases, 1u);
  int visited = 0;
  store->for_each([&](const ResidentSample&) { return ++visited < 1; }, [](const auto&, const auto&) {});
  EXPECT_EQ(visited, 1);
  EXPECT_EQ(store->read(store->find(SampleId("b"))).size(), 2u);
  EXPECT_EQ(store->find(SampleId("b"), b.generation).estimated_bytes, kSmallBytes);
  EXPECT_THROW(store->find(SampleId("b"), b.generation + 1), NotFound);
  EXPECT_THROW(store->find(SampleId("c")), NotFound);
  store->release(reading.handle);
}

TEST(EstimateBytes, IsTheSumOfTheSpecs) {
  std::vector<FeatureSpec> specs;
  for (const auto& [name, tensor] : small_tensors()) specs.push_back(spec_from_tensor(name, tensor));
  EXPECT_EQ(estimate_bytes(specs), kSmallBytes);
  EXPECT_EQ(estimate_bytes({}), 0u);
}

DRAFTFLOW_INSTANTIATE_CONFORMANCE(Leases);

}  // namespace
}  // namespace draftflow
