// SPDX-License-Identifier: Apache-2.0
//
// What only the memory store promises; the verbs of every backend are in the conformance suites.
#include "store/memory/memory_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using store_testing::expect_same;
using store_testing::message_of;
using store_testing::run_metadata;
using store_testing::small_tensors;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::uint64_t kSmallBytes = 16 * 8 + 16 * 8 * 2;  // of small_tensors

std::unique_ptr<FeatureStore> make(const MemoryOptions& options = {}) {
  return create_memory_store(StoreId("st"), options);
}

SampleRef put(FeatureStore& store, const std::string& id = "a", std::uint64_t seed = 1) {
  return store.put(small_tensors(seed), SampleId(id), run_metadata());
}

TEST(MemoryUri, QuotesAsPythonDoes) {
  const auto uri = [](const std::string& id) { return store::memory_uri(StoreId("st"), SampleId(id), 7); };
  EXPECT_EQ(uri("run:00000001"), "mem://st/run%3A00000001?generation=7");
  EXPECT_EQ(uri("aZ09_.-~"), "mem://st/aZ09_.-~?generation=7");
  EXPECT_EQ(uri("a/b c\n%?#\xC3\xA9"), "mem://st/a%2Fb%20c%0A%25%3F%23%C3%A9?generation=7");
}

TEST(MemoryStore, OptionsThatContradictAreRefused) {
  EXPECT_THAT(message_of<InvalidArgument>([] { make({.max_hold_age_ms = 1}); }),
              HasSubstr("memory store 'st': max_hold_age_ms is 1, but the store is ledgered"));
  EXPECT_THAT(message_of<InvalidArgument>([] { make({.kind = StoreKind::kConsumeOnce, .max_hold_age_ms = -1}); }),
              HasSubstr("max_hold_age_ms is -1: 0 or more is allowed"));
}

TEST(MemoryStore, GenerationsStartAtRandomAndRise) {
  std::set<std::uint64_t> firsts;
  for (int i = 0; i < 8; ++i) {
    const auto store = make();
    std::uint64_t last = put(*store).generation;
    firsts.insert(last);
    EXPECT_LE(last, 1ULL << 52);
    for (const char* id : {"a", "b", "a"}) {
      const std::uint64_t next = put(*store, id).generation;
      EXPECT_GT(next, last);
      last = next;
    }
  }
  EXPECT_EQ(firsts.size(), 8u);
}

TEST(MemoryStore, ARefOfAnEarlierStoreOfThisNameFindsNothing) {
  const SampleRef old = put(*make());
  const auto again = make();
  const SampleRef ours = put(*again, "a", 2);
  EXPECT_NE(old.incarnation, ours.incarnation);
  EXPECT_THAT(message_of<NotFound>([&] { again->get(old); }), HasSubstr("but the store here is incarnation"));
  EXPECT_FALSE(again->remove(old));
  SampleRef lying = ours;  // the URI names a generation too
  ++lying.generation;
  EXPECT_THAT(message_of<NotFound>([&] { again->read(lying); }), HasSubstr("its URI is 'mem://st/a?generation="));
  EXPECT_FALSE(again->remove(lying));
  expect_same(again->read(ours), small_tensors(2));
}

TEST(MemoryStore, ARefThatNamesAnotherTensorIsCorrupt) {
  const auto store = make();
  SampleRef ref = put(*store);
  ref.feature_specs.edit([](auto& specs) { specs[0].name = "other"; });
  EXPECT_THAT(message_of<Corrupt>([&] { store->get(ref); }),
              HasSubstr("of store 'st' has no tensor 'other', which the ref names"));
  EXPECT_EQ(store->health().live_leases, 0u);
}

TEST(MemoryStore, ViewsAreTheStoredBytesAndOutliveTheStore) {
  TensorMap views;
  {
    auto store = make({.kind = StoreKind::kConsumeOnce});
    const SampleRef ref = put(*store);
    const Fetched one = store->get(ref, {.zero_copy = true}), two = store->get(ref, {.zero_copy = true});
    EXPECT_EQ(one.tensors[1].second.bytes.data(), two.tensors[1].second.bytes.data());
    views = one.tensors;
    store->release(one.handle);
    store->release(two.handle);
    EXPECT_EQ(store->health().resident_bytes, 0u);
    for (int i = 0; i < 8; ++i) put(*store, std::to_string(i), 100 + i);  // would take the memory if it were free
  }
  expect_same(views, small_tensors());
}

