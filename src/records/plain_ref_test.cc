// SPDX-License-Identifier: Apache-2.0
#include "records/plain_ref.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <exception>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"

namespace draftflow::records {
namespace {

SampleRef make_ref() {
  SampleRef ref{.sample_id = SampleId("run:00000007"), .run_id = RunId("run")};
  ref.source_task_id = "run:00000007";
  ref.feature_store_uri = "disagg://features/run:00000007";
  ref.feature_keys = {{"input_ids", "run:00000007/input_ids"}, {"hidden_state", "x/y"}};
  ref.feature_specs.push_back({.name = "input_ids", .shape = {192}, .dtype = DType::kInt64});
  ref.feature_specs.push_back({.name = "hidden_state",
                               .shape = {1, 192, 64},
                               .dtype = DType::kBFloat16,
                               .required = false,
                               .target_repr = "hidden_state",
                               .other = {{"device_hint", "\"cpu\""}, {"target_meta", "{}"}, {"later", "[1,-2,\"a\",null]"}}});
  ref.num_tokens = 192;
  ref.estimated_bytes = 26112;
  ref.generation = 16777217;
  ref.incarnation = "e35c4cd05796f789758e9c977ae4b8ba";
  ref.metadata = {{"format", "\"online_eagle3\""}, {"layers", "[1,2,3]"}, {"whole", "true"}, {"none", "[]"}};
  ref.other = {{"from_the_future", "-12"}};
  return ref;
}

// What a text comes to: the ref, written at length, or the error.
template <class Read>
std::string outcome(Read read, const std::string& text) {
  try {
    return write_any_ref(read(text));
  } catch (const std::exception& error) {
    return fmt::format("error: {}", error.what());
  }
}

TEST(PlainRef, AnOrdinaryRefGoesTheShortWayToTheSameBytes) {
  const SampleRef ref = make_ref();
  const std::string expected = write_any_ref(ref);
  ASSERT_TRUE(write_plain_ref(ref));
  EXPECT_EQ(*write_plain_ref(ref), expected);
  const auto again = read_plain_ref(expected);
  ASSERT_TRUE(again);
  EXPECT_EQ(write_any_ref(*again), expected);
  EXPECT_EQ(again->generation, ref.generation);
  EXPECT_EQ(again->incarnation, ref.incarnation);
  EXPECT_EQ(again->metadata, ref.metadata);
  EXPECT_EQ(again->other, ref.other);
  EXPECT_EQ(again->feature_keys, ref.feature_keys);
  EXPECT_EQ(again->feature_specs[1].other, ref.feature_specs[1].other);
  SampleRef least{.sample_id = SampleId("a"), .run_id = RunId("b")};
  EXPECT_EQ(write_plain_ref(least), write_any_ref(least));
  EXPECT_TRUE(read_plain_ref(write_any_ref(least)));
}

TEST(PlainRef, WhatIsNotPlainIsLeftToTheLibrary) {
  const auto left = [](auto change) {
    SampleRef ref = make_ref();
    change(ref);
    EXPECT_EQ(write_plain_ref(ref), std::nullopt);
    try {
      const std::string text = write_any_ref(ref);
      EXPECT_EQ(sample_ref_to_json(ref), text);
      EXPECT_EQ(sample_ref_to_json(sample_ref_from_json(text)), write_any_ref(read_any_ref(text)));
    } catch (const std::exception& error) {
      EXPECT_THROW(sample_ref_to_json(ref), std::exception);
    }
  };
  left([](SampleRef& ref) { ref.sample_id = SampleId("emoji \xF0\x9F\x98\x80"); });
  left([](SampleRef& ref) { ref.sample_id = SampleId("a\nb"); });
  left([](SampleRef& ref) { ref.feature_store_uri = "a\"b"; });
  left([](SampleRef& ref) { ref.feature_store_uri = "a\\b"; });
  left([](SampleRef& ref) { ref.strategy = "\x7F"; });
  left([](SampleRef& ref) { ref.tokenizer_version = "\xFF"; });
  left([](SampleRef& ref) { ref.feature_keys.emplace_back("input_ids", "twice"); });
  left([](SampleRef& ref) { ref.feature_specs.edit([](auto& specs) { specs[1].name = "input_ids"; }); });
  left([](SampleRef& ref) { ref.feature_specs.edit([](auto& specs) { specs[1].other.emplace_back("later", "2"); }); });
  left([](SampleRef& ref) { ref.feature_specs.edit([](auto& specs) { specs[1].other.emplace_back("shape", "2"); }); });
  left([](SampleRef& ref) { ref.feature_specs.edit([](auto& specs) { specs[1].other.emplace_back("device_hint", "2"); }); });
  left([](SampleRef& ref) { ref.metadata.emplace_back("generation", "2"); });
  left([](SampleRef& ref) { ref.metadata.emplace_back("incarnation", "2"); });
  left([](SampleRef& ref) { ref.metadata.emplace_back("format", "2"); });
  left([](SampleRef& ref) { ref.other.emplace_back("num_tokens", "2"); });
  left([](SampleRef& ref) { ref.other.emplace_back("from_the_future", "2"); });
  for (const char* value : {"1.5", "01", "-0", "1e3", " 1", "1 ", "[1, 2]", "[[1]]", "{\"a\":1}", "\"\\n\"", "\"\xC3\xA9\"",
                            "1234567890123456789", "", "nul", "[1,]", "{broken", "1]", "[1"}) {
    left([&](SampleRef& ref) { ref.set_metadata("x", value); });
  }
}

TEST(PlainRef, ReadsNothingThatTheLibraryReadsOtherwise) {
  const std::string text = write_any_ref(make_ref());
  const auto same = [](const std::string& changed) {
    const auto plain = read_plain_ref(changed);
    if (!plain) return false;
    EXPECT_EQ(write_any_ref(*plain), outcome(read_any_ref, changed)) << changed;
    return true;
  };
  EXPECT_TRUE(same(text));
  constexpr std::uint64_t kSeed = 7;
  Random random(kSeed);
  constexpr std::string_view kBytes = "\"\\{}[],:-0123.eE \n\x7F\x80truefalsn";
  int read = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string changed = text;
    for (std::uint64_t n = 1 + random.below(2); n > 0; --n) {
      const std::size_t at = random.below(changed.size());
      const char byte = kBytes[random.below(kBytes.size())];
      switch (random.below(4)) {
        case 0: changed[at] = byte; break;
        case 1: changed.insert(at, 1, byte); break;
        case 2: changed.erase(at, 1 + random.below(3)); break;
        default: changed.insert(at, changed.substr(random.below(changed.size()), random.below(40)));
      }
    }
    read += same(changed) ? 1 : 0;
    EXPECT_EQ(outcome(sample_ref_from_json, changed), outcome(read_any_ref, changed)) << "seed " << kSeed << ", " << i;
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(read, 200) << "hardly a changed text was read";
  for (std::size_t length = 0; length < text.size(); ++length) {
    EXPECT_FALSE(read_plain_ref(text.substr(0, length))) << length;
  }
  EXPECT_FALSE(read_plain_ref(text + " "));
  EXPECT_FALSE(read_plain_ref(" " + text));
}

}  // namespace
}  // namespace draftflow::records
