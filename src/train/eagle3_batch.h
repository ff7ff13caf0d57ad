// SPDX-License-Identifier: Apache-2.0
//
// One forward pass's worth of samples: cut, shifted, right-padded with zeros. Stored samples are never changed. Values.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "draftflow/loader/prefetcher.h"

namespace draftflow {

// x moved left by one along dimension 1, the last place filled with zeros.
at::Tensor shift_left(const at::Tensor& x);

struct Eagle3Batch {
  at::Tensor input_ids;      // int64 [B, T]: token t + 1
  at::Tensor aux;            // [B, T, 3Ht]: the target's captured layers at token t
  at::Tensor target_hidden;  // [B, T, Ht]: what the head makes the distribution of token t + 2 from
  at::Tensor loss_mask;      // float [B, T] of token t, its last place in each sample 0
  std::int64_t tokens = 0;   // before padding, failed samples left out
  std::int64_t samples = 0;  // failed ones left out

  bool empty() const { return samples == 0; }
};

// Samples that failed take no row: fully masked, they would add zero to every sum. `max_length` (tokens) cuts the rest.
Eagle3Batch make_eagle3_batch(const std::vector<const LoadedSample*>& samples, std::int64_t max_length, c10::ScalarType dtype);

}  // namespace draftflow