TEST(MemoryStore, TokensOfAnotherStoreDoNothing) {
  const auto one = make({.kind = StoreKind::kConsumeOnce}), two = make({.kind = StoreKind::kConsumeOnce});
  const SampleRef a = put(*one), b = put(*two);
  const Fetched mine = one->get(a), theirs = two->get(b);
  EXPECT_NE(mine.handle.lease_token, theirs.handle.lease_token);
  one->release({a.sample_id, a.generation, theirs.handle.lease_token});
  EXPECT_EQ(one->health().live_leases, 1u);
  expect_same(one->read(a), small_tensors());
}

TEST(MemoryStore, AnyConsumingReleaseMakesTheLastOneFree) {
  const auto store = make({.kind = StoreKind::kConsumeOnce});
  const SampleRef ref = put(*store);
  const Fetched one = store->get(ref);
  const Fetched two = store->get(ref);
  store->release(one.handle);
  expect_same(store->read(ref), small_tensors());
  SampleRef lying = ref;
  lying.feature_specs.edit([](auto& specs) { specs[0].shape = {4, 4}; });
  store->release(two.handle);
  EXPECT_EQ(store->health().resident_samples, 0u);

  const SampleRef next = put(*store);
  lying.generation = next.generation;
  lying.feature_store_uri = next.feature_store_uri;
  EXPECT_THROW(store->get(lying), Corrupt);  // its lease ended without consuming
  expect_same(store->read(next), small_tensors());
}

