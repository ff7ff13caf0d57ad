// SPDX-License-Identifier: Apache-2.0
//
// Samples of different lengths as one batch: [B, T, ...], padded on the right with zeros. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "draftflow/formats/buffer_pool.h"
#include "draftflow/formats/tensor.h"

namespace draftflow {

// The length T of a sample: of the last dimension of input_ids or, where there are none, of the first of its first tensor.
std::int64_t sample_length(const TensorMap& sample);

// Each tensor of the samples as one of the batch, in memory of the pool's. [T, ...] and [1, T, ...] become [B, max T, ...];
// what has no dimension of the sample's length must have one shape in all samples, and becomes [B, ...]. An empty sample (one
// that failed) is a row of zeros. All empty: no tensors. InvalidArgument, naming the tensor, for samples that do not fit
// together.
TensorMap pad_batch(const std::vector<const TensorMap*>& samples, BufferPool& pool);

}  // namespace draftflow
