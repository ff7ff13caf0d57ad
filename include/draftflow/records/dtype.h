// SPDX-License-Identifier: Apache-2.0
//
// Element types of tensors, under their PyTorch names without "torch.". Values only; thread-safe.
#pragma once

#include <cstddef>
#include <string_view>

namespace draftflow {

enum class DType { kBool, kUInt8, kInt8, kInt16, kInt32, kInt64, kFloat16, kBFloat16, kFloat32, kFloat64 };

std::size_t dtype_bytes(DType dtype);          // bytes of one element
std::string_view dtype_name(DType dtype);      // "bfloat16"
DType dtype_from_name(std::string_view name);  // InvalidArgument, listing the known names

}  // namespace draftflow
