// SPDX-License-Identifier: Apache-2.0
//
// Greedy decoding of one prompt: plain, and speculative with a chain of drafted tokens. Both run the target over the same
// number of rows (depth + 1; plain decoding pads) and reduce attention over the same columns, so a token can differ only if
// the verification is wrong. Pure functions over const models; thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "draftflow/model/llama.h"
#include "train/eagle3_draft.h"

namespace draftflow {

struct Decoded {
  std::vector<std::int64_t> tokens;    // new ones only; ends with EOS if it came
  std::int64_t target_passes = 0;      // the prefill included
  std::vector<std::int64_t> drafted;   // [depth] passes in which position i was drafted
  std::vector<std::int64_t> accepted;  // [depth] and accepted
};

struct DecodeOptions {
  std::int64_t new_tokens = 64;
  int depth = 5;
  std::vector<int> layers;  // captured for the draft
};

// Positions a prompt of this many tokens needs in the target's context.
std::int64_t positions_needed(std::int64_t prompt_tokens, const DecodeOptions& options);

Decoded decode_plain(const Llama& target, const std::vector<std::int64_t>& prompt, const DecodeOptions& options);
Decoded decode_speculative(const Llama& target, const Eagle3Draft& draft, const std::vector<std::int64_t>& prompt,
                           const DecodeOptions& options);

}  // namespace draftflow
