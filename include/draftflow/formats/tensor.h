// SPDX-License-Identifier: Apache-2.0
//
// Tensor: named-dtype, row-major, contiguous bytes in host memory that never change once made; copies share the bytes.
// `owner` keeps them alive (a buffer, a mapping). Thread-safe for reading.
//
//   Tensor ids = Tensor::copy_of(DType::kInt64, {3}, std::as_bytes(std::span(values)));
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "draftflow/records/dtype.h"
#include "draftflow/records/sample_ref.h"

namespace draftflow {

struct Tensor {
  DType dtype = DType::kUInt8;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;  // product(shape) * dtype_bytes(dtype)
  std::shared_ptr<const void> owner;

  // Copies the bytes. InvalidArgument if their number does not fit shape and dtype.
  static Tensor copy_of(DType dtype, std::vector<std::int64_t> shape, std::span<const std::byte> bytes);
  // Uninitialised memory (64-byte aligned) plus the writable view to fill before anyone else sees the tensor.
  static std::pair<Tensor, std::span<std::byte>> allocate(DType dtype, std::vector<std::int64_t> shape);

  // The elements as T; InvalidArgument if T's size is not the element size.
  template <class T>
  std::span<const T> as() const;
};

// Tensors by name, in the order given; names are unique.
using TensorMap = std::vector<std::pair<std::string, Tensor>>;

const Tensor* find_tensor(const TensorMap& tensors, std::string_view name);  // nullptr if absent
FeatureSpec spec_from_tensor(const std::string& name, const Tensor& tensor);
std::string shape_text(std::span<const std::int64_t> shape);  // "[1, 192, 64]"

// product(shape) * dtype_bytes, or InvalidArgument if an extent is negative or the product passes 2^53.
std::uint64_t tensor_bytes(DType dtype, std::span<const std::int64_t> shape);

namespace detail {
[[noreturn]] void throw_element_size(const Tensor& tensor, std::size_t asked);
}

template <class T>
std::span<const T> Tensor::as() const {
  if (sizeof(T) != dtype_bytes(dtype)) detail::throw_element_size(*this, sizeof(T));
  return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
}

}  // namespace draftflow
