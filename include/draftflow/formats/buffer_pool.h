// SPDX-License-Identifier: Apache-2.0
//
// BufferPool: memory for tensors that come and go. The first touch of fresh pages costs more than the copy into them, so
// large buffers are kept, on huge pages where the kernel has them, and given out again. A buffer may outlive its pool.
// Thread-safe.
//
//   BufferPool pool(256 << 20);
//   auto [tensor, bytes] = pool.allocate(DType::kBFloat16, {192, 4096});
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "draftflow/formats/tensor.h"

namespace draftflow {

class BufferPool {
 public:
  explicit BufferPool(std::uint64_t max_idle_bytes);  // what it keeps for later, at most

  // As Tensor::allocate: uninitialised, 64-byte aligned. Exhausted when there is no memory.
  std::pair<Tensor, std::span<std::byte>> allocate(DType dtype, std::vector<std::int64_t> shape);

  std::uint64_t idle_bytes() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace draftflow
