// SPDX-License-Identifier: Apache-2.0
#include "ledger/memory/packed_ref.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace draftflow::memory {
namespace {

SampleRef ref_of(const std::string& id, const std::string& uri, std::uint64_t generation = 7) {
  SampleRef ref{.sample_id = SampleId(id), .run_id = RunId("run")};
  ref.feature_store_uri = uri;
  ref.feature_keys = {{"hidden", id + "/hidden"}, {"ids", "elsewhere"}};
  ref.feature_specs.push_back({.name = "hidden", .shape = {1, 192, 4096}, .dtype = DType::kBFloat16});
  ref.feature_specs.push_back({.name = "ids", .shape = {}, .dtype = DType::kInt64});
  ref.num_tokens = 192;
  ref.estimated_bytes = 1ULL << 40;
  ref.generation = generation;
  ref.incarnation = "cafe";
  ref.set_metadata("layers", "[1,2]");
  ref.other.emplace_back("later", "{\"a\":1}");
  return ref;
}

TEST(PackedRef, GivesTheRefBack) {
  RefPatterns patterns;
  for (const SampleRef& ref : {ref_of("s1", "disagg://store/s1"), ref_of("s1", "mem://store/s1?generation=7"),
                               ref_of("s1", "mem://store/s1?generation=8"), ref_of("a/b c", "disagg://store/a%2Fb%20c"),
                               ref_of("7", "x7"), ref_of("7", "7"), ref_of("77", "x7"), ref_of("s1", ""),
                               ref_of(std::string(1024, 'x'), "file:///data"), ref_of("0", "0/0", 0)}) {
    const PackedRef packed = patterns.pack(ref);
    EXPECT_EQ(sample_ref_to_json(packed.unpack()), sample_ref_to_json(ref));
    EXPECT_EQ(packed.incarnation(), "cafe");
  }
}

TEST(PackedRef, RefsOfARunHaveOnePattern) {
  RefPatterns patterns;
  for (int i = 100; i < 900; ++i) {
    SampleRef ref =
        ref_of(fmt::format("s{}", i), fmt::format("mem://st/s{}?generation={}", i, 3 * i), static_cast<std::uint64_t>(3 * i));
    ref.feature_specs.edit([&](auto& specs) { specs[0].shape = {1, i, 4096}; });
    ref.num_tokens = i;
    ref.source_task_id = i % 2 == 0 ? fmt::format("s{}", i) : fmt::format("s{}/again", i);
    ref.set_metadata("source", fmt::format("\"train.jsonl:{}\"", i));
    EXPECT_EQ(sample_ref_to_json(patterns.pack(ref).unpack()), sample_ref_to_json(ref));
  }
  EXPECT_EQ(patterns.size(), 2U) << "one for each kind of task";
}

TEST(PackedRef, TextsAndShapesOfAnotherFormHaveAnother) {
  RefPatterns patterns;
  SampleRef ref = ref_of("s1", "disagg://store/s1");
  patterns.pack(ref);
  ref.feature_specs.edit([](auto& specs) { specs[0].shape = {192, 4096}; });
  EXPECT_EQ(sample_ref_to_json(patterns.pack(ref).unpack()), sample_ref_to_json(ref));
  ref.feature_keys = {{"hidden", "s1/hidden"}, {"ids", "s1"}};
  EXPECT_EQ(sample_ref_to_json(patterns.pack(ref).unpack()), sample_ref_to_json(ref));
  ref.set_metadata("layers", "[1,3]");
  EXPECT_EQ(sample_ref_to_json(patterns.pack(ref).unpack()), sample_ref_to_json(ref));
  EXPECT_EQ(patterns.size(), 4U);
}

TEST(PackedRef, RefsOfTheSameShapesShareTheirSpecsAsFarAsTheyAreKept) {
  RefPatterns patterns;
  std::size_t shared = 0;
  for (int i = 0; i < 5000; ++i) {
    SampleRef ref = ref_of("s1", "disagg://store/s1"), other = ref_of("s2", "disagg://store/s2");
    for (SampleRef* const one : {&ref, &other}) {
      one->feature_specs.edit([&](auto& specs) { specs[0].shape = {1, i, 4096}; });
    }
    const SampleRef first = patterns.pack(ref).unpack(), second = patterns.pack(other).unpack();
    EXPECT_EQ(sample_ref_to_json(first), sample_ref_to_json(ref));
    EXPECT_EQ(sample_ref_to_json(second), sample_ref_to_json(other));
    if (&first.feature_specs[0] == &second.feature_specs[0]) ++shared;
  }
  EXPECT_EQ(patterns.size(), 1U);
  EXPECT_EQ(shared, 4096U) << "memory is bounded";
}

TEST(PackedRef, RefsWithoutAnythingInCommonAreKeptAllTheSame) {
  RefPatterns patterns;
  for (int i = 0; i < 5000; ++i) {
    SampleRef ref = ref_of("s1", "disagg://store/s1");
    ref.set_metadata("digest", fmt::format("{}", i));
    EXPECT_EQ(sample_ref_to_json(patterns.pack(ref).unpack()), sample_ref_to_json(ref));
  }
}

}  // namespace
}  // namespace draftflow::memory
