// SPDX-License-Identifier: Apache-2.0
//
// Rotary position embeddings with the scalings in common use: none, linear, dynamic NTK, llama3, yarn. Angles are computed
// in float64 and the tables rounded once, to the dtype asked for. Plain values; thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace draftflow {

enum class RopeKind { kDefault, kLinear, kDynamic, kLlama3, kYarn };

struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  double base = 10000.0;  // rope_theta
  std::int64_t head_dim = 0;
  std::int64_t max_position_embeddings = 0;                                      // positions
  double factor = 1.0;                                                           // s
  double original_max_position = 0;                                              // llama3, yarn
  double low_freq_factor = 1.0, high_freq_factor = 4.0;                          // llama3
  double beta_fast = 32.0, beta_slow = 1.0, mscale = 1.0, mscale_all_dim = 0.0;  // yarn
};

struct RopeTables {
  at::Tensor cos, sin;  // [length, head_dim], halves duplicated
};

// Inverse frequencies [head_dim / 2] and the factor on cos and sin. `scaled_length` (positions) matters to dynamic only:
// the base grows with max(scaled_length, max_position_embeddings).
std::pair<std::vector<double>, double> rope_frequencies(const RopeConfig& config, std::int64_t scaled_length);

RopeTables build_rope(const RopeConfig& config, std::int64_t length, std::int64_t scaled_length, c10::ScalarType dtype);

// Rotates x [..., T, head_dim] by tables whose rows are already the positions of x: [T, head_dim].
at::Tensor apply_rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

}  // namespace draftflow
