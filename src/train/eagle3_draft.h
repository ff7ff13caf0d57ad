// SPDX-License-Identifier: Apache-2.0
//
// The EAGLE-3 draft: one decoder layer over [embedding of the next token, state], the state being the target's captured
// layers at first and the draft's own output afterwards. Formulas: docs/training.md. Owns its weights; the embedding is
// the target's, frozen. Not thread-safe while it trains.
//
// Unrolled training over whole sequences:           Decoding one sequence:
//   UnrollCache cache = draft.start_unroll(B, T, L);   KvCache cache = draft.make_cache(capacity);
//   g = draft.project(aux);                            y = draft.decode(draft.project(aux), e, position, cache);
//   y = draft.step(g, draft.embed(ids), cache);        logits = draft.logits(y);
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "draftflow/model/attention.h"
#include "train/draft_config.h"
#include "train/optimizer.h"
#include "train/vocab_map.h"

namespace draftflow {

// Keys and values of each unrolled step, [B, kv heads, T, head_dim]; the step's number is how many there are.
struct UnrollCache {
  std::vector<at::Tensor> keys, values;
  RopeTables rope;  // [T + L, head_dim]
  at::Tensor mask;  // [T, T]
};

class Eagle3Draft {
 public:
  // Seeded normal weights of standard deviation 1 / sqrt(inputs). The head starts as the target's rows of the draft
  // vocabulary where the widths agree. embedding, head: the target's [V, H].
  static Eagle3Draft random(const DraftConfig& config, const VocabMap& map, const at::Tensor& embedding, const at::Tensor& head,
                            c10::ScalarType dtype, std::uint64_t seed);
  // A folder in Hugging Face layout. InvalidArgument, naming the tensor, for shapes that contradict its config.json and for
  // t2d and d2t that contradict each other. `embedding` serves a folder without embed_tokens.weight.
  static Eagle3Draft load(const std::filesystem::path& folder, const at::Tensor& embedding, c10::ScalarType dtype);

  // Writes the folder whole: into a temporary one beside it, then renamed; one already there is replaced.
  void save(const std::filesystem::path& folder) const;

  const DraftConfig& config() const { return config_; }
  NamedTensors parameters() const;                  // trainable, Hugging Face names
  const at::Tensor& used() const { return used_; }  // int64 [D]: target id of each draft id
  const at::Tensor& t2d() const { return t2d_; }    // bool [V]

  at::Tensor project(const at::Tensor& aux) const;  // [B, T, 3Ht] -> [B, T, H]
  at::Tensor embed(const at::Tensor& ids) const;    // int64 [B, T] -> [B, T, H]
  at::Tensor logits(const at::Tensor& y) const;     // [B, T, H] -> [B, T, D]

  UnrollCache start_unroll(std::int64_t length, int steps) const;
  // Step i of the unroll at positions t + i: query t sees step 0's keys 0..t and position t's own of each later step.
  at::Tensor step(const at::Tensor& g, const at::Tensor& e, UnrollCache& cache) const;

  KvCache make_cache(std::int64_t capacity) const;
  // T tokens of one sequence at positions start.., [1, T, H]; replaces what the cache held there.
  at::Tensor decode(const at::Tensor& g, const at::Tensor& e, std::int64_t start, KvCache& cache) const;

 private:
  struct Weights {
    at::Tensor fc, input_norm, hidden_norm, q, k, v, o, post_norm, gate, up, down, norm, head;
  };
  template <class Visit>
  static void visit(const DraftConfig& config, Weights& weights, Visit visit);
  at::Tensor normed_input(const at::Tensor& g, const at::Tensor& e) const;
  at::Tensor finish(const at::Tensor& g, const at::Tensor& attention) const;
  void set_vocabulary(const at::Tensor& used);

  DraftConfig config_;
  Weights weights_;
  at::Tensor embedding_, used_, t2d_;
  RopeTables decode_rope_;
};

}  // namespace draftflow
