// SPDX-License-Identifier: Apache-2.0
#include "train/speculative.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "train/testing.h"

namespace draftflow {
namespace {

using testing_support::make_draft;
using testing_support::make_target;

std::vector<std::int64_t> prompt_of(std::uint64_t seed) {
  Random random(seed);
  std::vector<std::int64_t> ids{1};
  for (int i = 0; i < 6; ++i) ids.push_back(static_cast<std::int64_t>(3 + random.below(testing_support::kVocab - 3)));
  return ids;
}

TEST(Speculative, IsLosslessWhateverTheDraftSays) {
  const Llama target = make_target();
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const Eagle3Draft draft = make_draft(at::kFloat, 24, seed);
    for (const int depth : {1, 2, 5}) {
      const DecodeOptions options{.new_tokens = 20, .depth = depth, .layers = {1, 2, 3}};
      const Decoded plain = decode_plain(target, prompt_of(seed), options);
      const Decoded fast = decode_speculative(target, draft, prompt_of(seed), options);
      ASSERT_EQ(fast.tokens, plain.tokens) << "seed " << seed << " depth " << depth;
      EXPECT_EQ(plain.target_passes, static_cast<std::int64_t>(plain.tokens.size()));  // one pass, one token
      EXPECT_LE(fast.target_passes, plain.target_passes);
    }
  }
}

TEST(Speculative, CountsAddUp) {
  const Llama target = make_target();
  const DecodeOptions options{.new_tokens = 24, .depth = 4, .layers = {1, 2, 3}};
  const Decoded fast = decode_speculative(target, make_draft(at::kFloat), prompt_of(3), options);
  const std::int64_t chains = fast.target_passes - 1;
  std::int64_t accepted = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(fast.drafted[i], chains);
    if (i > 0) {
      EXPECT_LE(fast.accepted[i], fast.accepted[i - 1]);
    }
    accepted += fast.accepted[i];
  }
  // Every pass emits what it agreed with and one more; the last may be cut at new_tokens.
  EXPECT_GE(fast.target_passes + accepted, static_cast<std::int64_t>(fast.tokens.size()));
  EXPECT_LE(fast.target_passes + accepted, static_cast<std::int64_t>(fast.tokens.size()) + options.depth);
}

TEST(Speculative, NeverPastTheEndOfTheText) {
  const Llama target = make_target();
  // With every token an EOS, decoding ends after the first.
  LlamaConfig config = target.config();
  for (std::int64_t id = 0; id < config.vocab_size; ++id) config.eos_token_ids.push_back(id);
  const Llama ending = Llama::random(config, 3);
  const DecodeOptions options{.new_tokens = 20, .depth = 3, .layers = {1, 2, 3}};
  EXPECT_EQ(decode_plain(ending, prompt_of(1), options).tokens.size(), 1u);
  EXPECT_EQ(decode_speculative(ending, make_draft(at::kFloat), prompt_of(1), options).tokens.size(), 1u);
}

TEST(Speculative, NeedsRoomForTheLastChain) {
  EXPECT_EQ(positions_needed(10, {.new_tokens = 20, .depth = 3, .layers = {}}), 34);
}

}  // namespace
}  // namespace draftflow
