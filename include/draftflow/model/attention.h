// SPDX-License-Identifier: Apache-2.0
//
// Grouped-query attention over plain matrices, shared by the target and the draft. Pure functions; thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace draftflow {

// [T, S] additive mask: query t stands at position start + t and sees keys 0..start + t; the rest get -infinity.
at::Tensor causal_mask(std::int64_t start, std::int64_t queries, std::int64_t keys, const at::TensorOptions& options);

// softmax(q k^T / sqrt(d) + mask) v with the softmax in float32 at least. q [B, nh, T, d]; k, v [B, nk, S, d]; query head h
// reads kv head h / (nh / nk). Returns [B, T, nh * d].
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask);

// Keys and values of one sequence at their full length from the start, so that attention always reduces over the same
// number of columns: what lies past a query is masked, and a result does not depend on how it was reached.
struct KvCache {
  std::vector<at::Tensor> keys, values;  // per layer [1, kv heads, capacity, head_dim]
  std::int64_t capacity = 0;             // positions
};

KvCache make_kv_cache(std::int64_t layers, std::int64_t kv_heads, std::int64_t capacity, std::int64_t head_dim,
                      const at::TensorOptions& options);

// [B, T, n * d] -> [B, n, T, d]
at::Tensor split_heads(const at::Tensor& x, std::int64_t head_dim);

}  // namespace draftflow
