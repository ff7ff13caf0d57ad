// SPDX-License-Identifier: Apache-2.0
//
// What every backend that stores bytes must do, over each of them.
#include "store/conformance.h"

#include <fmt/format.h>

#include <map>
#include <set>
#include <thread>

#include "store/store_testing.h"

namespace draftflow {
namespace {

using store_testing::expect_same;
using store_testing::message_of;
using store_testing::run_metadata;
using store_testing::sample_tensors;
using store_testing::small_tensors;
using ::testing::HasSubstr;

TEST_P(Conformance, EveryDtypeComesBackBitForBit) {
  const auto store = attach();
  const TensorMap tensors = sample_tensors();
  const SampleRef ref = store->put(tensors, SampleId("run:00000001"), run_metadata());
  expect_same(store->read(ref), tensors);
}

TEST_P(Conformance, AnotherAttachReadsWhatTheRefInJsonNames) {
  const TensorMap tensors = sample_tensors(7);
  const std::string json = sample_ref_to_json(attach()->put(tensors, SampleId("a"), run_metadata()));
  expect_same(attach()->read(sample_ref_from_json(json)), tensors);
}

TEST_P(Conformance, RefSaysWhatWasPut) {
  const auto store = attach();
  PutMetadata metadata{.run_id = RunId("r1"),
                       .source_task_id = "task",
                       .strategy = "eagle3",
                       .target_model_version = "tm",
                       .tokenizer_version = "tk",
                       .num_tokens = 16,
                       .metadata = {{"layers", "[1,2]"}}};
  const SampleRef ref = store->put(small_tensors(), SampleId(GetParam().id), metadata);
  EXPECT_EQ(ref.run_id.str(), "r1");
  EXPECT_EQ(ref.source_task_id, "task");
  EXPECT_EQ(ref.feature_store_uri, fmt::format(fmt::runtime(GetParam().uri), ref.generation));
  const std::string id = GetParam().id;
  EXPECT_THAT(ref.feature_keys, ::testing::ElementsAre(::testing::Pair("input_ids", id + "/input_ids"),
                                                       ::testing::Pair("hidden_state", id + "/hidden_state")));
  EXPECT_EQ(ref.num_tokens, 16);
  EXPECT_EQ(ref.estimated_bytes, 16u * 8 + 16 * 8 * 2);
  EXPECT_GT(ref.generation, 0u);
  EXPECT_LT(ref.generation, 1ULL << 53);
  EXPECT_EQ(ref.incarnation.size(), 32u);
  ASSERT_NE(ref.find_metadata("layers"), nullptr);
  EXPECT_EQ(ref.find_spec("hidden_state")->dtype, DType::kBFloat16);
}

TEST_P(Conformance, OnlyTheNamedTensorsAreRead) {
  const auto store = attach();
  const TensorMap tensors = sample_tensors();
  const SampleRef ref = store->put(tensors, SampleId("a"), run_metadata());
  expect_same(store->read(ref, {"scalar", "t_int8"}), {tensors[2], tensors[11]});  // in the ref's order
  EXPECT_THAT(message_of<NotFound>([&] { store->read(ref, {"nobody"}); }), HasSubstr("no tensor 'nobody': it has t_bool"));
}

TEST_P(Conformance, AKeyOfAnotherTensorIsNotFound) {
  const auto store = attach();
  const TensorMap tensors{{"a", Tensor::copy_of(DType::kUInt8, {1}, std::as_bytes(std::span("1", 1)))},
                          {"b", Tensor::copy_of(DType::kUInt8, {1}, std::as_bytes(std::span("2", 1)))}};
  SampleRef ref = store->put(tensors, SampleId("s"), run_metadata());
  ref.feature_keys = {{"a", "s/b"}, {"b", "s/a"}};
  const auto what = HasSubstr("has 's/b' as the key of 'a'");
  EXPECT_THAT(message_of<NotFound>([&] { store->read(ref); }), what);
  EXPECT_THAT(message_of<NotFound>([&] { store->get(ref); }), what);
  EXPECT_EQ(store->health().live_leases, 0U);
  ref.feature_keys = {{"a", "a"}, {"b", "b"}};
  expect_same(store->read(ref), tensors);
}

TEST_P(Conformance, PutCopiesTheCallersBytes) {
  const auto store = attach();
  auto [tensor, bytes] = Tensor::allocate(DType::kUInt8, {4});
  std::fill(bytes.begin(), bytes.end(), std::byte{1});
  const SampleRef ref = store->put({{"x", tensor}}, SampleId("a"), run_metadata());
  std::fill(bytes.begin(), bytes.end(), std::byte{2});
  EXPECT_EQ(store->read(ref)[0].second.bytes[0], std::byte{1});
}

TEST_P(Conformance, PutAgainSupersedes) {
  const auto store = attach();
  const SampleRef old = store->put(small_tensors(1), SampleId("a"), run_metadata());
  const SampleRef current = store->put(small_tensors(2), SampleId("a"), run_metadata());
  EXPECT_GT(current.generation, old.generation);
  const std::string message = message_of<NotFound>([&] { store->read(old); });
  EXPECT_THAT(message, HasSubstr("sample 'a' generation " + std::to_string(old.generation) + " of store 'features'"));
  expect_same(store->read(current), small_tensors(2));
}

// A writer is held up between its question and its put's appearance, for as long as you like: another has taken its work over.
TEST_P(Conformance, ALatePutRetiresNothingOfWhoeverTookItsWorkOver) {
  const auto next = attach();
  next->put(small_tensors(0), SampleId("other"), run_metadata());  // its numbers began before the late one's
  const auto late = attach();
  std::optional<SampleRef> taken_over;
  const PutFence held_up{.still_mine = [&] {
    taken_over = next->put(small_tensors(2), SampleId("a"), run_metadata(), {.taken_over = true});
    return true;
  }};
  const SampleRef lost = late->put(small_tensors(1), SampleId("a"), run_metadata(), held_up);
  ASSERT_TRUE(taken_over.has_value());
  next->gc();
  expect_same(next->read(*taken_over), small_tensors(2));
  EXPECT_THROW(late->read(lost), NotFound);
  EXPECT_FALSE(late->remove(lost));
  expect_same(next->read(*taken_over), small_tensors(2));
  EXPECT_EQ(next->health().resident_samples, 2u);
}

TEST_P(Conformance, APutThatHasLostItsLeaseLeavesNothing) {
  const auto store = attach();
  const SampleRef old = store->put(small_tensors(1), SampleId("a"), run_metadata());
  int asked = 0;
  for (const char* id : {"a", "b"}) {
    const PutFence lost{.still_mine = [&] { return ++asked == 0; }};
    EXPECT_THAT(message_of<Conflict>([&] { store->put(small_tensors(2), SampleId(id), run_metadata(), lost); }),
                HasSubstr("the lease that it works under was lost; nothing was kept"));
    const PutFence unsure{.still_mine = [&]() -> bool { throw Unavailable("no ledger"); }};
    EXPECT_THROW(store->put(small_tensors(2), SampleId(id), run_metadata(), unsure), Unavailable);
  }
  EXPECT_EQ(asked, 2);
  expect_same(store->read(old), small_tensors(1));
  const StoreHealth health = store->health();
  EXPECT_EQ(health.resident_samples, 1u);
  EXPECT_EQ(health.resident_bytes, old.estimated_bytes);
  EXPECT_EQ(store->gc().temporaries_removed, 0u);
}

TEST_P(Conformance, RemoveIsAtOnceAndIdempotent) {
  const auto store = attach();
  const SampleRef ref = store->put(small_tensors(), SampleId("a"), run_metadata());
  const SampleRef other = store->put(small_tensors(), SampleId("b"), run_metadata());
  EXPECT_TRUE(store->remove(ref));
  EXPECT_FALSE(store->remove(ref));
  EXPECT_THROW(store->read(ref), NotFound);
  expect_same(store->read(other), small_tensors());
}

TEST_P(Conformance, RemoveOfAnOldRefLeavesTheNewGeneration) {
  const auto store = attach();
  const SampleRef old = store->put(small_tensors(1), SampleId("a"), run_metadata());
  const SampleRef current = store->put(small_tensors(2), SampleId("a"), run_metadata());
  EXPECT_FALSE(store->remove(old));
  expect_same(store->read(current), small_tensors(2));
}

TEST_P(Conformance, GenerationsAreNeverReusedAfterRemoveOrAttach) {
  std::set<std::uint64_t> seen;
  std::uint64_t last = 0;
  for (int i = 0; i < 12; ++i) {
    const auto store = attach();
    for (int j = 0; j < 2; ++j) {
      const SampleRef ref = store->put(small_tensors(), SampleId("a"), run_metadata());
      EXPECT_TRUE(seen.insert(ref.generation).second) << ref.generation;
      EXPECT_GT(ref.generation, last);
      last = ref.generation;
      if (i % 2 == 0) store->remove(ref);
    }
  }
}

TEST_P(Conformance, TheOlderAttachStillPutsGreaterGenerations) {
  const auto first = attach(), second = attach();
  std::uint64_t last = 0;
  for (int i = 0; i < 6; ++i) {
    const SampleRef ref = (i % 2 == 0 ? first : second)->put(small_tensors(i), SampleId("a"), run_metadata());
    EXPECT_GT(ref.generation, last);
    last = ref.generation;
    expect_same(first->read(ref), small_tensors(i));
  }
}

TEST_P(Conformance, ThreadsThatRaceOnOneSampleLeaveTheGreatest) {
  const auto store = attach();
  std::vector<std::vector<SampleRef>> refs(4);
  std::vector<std::thread> threads;
  for (auto& mine : refs) {
    threads.emplace_back([&store, &mine] {
      for (int i = 0; i < 25; ++i) mine.push_back(store->put(small_tensors(), SampleId("a"), run_metadata()));
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::map<std::uint64_t, const SampleRef*> all;
  for (const auto& mine : refs) {
    for (const SampleRef& ref : mine) EXPECT_TRUE(all.emplace(ref.generation, &ref).second);
  }
  for (const auto& [generation, ref] : all) {
    if (generation == all.rbegin()->first) {
      expect_same(store->read(*ref), small_tensors());
    } else {
      EXPECT_THROW(store->read(*ref), NotFound) << generation;
    }
  }
}

TEST_P(Conformance, HostileIdsAreJustIds) {
  std::vector<std::string> ids = {"/",
                                  "..",
                                  "../../x",
                                  "a/b",
                                  "a_b",
                                  "a\nb",
                                  ".",
                                  "a:b",
                                  "\xF0\x9F\x98\x80",
                                  "~",
                                  "A",
                                  "a",
                                  "-rf",
                                  " ",
                                  std::string(1024, 'x'),
                                  std::string(1023, 'x') + "y",
                                  ".hidden",
                                  "a.g1",
                                  "\"header_xxh3_64\":\"",
                                  "CON"};
  std::vector<std::string> store_ids = {"features", "../../escape\n\xF0\x9F\x98\x80"};
  if (!GetParam().any_id) {
    EXPECT_THROW(attach(store_ids.back()), InvalidArgument);
    store_ids.pop_back();
    const auto store = attach();
    std::erase_if(ids, [&](const std::string& id) {
      const bool refused = id.find_first_of("/\n") != std::string::npos || id.size() > 200;
      if (refused) {
        EXPECT_THROW(store->put(small_tensors(), SampleId(id), run_metadata()), InvalidArgument) << id;
      }
      return refused;
    });
  }
  for (const std::string& store_id : store_ids) {
    const auto store = attach(store_id);
    std::vector<SampleRef> refs;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      refs.push_back(store->put(small_tensors(i), SampleId(ids[i]), run_metadata()));
    }
    for (std::size_t i = 0; i < ids.size(); ++i) {
      expect_same(attach(store_id)->read(sample_ref_from_json(sample_ref_to_json(refs[i]))), small_tensors(i));
    }
    EXPECT_EQ(store->health().resident_samples, ids.size());
  }
}

TEST_P(Conformance, BadArgumentsAreRefusedBeforeAnythingIsWritten) {
  const auto store = attach();
  const Tensor good = Tensor::copy_of(DType::kUInt8, {1}, std::vector<std::byte>(1));
  Tensor misfit = good;
  misfit.shape = {2};
  const auto refused = [&](const TensorMap& tensors, PutMetadata metadata) {
    return message_of<InvalidArgument>([&] { store->put(tensors, SampleId("a"), metadata); });
  };
  EXPECT_THAT(refused({}, run_metadata()), HasSubstr("no tensors were given"));
  EXPECT_THAT(refused({{"x", misfit}}, run_metadata()), HasSubstr("tensor 'x' of dtype uint8 and shape [2] needs 2 bytes"));
  EXPECT_THAT(refused({{"x", good}, {"x", good}}, run_metadata()), HasSubstr("'x' is empty, reserved or given twice"));
  EXPECT_THAT(refused({{"__metadata__", good}}, run_metadata()), HasSubstr("reserved"));
  EXPECT_THAT(refused({{"\xFF", good}}, run_metadata()), HasSubstr("tensor name '\\xff' is not UTF-8"));
  EXPECT_THAT(refused({{"x", good}}, {.run_id = RunId("r"), .metadata = {{"k", "{"}}}), HasSubstr("'k' is not JSON text"));
  EXPECT_THAT(refused({{"x", good}}, {.run_id = RunId("r"), .metadata = {{"generation", "1"}}}), HasSubstr("the store's own"));
  EXPECT_THAT(refused({{"x", good}}, {.run_id = RunId("r"), .strategy = "\xFF"}), HasSubstr("strategy"));
  EXPECT_EQ(store->health().resident_samples, 0u);
}

TEST_P(Conformance, ARefThatPromisesAnotherShapeIsCorrupt) {
  const auto store = attach();
  SampleRef ref = store->put(small_tensors(), SampleId("a"), run_metadata());
  ref.feature_specs.edit([](auto& specs) { specs[1].shape = {8, 16}; });
  EXPECT_THAT(message_of<Corrupt>([&] { store->read(ref); }),
              HasSubstr("tensor 'hidden_state' is bfloat16 [16, 8], but the ref says bfloat16 [8, 16]"));
  expect_same(store->read(ref, {"input_ids"}), {small_tensors()[0]});
}

TEST_P(Conformance, StoresOfOneRootAreApart) {
  const auto one = attach("one"), two = attach("two");
  const SampleRef ref = one->put(small_tensors(), SampleId("a"), run_metadata());
  EXPECT_THROW(two->read(ref), NotFound);
  EXPECT_FALSE(two->remove(ref));
  SampleRef renamed = ref;  // even a ref that lies about its store
  renamed.feature_store_uri.replace(renamed.feature_store_uri.find("one"), 3, "two");
  EXPECT_THAT(message_of<NotFound>([&] { two->read(renamed); }), HasSubstr("incarnation"));
  expect_same(one->read(ref), small_tensors());
}

TEST_P(Conformance, HealthCountsSamplesAndTensorBytes) {
  const auto store = attach();
  EXPECT_EQ(store->health().resident_samples, 0u);
  const SampleRef a = store->put(small_tensors(), SampleId("a"), run_metadata());
  store->put(sample_tensors(), SampleId("b"), run_metadata());
  store->put(small_tensors(2), SampleId("a"), run_metadata());
  const StoreHealth health = store->health();
  EXPECT_EQ(health.store_id, "features");
  EXPECT_EQ(health.resident_samples, 2u);
  std::uint64_t bytes = a.estimated_bytes;
  for (const auto& [name, tensor] : sample_tensors()) bytes += tensor.bytes.size();
  EXPECT_EQ(health.resident_bytes + health.codec_saved_bytes_total, bytes);  // nothing is saved where nothing is packed
  EXPECT_EQ(health.codec_saved_bytes_total > 0, health.codec != Codec::kRaw);
  EXPECT_GT(health.free_bytes, 0u);
}

DRAFTFLOW_INSTANTIATE_CONFORMANCE(Conformance);

}  // namespace
}  // namespace draftflow
