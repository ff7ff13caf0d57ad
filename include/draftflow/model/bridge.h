// SPDX-License-Identifier: Apache-2.0
//
// Between host tensors (formats/tensor.h) and libtorch's. Values; thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include "draftflow/formats/tensor.h"

namespace draftflow {

c10::ScalarType to_torch_dtype(DType dtype);
DType from_torch_dtype(c10::ScalarType dtype);  // InvalidArgument for a type that has no DType

// A view: shares the bytes and keeps their owner alive. Never write through it.
at::Tensor to_torch(const Tensor& tensor);

// A contiguous CPU tensor's bytes, shared (copied first if it is neither). Do not change the tensor afterwards.
Tensor from_torch(const at::Tensor& tensor);

}  // namespace draftflow
