// SPDX-License-Identifier: Apache-2.0
//
// What a draft is worth: greedy speculative decoding of held-out prompts with chain drafting, verified by the target, in
// float32, beside the target's own greedy decoding. Both run the target over the same number of padded rows, and ties go
// to the lowest id, so equal means equal. This header needs no libtorch. One call per process at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace draftflow {

struct EvalOptions {
  std::filesystem::path target, tokenizer;  // as in CaptureOptions
  std::filesystem::path draft;              // Hugging Face layout
  std::filesystem::path prompts;            // as in CaptureOptions
  std::vector<int> layers;                  // that the draft was trained on; empty: from the draft's config, else the default
  std::int64_t new_tokens = 64;             // decoded per prompt
  int depth = 5;                            // tokens drafted per target pass
  int limit = 0;                            // prompts; 0: all
  int threads = 1;
};

struct EvalReport {
  std::int64_t prompts = 0, skipped = 0;       // skipped: too long for the context, empty or invalid
  std::int64_t tokens = 0, target_passes = 0;  // emitted by speculative decoding, the prefill's token and pass included
  double acceptance_length = 0;                // tokens / target_passes; 1.0 = no help
  std::vector<double> acceptance;              // [depth]: share of passes that drafted position i in which it was accepted
  bool lossless = false;                       // every token equals the target's own greedy decoding
  std::int64_t mismatched_prompts = 0;
  double plain_seconds = 0, speculative_seconds = 0;
  std::string example_prompt, example_text;  // one decoded prompt, for people
};

using EvalCallback = std::function<void(std::int64_t done, std::int64_t total)>;

EvalReport run_eval(const EvalOptions& options, const EvalCallback& on_prompt, const std::atomic<bool>& stop);

}  // namespace draftflow
