// SPDX-License-Identifier: Apache-2.0
#include "draftflow/train/evaluate.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <chrono>

#include "draftflow/base/error.h"
#include "draftflow/model/capture_layers.h"
#include "draftflow/model/compute.h"
#include "draftflow/model/prompts.h"
#include "train/speculative.h"

namespace draftflow {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check_pair(const Llama& target, const Eagle3Draft& draft, const EvalOptions& options) {
  const auto wide = [](std::int64_t tokens, std::int64_t width) {
    return fmt::format("{} tokens and width {}", tokens, width);
  };
  if (draft.config().vocab_size != target.config().vocab_size ||
      draft.config().target_hidden_size != target.config().hidden_size) {
    throw InvalidArgument(fmt::format("draft {} is for a target of {}; target {} has {}", options.draft.string(),
                                      wide(draft.config().vocab_size, draft.config().target_hidden_size),
                                      options.target.string(), wide(target.config().vocab_size, target.config().hidden_size)));
  }
  if (options.depth < 1 || options.new_tokens < 1 || options.threads < 1 || options.limit < 0) {
    throw InvalidArgument(fmt::format("depth {}, new_tokens {} and threads {} must be 1 or more, limit {} 0 or more",
                                      options.depth, options.new_tokens, options.threads, options.limit));
  }
}

std::vector<int> layers_of(const EvalOptions& options, const Eagle3Draft& draft, const Llama& target) {
  if (!options.layers.empty()) return options.layers;
  if (!draft.config().capture_layers.empty()) return draft.config().capture_layers;
  return default_capture_layers(static_cast<int>(target.config().num_hidden_layers));
}

void add(EvalReport& report, std::vector<std::int64_t>& accepted, std::vector<std::int64_t>& drafted, const Decoded& plain,
         const Decoded& fast) {
  ++report.prompts;
  report.tokens += static_cast<std::int64_t>(fast.tokens.size());
  report.target_passes += fast.target_passes;
  if (fast.tokens != plain.tokens) ++report.mismatched_prompts;
  for (std::size_t i = 0; i < drafted.size(); ++i) {
    drafted[i] += fast.drafted[i];
    accepted[i] += fast.accepted[i];
  }
}

}  // namespace

EvalReport run_eval(const EvalOptions& options, const EvalCallback& on_prompt, const std::atomic<bool>& stop) {
  set_up_compute(std::max(options.threads, 1));
  const Llama target = Llama::load(ModelFolder(options.target), at::kFloat);
  const Tokenizer tokenizer(options.tokenizer.empty() ? options.target / "tokenizer.model" : options.tokenizer);
  const Eagle3Draft draft = Eagle3Draft::load(options.draft, target.embedding(), at::kFloat);
  check_pair(target, draft, options);
  const DecodeOptions decode{
      .new_tokens = options.new_tokens, .depth = options.depth, .layers = layers_of(options, draft, target)};
  const std::int64_t room = target.config().max_position_embeddings - positions_needed(0, decode);
  auto prompts = read_prompts(options.prompts, tokenizer, room, target.config().vocab_size);
  if (options.limit > 0 && prompts.size() > static_cast<std::size_t>(options.limit)) {
    prompts.resize(static_cast<std::size_t>(options.limit));
  }
  EvalReport report;
  std::vector<std::int64_t> accepted(static_cast<std::size_t>(options.depth)), drafted(accepted.size());
  for (std::size_t i = 0; i < prompts.size() && !stop.load(); ++i) {
    const Prompt& prompt = prompts[i];
    if (prompt.error) {
      ++report.skipped;
    } else {
      auto start = Clock::now();
      const Decoded plain = decode_plain(target, prompt.input_ids, decode);
      report.plain_seconds += seconds_since(start);
      start = Clock::now();
      const Decoded fast = decode_speculative(target, draft, prompt.input_ids, decode);
      report.speculative_seconds += seconds_since(start);
      if (report.prompts == 0) {
        report.example_prompt = tokenizer.decode(prompt.input_ids);
        report.example_text = tokenizer.decode(fast.tokens);
      }
      add(report, accepted, drafted, plain, fast);
    }
    if (on_prompt) on_prompt(static_cast<std::int64_t>(i) + 1, static_cast<std::int64_t>(prompts.size()));
  }
  if (report.prompts == 0 && !stop.load()) {
    throw InvalidArgument(fmt::format("{} holds no prompt that can be decoded: {}", options.prompts.string(),
                                      prompts.front().error.value_or("")));
  }
  report.lossless = report.prompts > 0 && report.mismatched_prompts == 0;
  if (report.target_passes > 0) {
    report.acceptance_length = static_cast<double>(report.tokens) / static_cast<double>(report.target_passes);
  }
  for (std::size_t i = 0; i < drafted.size(); ++i) {
    report.acceptance.push_back(drafted[i] == 0 ? 0 : static_cast<double>(accepted[i]) / static_cast<double>(drafted[i]));
  }
  return report;
}

}  // namespace draftflow
