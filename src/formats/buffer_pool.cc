// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/buffer_pool.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <map>
#include <mutex>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

constexpr std::uint64_t kPooledBytes = 512 << 10;  // the heap serves what is smaller
constexpr std::uint64_t kHugePageBytes = 2ULL << 20;
constexpr std::uint64_t kStepBytes = 256 << 10;  // sizes of about the same are one size

std::uint64_t pooled_size(std::uint64_t bytes) {
  const std::uint64_t step = bytes >= 2 * kHugePageBytes ? kHugePageBytes : kStepBytes;
  return (bytes + step - 1) / step * step;
}

// Aligned for huge pages: a mapping with room to spare, cut at both ends.
void* map(std::uint64_t bytes) {
  const std::uint64_t with_room = bytes + kHugePageBytes;
  void* memory = ::mmap(nullptr, with_room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  auto* begin = static_cast<std::byte*>(memory);
  const std::uint64_t skip = (kHugePageBytes - reinterpret_cast<std::uintptr_t>(begin) % kHugePageBytes) % kHugePageBytes;
  if (skip > 0) ::munmap(begin, skip);
  ::munmap(begin + skip + bytes, with_room - skip - bytes);
  ::madvise(begin + skip, bytes, MADV_HUGEPAGE);
  return begin + skip;
}

}  // namespace

struct BufferPool::State {
  explicit State(std::uint64_t most) : max_idle_bytes(most) {}
  ~State() {
    for (const auto& [size, memory] : idle) ::munmap(memory, size);
  }

  void* take(std::uint64_t size) {
    const std::lock_guard lock(mutex);
    const auto at = idle.find(size);
    if (at == idle.end()) return nullptr;
    void* memory = at->second;
    idle.erase(at);
    idle_bytes -= size;
    return memory;
  }

  void give_back(void* memory, std::uint64_t size) {
    {
      const std::lock_guard lock(mutex);
      if (idle_bytes + size <= max_idle_bytes) {
        idle.emplace(size, memory);
        idle_bytes += size;
        return;
      }
    }
    ::munmap(memory, size);
  }

  const std::uint64_t max_idle_bytes;
  std::mutex mutex;
  std::multimap<std::uint64_t, void*> idle;  // guarded by mutex, by size
  std::uint64_t idle_bytes = 0;              // guarded by mutex
};

BufferPool::BufferPool(std::uint64_t max_idle_bytes) : state_(std::make_shared<State>(max_idle_bytes)) {}

std::pair<Tensor, std::span<std::byte>> BufferPool::allocate(DType dtype, std::vector<std::int64_t> shape) {
  const std::uint64_t bytes = tensor_bytes(dtype, shape);
  if (bytes < kPooledBytes) return Tensor::allocate(dtype, std::move(shape));
  const std::uint64_t size = pooled_size(bytes);
  void* memory = state_->take(size);
  if (memory == nullptr) memory = map(size);
  if (memory == nullptr) {
    throw Exhausted(fmt::format("no memory for a {} tensor of shape {}: {} asked; free some or use smaller tensors",
                                dtype_name(dtype), shape_text(shape), human_bytes(bytes)));
  }
  std::shared_ptr<void> owner(memory, [state = state_, size](void* pointer) { state->give_back(pointer, size); });
  const std::span<std::byte> writable(static_cast<std::byte*>(memory), bytes);
  return {Tensor{dtype, std::move(shape), writable, std::move(owner)}, writable};
}

std::uint64_t BufferPool::idle_bytes() const {
  const std::lock_guard lock(state_->mutex);
  return state_->idle_bytes;
}

}  // namespace draftflow