TEST(MemoryStore, MaxHoldAgeFreesWhatNobodyTook) {
  std::int64_t now = 5'000;
  const auto store = make({.kind = StoreKind::kConsumeOnce, .max_hold_age_ms = 1'000, .clock_ms = [&now] { return now; }});
  now += 500;
  const SampleRef old = put(*store, "old"), leased = put(*store, "leased");
  const Fetched reading = store->get(leased);
  now += 1'000;
  const SampleRef young = put(*store, "young");
  EXPECT_EQ(store->gc().force_freed, 0u);  // at the age, not past it
  EXPECT_DOUBLE_EQ(store->health().oldest_age_s, 1.0);
  EXPECT_NEAR(store->health().average_age_s, 2.0 / 3, 1e-9);
  now += 1;
  const GcReport report = store->gc();
  EXPECT_EQ(report.force_freed, 1u);
  EXPECT_EQ(report.generations_removed, 1u);
  EXPECT_EQ(report.bytes_removed, kSmallBytes);
  EXPECT_THROW(store->read(old), NotFound);
  expect_same(store->read(leased), small_tensors());
  expect_same(store->read(young), small_tensors());
  store->release(reading.handle);
  EXPECT_EQ(store->gc().force_freed, 0u);
  const StoreHealth health = store->health();
  EXPECT_EQ(health.resident_samples, 1u);
  EXPECT_EQ(health.freed_bytes_total, 2 * kSmallBytes);
  EXPECT_DOUBLE_EQ(health.average_age_s, 0.001);
  EXPECT_DOUBLE_EQ(health.oldest_age_s, 0.001);
}

TEST(MemoryStore, WithoutAMaxHoldAgeGcFreesNothing) {
  std::int64_t now = 0;
  const auto store = make({.kind = StoreKind::kConsumeOnce, .clock_ms = [&now] { return now; }});
  const SampleRef ref = put(*store);
  now += 1'000'000'000;
  EXPECT_EQ(store->gc().generations_removed, 0u);
  expect_same(store->read(ref), small_tensors());
}

TEST(MemoryStore, AClockThatGoesBackIsHarmless) {
  std::int64_t now = 10'000;
  const auto store = make({.clock_ms = [&now] { return now; }});
  now = 20'000;
  put(*store, "a");
  now = 0;
  put(*store, "b");
  EXPECT_EQ(store->health().oldest_age_s, 0);
  store->for_each(
      [](const ResidentSample& sample) {
        EXPECT_EQ(sample.age_s, 0);
        return true;
      },
      {});
  now = 30'000;
  EXPECT_DOUBLE_EQ(store->health().oldest_age_s, 10);
}

// What try_physical_free was asked, and what it answers.
struct Frees {
  bool answer = true;
  std::vector<std::string> asked;
  MemoryOptions options(StoreKind kind = StoreKind::kConsumeOnce) {
    return {.kind = kind, .try_physical_free = [this](const SampleId& id, std::uint64_t generation) {
              asked.push_back(fmt::format("{} {}", id.str(), generation));
              return answer;
            }};
  }
};

std::string named(const SampleRef& ref) {
  return fmt::format("{} {}", ref.sample_id.str(), ref.generation);
}

TEST(MemoryStore, APhysicalFreeThatFailsStaysOnTheBooksUntilGc) {
  Frees frees{.answer = false};
  MemoryOptions options = frees.options();
  options.max_resident_bytes = kSmallBytes;
  const auto store = make(options);
  const SampleRef ref = put(*store);
  store->release(store->get(ref).handle);
  EXPECT_THAT(frees.asked, ElementsAre(named(ref)));
  EXPECT_THROW(store->get(ref), NotFound);
  EXPECT_THROW(store->find(ref.sample_id), NotFound);
  StoreHealth health = store->health();
  EXPECT_EQ(health.release_pending, 1u);
  EXPECT_EQ(health.resident_samples, 1u);
  EXPECT_EQ(health.resident_bytes, kSmallBytes);
  EXPECT_EQ(health.freed_total, 0u);
  EXPECT_EQ(health.freed_bytes_total, 0u);
  EXPECT_THROW(put(*store, "b"), Exhausted);

  GcReport report = store->gc();
  EXPECT_EQ(report.release_pending, 1u);
  EXPECT_EQ(report.generations_removed, 0u);
  EXPECT_EQ(report.bytes_removed, 0u);
  EXPECT_EQ(store->health().release_pending, 1u);
  frees.answer = true;
  report = store->gc();
  EXPECT_EQ(report.release_pending, 0u);
  EXPECT_EQ(report.generations_removed, 1u);
  EXPECT_EQ(report.bytes_removed, kSmallBytes);
  health = store->health();
  EXPECT_EQ(health.release_pending, 0u);
  EXPECT_EQ(health.resident_bytes, 0u);
  EXPECT_EQ(health.freed_bytes_total, kSmallBytes);
  store->gc();
  EXPECT_EQ(frees.asked.size(), 3u);
}

TEST(MemoryStore, EveryWayToGoAsksFirst) {
  Frees frees;
  const auto store = make(frees.options(StoreKind::kLedgered));
  const SampleRef first = put(*store, "a", 1);
  const SampleRef second = put(*store, "a", 2);
  EXPECT_THAT(frees.asked, ElementsAre(named(first)));
  const Fetched reading = store->get(second);
  const SampleRef third = put(*store, "a", 3);
  EXPECT_EQ(frees.asked.size(), 1u);  // leased
  store->release(reading.handle);
  EXPECT_TRUE(store->remove(third));
  const SampleRef fourth = put(*store, "a", 4);
  EXPECT_EQ(store->abort(SampleId("a")), 1u);
  EXPECT_THAT(frees.asked, ElementsAre(named(first), named(second), named(third), named(fourth)));
  EXPECT_EQ(store->health().freed_total, 4u);
}

TEST(MemoryStore, AForcedFreeThatFailedIsStillForcedWhenItSucceeds) {
  std::int64_t now = 0;
  Frees frees{.answer = false};
  MemoryOptions options = frees.options();
  options.max_hold_age_ms = 10;
  options.clock_ms = [&now] { return now; };
  const auto store = make(options);
  put(*store);
  now = 11;
  EXPECT_EQ(store->gc().force_freed, 0u);
  EXPECT_DOUBLE_EQ(store->health().oldest_age_s, 0.011);
  frees.answer = true;
  EXPECT_EQ(store->gc().force_freed, 1u);
}

TEST(MemoryStore, AFreeThatThrowsIsAFreeThatFailed) {
  bool broken = true;
  const auto store = make({.try_physical_free = [&broken](const SampleId&, std::uint64_t) {
    if (broken) throw std::runtime_error("no connection");
    return true;
  }});
  put(*store, "a", 1);
  const SampleRef current = put(*store, "a", 2);
  expect_same(store->read(current), small_tensors(2));
  EXPECT_EQ(store->health().release_pending, 1u);
  EXPECT_EQ(store->gc().release_pending, 1u);
  broken = false;
  EXPECT_EQ(store->gc().generations_removed, 1u);
}

TEST(MemoryStore, APhysicalFreeMayCallTheStore) {
  std::unique_ptr<FeatureStore> store;
  bool answer = false;
  int asked = 0;
  const auto free = [&](const SampleId& id, std::uint64_t generation) {
    if (++asked > 2) return true;
    EXPECT_THROW(store->find(id, generation), NotFound);
    EXPECT_EQ(store->health().resident_bytes, 2 * kSmallBytes);
    const GcReport nested = store->gc();  // nobody frees what is being freed
    EXPECT_EQ(nested.generations_removed + nested.release_pending, 0u);
    return answer;
  };
  store = make({.try_physical_free = free});
  put(*store, "kept");
  EXPECT_TRUE(store->remove(put(*store)));
  EXPECT_EQ(store->health().release_pending, 1u);
  answer = true;
  EXPECT_EQ(store->gc().generations_removed, 1u);
  EXPECT_EQ(asked, 2);
  EXPECT_EQ(store->health().freed_total, 1u);
}

TEST(MemoryStore, AClockMayCallTheStore) {
  std::unique_ptr<FeatureStore> store;
  int calls = 0;
  store = make({.clock_ms = [&]() -> std::int64_t {
    if (store != nullptr && ++calls % 2 == 1) store->health();
    return 0;
  }});
  put(*store);
  store->gc();
  store->health();
  store->for_each([](const ResidentSample&) { return true; }, {});
  EXPECT_EQ(calls, 8);
}

TEST(MemoryStore, AVisitorMayCallTheStoreAndSeesAThousand) {
  const auto store = make();
  for (int i = 0; i < 1000; ++i) put(*store, std::to_string(i));
  std::set<std::string> seen;
  store->for_each(
      [&](const ResidentSample& sample) {
        EXPECT_TRUE(seen.insert(sample.sample_id.str()).second);
        EXPECT_TRUE(sample.path.empty());
        EXPECT_EQ(store->abort(sample.sample_id), 1u);
        return true;
      },
      {});
  EXPECT_EQ(seen.size(), 1000u);
  EXPECT_EQ(store->health().resident_samples, 0u);
}

TEST(MemoryStore, ATensorThatNoMemoryHoldsLeavesNothing) {
  const auto store = make({.max_resident_bytes = 1ULL << 60});
  const SampleRef before = put(*store);
  // Claims 2^50 bytes, of which not one can be read: the copy must fail before it looks at them.
  Tensor huge{DType::kUInt8, {std::int64_t{1} << 50}, {}, nullptr};
  huge.bytes = std::span(small_tensors()[0].second.bytes.data(), std::size_t{1} << 50);
  EXPECT_THROW(store->put({{"small", small_tensors()[0].second}, {"huge", huge}}, SampleId("a"), run_metadata()), Exhausted);
  EXPECT_EQ(store->health().resident_bytes, kSmallBytes);
  EXPECT_EQ(store->health().resident_samples, 1u);
  expect_same(store->read(before), small_tensors());
}

// A put that takes long, begun when this returns: what it needs is reserved.
class SlowPut {
 public:
  static constexpr std::int64_t kBytes = 64 << 20;
  explicit SlowPut(FeatureStore& store)
      : thread_([this, &store] { ref_ = store.put(tensors_, SampleId("a"), run_metadata()); }) {
    while (store.health().resident_bytes == 0) std::this_thread::yield();
  }
  ~SlowPut() { end(); }
  SampleRef end() {
    if (thread_.joinable()) thread_.join();
    return *ref_;
  }

 private:
  const TensorMap tensors_ = {{"x", Tensor::copy_of(DType::kUInt8, {kBytes}, std::vector<std::byte>(kBytes))}};
  std::optional<SampleRef> ref_;
  std::thread thread_;
};

TEST(MemoryStore, WhatAPutInProgressNeedsCountsAgainstTheCap) {
  const auto store = make({.max_resident_bytes = SlowPut::kBytes + kSmallBytes - 1});
  SlowPut slow(*store);
  EXPECT_THROW(put(*store, "b"), Exhausted);
  slow.end();
  EXPECT_EQ(store->health().resident_bytes, static_cast<std::uint64_t>(SlowPut::kBytes));
}

TEST(MemoryStore, OfTwoPutsAtOnceTheGreaterIsCurrent) {
  const auto store = make();
  SlowPut slow(*store);
  SampleRef greater = put(*store, "a"), other = slow.end();
  if (greater.generation < other.generation) std::swap(greater, other);
  EXPECT_EQ(store->read(greater).size(), greater.feature_specs.size());
  EXPECT_THROW(store->read(other), NotFound);
  EXPECT_EQ(store->health().resident_samples, 1u);
  EXPECT_EQ(store->health().freed_bytes_total, other.estimated_bytes);
}

TEST(MemoryStore, AForkedChildHasItsOwnGenerationsAndTokens) {
  const testing_support::TempFolder folder;
  const auto store = make({.kind = StoreKind::kConsumeOnce});
  const SampleRef shared = put(*store, "shared");
  const auto one_more = [&] {
    const Fetched fetched = store->get(shared);
    return fmt::format("{} {}", put(*store, "b").generation, fetched.handle.lease_token);
  };
  const pid_t child = store_testing::fork_child([&] {
    expect_same(store->read(shared), small_tensors());
    std::ofstream(folder.path() / "theirs") << one_more();
  });
  ASSERT_EQ(store_testing::wait_for(child), 0);
  std::uint64_t theirs = 0;
  std::string their_token;
  std::ifstream(folder.path() / "theirs") >> theirs >> their_token;
  const std::string ours = one_more();
  EXPECT_GT(theirs, shared.generation);
  EXPECT_EQ(ours.find(fmt::format("{} ", theirs)), std::string::npos);
  EXPECT_EQ(ours.find(their_token), std::string::npos);
}

// Every reader checks that the bytes are those of the generation it asked for; at the end the books are empty.
TEST(MemoryStore, ThreadsOverFewSamplesNeverSeeOtherBytesAndLeaveEmptyBooks) {
  constexpr int kThreads = 4, kRounds = 400;
  std::atomic<std::uint64_t> frees = 0, puts = 0;
  const auto store = make({.kind = StoreKind::kConsumeOnce,
                           .try_physical_free = [&](const SampleId&, std::uint64_t) { return frees.fetch_add(1) % 3 != 0; }});
  std::mutex mutex;
  std::map<std::string, SampleRef> latest;  // guarded by mutex
  const auto work = [&](int thread) {
    for (int i = 0; i < kRounds; ++i) {
      const std::string id(1, static_cast<char>('a' + i % 3));
      const auto value = static_cast<std::uint8_t>(thread * 64 + i % 64);
      const Tensor tensor = Tensor::copy_of(DType::kUInt8, {512}, std::vector<std::byte>(512, std::byte{value}));
      const SampleRef ref = store->put({{std::to_string(value), tensor}}, SampleId(id), run_metadata());
      puts.fetch_add(1);
      std::optional<SampleRef> other = ref;
      {
        const std::lock_guard lock(mutex);
        const auto [at, added] = latest.emplace(id, ref);
        if (!added) std::swap(at->second, *other);
      }
      try {
        const Fetched fetched = store->get(*other, {.zero_copy = i % 2 == 0});
        const auto wanted = static_cast<std::byte>(std::stoi(fetched.tensors[0].first));
        const auto bytes = fetched.tensors[0].second.bytes;
        EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [&](std::byte byte) { return byte == wanted; }));
        if (i % 5 == 0) store->abort(SampleId(id));
        store->release(fetched.handle);
        store->release(fetched.handle);
      } catch (const NotFound&) {
      }
      if (i % 16 == 0) store->gc();
      EXPECT_LE(store->health().live_leases, static_cast<std::uint64_t>(kThreads));
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back(work, t);
  for (std::thread& thread : threads) thread.join();
  for (const char* id : {"a", "b", "c"}) store->abort(SampleId(id));
  while (store->gc().release_pending > 0) continue;
  const StoreHealth health = store->health();
  EXPECT_EQ(health.resident_samples, 0u);
  EXPECT_EQ(health.resident_bytes, 0u);
  EXPECT_EQ(health.live_leases, 0u);
  EXPECT_EQ(health.freed_total, puts.load());
  EXPECT_EQ(health.freed_bytes_total, puts.load() * 512);
}

}  // namespace
}  // namespace draftflow
