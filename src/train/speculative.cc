// SPDX-License-Identifier: Apache-2.0
#include "train/speculative.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

namespace draftflow {
namespace {

at::Tensor row_of(const std::vector<std::int64_t>& ids) {
  return at::tensor(at::ArrayRef<std::int64_t>(ids), at::kLong).unsqueeze(0);
}

// The target's side of both ways to decode: what has been emitted, and one pass at a time over depth + 1 rows.
class Verifier {
 public:
  Verifier(const Llama& target, const std::vector<std::int64_t>& prompt, const DecodeOptions& options)
      : target_(target),
        options_(options),
        prompt_length_(static_cast<std::int64_t>(prompt.size())),
        sequence_(prompt),
        cache_(target.make_cache(positions_needed(prompt_length_, options))) {
    const Llama::Output out = target_.forward_cached(row_of(prompt), 0, cache_, options_.layers);
    features_ = at::cat(out.captured, -1);
    processed_ = prompt_length_;
    ++result_.target_passes;
    emit(target_.logits(out.last_hidden.narrow(1, prompt_length_ - 1, 1)).argmax(-1).item<std::int64_t>());
  }

  bool done() const { return done_; }
  const std::vector<std::int64_t>& sequence() const { return sequence_; }
  std::int64_t processed() const { return processed_; }     // tokens whose features are known
  const at::Tensor& features() const { return features_; }  // [1, n, 3H] of the last pass's processed tokens
  Decoded& result() { return result_; }

  // Verifies the drafted continuation of the sequence and emits what the target says: the drafted tokens it agrees with,
  // and one of its own. Returns how many it agreed with.
  std::int64_t pass(const std::vector<std::int64_t>& drafted) {
    std::vector<std::int64_t> rows{sequence_.back()};
    rows.insert(rows.end(), drafted.begin(), drafted.end());
    rows.resize(static_cast<std::size_t>(options_.depth) + 1, 0);
    const Llama::Output out = target_.forward_cached(row_of(rows), processed_, cache_, options_.layers);
    const at::Tensor said = target_.logits(out.last_hidden).argmax(-1)[0].contiguous();
    const std::int64_t* choice = said.data_ptr<std::int64_t>();
    ++result_.target_passes;
    std::size_t agreed = 0;
    while (agreed < drafted.size() && drafted[agreed] == choice[agreed]) ++agreed;
    const auto kept = static_cast<std::int64_t>(agreed) + 1;
    features_ = at::cat(out.captured, -1).narrow(1, 0, kept);
    processed_ += kept;
    for (std::int64_t i = 0; i < kept && !done_; ++i) emit(choice[i]);
    return static_cast<std::int64_t>(agreed);
  }

 private:
  void emit(std::int64_t token) {
    sequence_.push_back(token);
    result_.tokens.push_back(token);
    const auto& eos = target_.config().eos_token_ids;
    done_ = static_cast<std::int64_t>(result_.tokens.size()) >= options_.new_tokens ||
            std::find(eos.begin(), eos.end(), token) != eos.end();
  }

  const Llama& target_;
  const DecodeOptions& options_;
  const std::int64_t prompt_length_;
  std::vector<std::int64_t> sequence_;
  KvCache cache_;
  at::Tensor features_;
  std::int64_t processed_ = 0;
  bool done_ = false;
  Decoded result_;
};

// The draft's side: takes in what the target has processed, then drafts a chain.
class Drafter {
 public:
  Drafter(const Eagle3Draft& draft, std::int64_t capacity) : draft_(draft), cache_(draft.make_cache(capacity)) {}

  std::vector<std::int64_t> draft(const Verifier& verifier, int depth) {
    // Position t takes the features of token t and the embedding of token t + 1.
    const auto& sequence = verifier.sequence();
    const auto first = sequence.end() - verifier.features().size(1);
    const at::Tensor next = row_of(std::vector<std::int64_t>(first, sequence.end()));
    at::Tensor y = draft_.decode(draft_.project(verifier.features()), draft_.embed(next), position_, cache_);
    position_ = verifier.processed();
    std::vector<std::int64_t> chain;
    for (int i = 0; i < depth; ++i) {
      if (i > 0) {
        const at::Tensor e = draft_.embed(row_of({chain.back()}));
        y = draft_.decode(y.narrow(1, y.size(1) - 1, 1), e, position_ - 1 + i, cache_);
      }
      const std::int64_t id = draft_.logits(y.narrow(1, y.size(1) - 1, 1)).argmax(-1).item<std::int64_t>();
      chain.push_back(draft_.used()[id].item<std::int64_t>());
    }
    return chain;
  }

 private:
  const Eagle3Draft& draft_;
  KvCache cache_;
  std::int64_t position_ = 0;  // positions drafted from the target's own features
};

}  // namespace

std::int64_t positions_needed(std::int64_t prompt_tokens, const DecodeOptions& options) {
  return prompt_tokens + options.new_tokens + options.depth + 1;
}

Decoded decode_plain(const Llama& target, const std::vector<std::int64_t>& prompt, const DecodeOptions& options) {
  const at::NoGradGuard no_grad;
  Verifier verifier(target, prompt, options);
  while (!verifier.done()) verifier.pass({});
  return std::move(verifier.result());
}

Decoded decode_speculative(const Llama& target, const Eagle3Draft& draft, const std::vector<std::int64_t>& prompt,
                           const DecodeOptions& options) {
  const at::NoGradGuard no_grad;
  const auto depth = static_cast<std::size_t>(options.depth);
  Verifier verifier(target, prompt, options);
  Drafter drafter(draft, positions_needed(static_cast<std::int64_t>(prompt.size()), options));
  verifier.result().drafted.resize(depth);
  verifier.result().accepted.resize(depth);
  while (!verifier.done()) {
    const std::int64_t agreed = verifier.pass(drafter.draft(verifier, options.depth));
    for (std::size_t i = 0; i < depth; ++i) {
      ++verifier.result().drafted[i];
      if (static_cast<std::int64_t>(i) < agreed) ++verifier.result().accepted[i];
    }
  }
  return std::move(verifier.result());
}

}  // namespace draftflow
