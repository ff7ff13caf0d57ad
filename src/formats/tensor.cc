// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr std::uint64_t kMaxTensorBytes = 1ULL << 53;  // exact in a double, and so in every JSON reader

}  // namespace

Tensor Tensor::copy_of(DType dtype, std::vector<std::int64_t> shape, std::span<const std::byte> bytes) {
  const std::uint64_t needed = tensor_bytes(dtype, shape);
  if (needed != bytes.size()) {
    throw InvalidArgument(fmt::format("a {} tensor of shape {} has {} bytes: {} were given", dtype_name(dtype),
                                      shape_text(shape), needed, bytes.size()));
  }
  auto [tensor, out] = allocate(dtype, std::move(shape));
  if (!bytes.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
  return tensor;
}

std::pair<Tensor, std::span<std::byte>> Tensor::allocate(DType dtype, std::vector<std::int64_t> shape) {
  const std::uint64_t bytes = tensor_bytes(dtype, shape);
  // Never zero bytes, so that even an empty tensor has an address to hand to a library.
  void* memory = ::operator new(std::max<std::uint64_t>(bytes, 1), kAlignment, std::nothrow);
  if (memory == nullptr) {
    throw Exhausted(fmt::format("no memory for a {} tensor of shape {}: {} asked; free some or use smaller tensors",
                                dtype_name(dtype), shape_text(shape), human_bytes(bytes)));
  }
  std::shared_ptr<void> owner(memory, [](void* pointer) { ::operator delete(pointer, kAlignment); });
  const std::span<std::byte> writable(static_cast<std::byte*>(memory), bytes);
  return {Tensor{dtype, std::move(shape), writable, std::move(owner)}, writable};
}

const Tensor* find_tensor(const TensorMap& tensors, std::string_view name) {
  const auto at = std::find_if(tensors.begin(), tensors.end(), [&](const auto& item) { return item.first == name; });
  return at == tensors.end() ? nullptr : &at->second;
}

FeatureSpec spec_from_tensor(const std::string& name, const Tensor& tensor) {
  FeatureSpec spec;
  spec.name = name;
  spec.shape = tensor.shape;
  spec.dtype = tensor.dtype;
  return spec;
}

std::string shape_text(std::span<const std::int64_t> shape) {
  constexpr std::size_t most = 16;  // a hostile header may claim a million dimensions
  if (shape.size() <= most) return fmt::format("[{}]", fmt::join(shape, ", "));
  return fmt::format("[{}, ... {} dimensions]", fmt::join(shape.first(most), ", "), shape.size());
}

std::uint64_t tensor_bytes(DType dtype, std::span<const std::int64_t> shape) {
  std::uint64_t bytes = dtype_bytes(dtype);
  bool overflow = false;
  for (const std::int64_t extent : shape) {
    if (extent < 0) throw InvalidArgument(fmt::format("shape {} has a negative extent {}", shape_text(shape), extent));
    overflow |= __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes);
  }
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  if (overflow || bytes > kMaxTensorBytes) {
    throw InvalidArgument(fmt::format("a {} tensor of shape {} passes the {} bytes that one tensor may have", dtype_name(dtype),
                                      shape_text(shape), kMaxTensorBytes));
  }
  return bytes;
}

void detail::throw_element_size(const Tensor& tensor, std::size_t asked) {
  throw InvalidArgument(fmt::format("a {} tensor of shape {} has elements of {} bytes: it cannot be read as elements of {}",
                                    dtype_name(tensor.dtype), shape_text(tensor.shape), dtype_bytes(tensor.dtype), asked));
}

}  // namespace draftflow
