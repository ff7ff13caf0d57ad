// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/attention.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

namespace draftflow {

at::Tensor causal_mask(std::int64_t start, std::int64_t queries, std::int64_t keys, const at::TensorOptions& options) {
  const at::Tensor positions = at::arange(start, start + queries, at::kLong).unsqueeze(1);
  const at::Tensor future = positions.lt(at::arange(keys, at::kLong).unsqueeze(0));
  return at::zeros({queries, keys}, options).masked_fill_(future, -std::numeric_limits<double>::infinity());
}

at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask) {
  const std::int64_t b = q.size(0), nh = q.size(1), t = q.size(2), d = q.size(3), nk = k.size(1), s = k.size(2);
  const std::int64_t group = nh / nk;
  // The queries that share a kv head become rows of one product; scale, product and mask take one pass over the scores.
  const at::Tensor scores =
      at::baddbmm(mask.repeat({group, 1}).unsqueeze(0), q.reshape({b * nk, group * t, d}),
                  k.reshape({b * nk, s, d}).transpose(1, 2), 1.0, 1.0 / std::sqrt(static_cast<double>(d)));
  const auto wide = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor weights = at::softmax(scores, -1, wide).to(q.scalar_type());
  return at::bmm(weights, v.reshape({b * nk, s, d})).view({b, nh, t, d}).transpose(1, 2).reshape({b, t, nh * d});
}

KvCache make_kv_cache(std::int64_t layers, std::int64_t kv_heads, std::int64_t capacity, std::int64_t head_dim,
                      const at::TensorOptions& options) {
  KvCache cache;
  cache.capacity = capacity;
  for (std::int64_t i = 0; i < layers; ++i) {
    cache.keys.push_back(at::zeros({1, kv_heads, capacity, head_dim}, options));
    cache.values.push_back(at::zeros({1, kv_heads, capacity, head_dim}, options));
  }
  return cache;
}

at::Tensor split_heads(const at::Tensor& x, std::int64_t head_dim) {
  return x.view({x.size(0), x.size(1), -1, head_dim}).transpose(1, 2);
}

}  // namespace draftflow
