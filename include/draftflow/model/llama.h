// SPDX-License-Identifier: Apache-2.0
//
// Llama: the target. Loads a Hugging Face folder, runs prefill with chosen layers captured, decodes with a KV cache.
// Weights are constant after construction; forward is const and may run in several threads, each with its own KvCache.
//
//   const Llama target = Llama::load(ModelFolder("examples/target"), at::kFloat);
//   auto out = target.forward(ids, {1, 2, 3});               // ids: int64 [B, T]
//   at::Tensor next = target.logits(out.last_hidden);        // [B, T, V]
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "draftflow/formats/model_folder.h"
#include "draftflow/model/attention.h"
#include "draftflow/model/llama_config.h"

namespace draftflow {

// w * cast(x32 * rsqrt(mean(x32^2) + eps)): normalised in float32 at least, whatever the dtype of x.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

struct LlamaLayer {
  at::Tensor input_norm, q, k, v, o, post_norm, gate, up, down;
};

class Llama {
 public:
  struct Output {
    at::Tensor last_hidden;            // [B, T, H] after the final norm: what the head consumes
    std::vector<at::Tensor> captured;  // [B, T, H] each: outputs of the decoder layers asked for
  };

  // Checks every weight's shape against the config: InvalidArgument naming the tensor, found and expected. Weights of any
  // floating dtype are converted to `dtype`.
  static Llama load(const ModelFolder& folder, c10::ScalarType dtype);
  // Seeded normal weights (std 0.02, output projections scaled by depth), for training from nothing.
  static Llama random(const LlamaConfig& config, std::uint64_t seed);

  const LlamaConfig& config() const { return config_; }
  const at::Tensor& embedding() const { return embedding_; }           // [V, H]
  const at::Tensor& head() const { return head_; }                     // [V, H]; the embedding itself when tied
  std::vector<std::pair<std::string, at::Tensor>> parameters() const;  // Hugging Face names; a tied head is left out

  // ids int64 [B, T] on CPU, positions 0..T-1. InvalidArgument for a token or length out of range.
  Output forward(const at::Tensor& ids, const std::vector<int>& capture_layers) const;

  // The next T tokens of one sequence, ids int64 [1, T], at positions start..start+T-1; their keys and values replace
  // whatever the cache held there, so a rejected draft needs no clean-up.
  Output forward_cached(const at::Tensor& ids, std::int64_t start, KvCache& cache,
                        const std::vector<int>& capture_layers) const;
  KvCache make_cache(std::int64_t capacity) const;

  at::Tensor logits(const at::Tensor& last_hidden) const;

 private:
  Llama() = default;
  Output run(const at::Tensor& ids, std::int64_t start, KvCache* cache, const std::vector<int>& capture_layers) const;
  at::Tensor attention(const LlamaLayer& layer, const at::Tensor& x, std::int64_t start, KvCache* cache,
                       std::size_t index) const;
  void check_ids(const at::Tensor& ids, std::int64_t start, std::int64_t limit) const;

  LlamaConfig config_;
  at::Tensor embedding_, head_, final_norm_;
  std::vector<LlamaLayer> layers_;
  RopeTables rope_;
};

}  // namespace draftflow
