// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/buffer_pool.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace draftflow {
namespace {

constexpr std::int64_t kLarge = 3 << 20;

TEST(BufferPool, ALargeBufferIsGivenOutAgain) {
  BufferPool pool(64 << 20);
  const std::byte* address = nullptr;
  {
    auto [tensor, bytes] = pool.allocate(DType::kUInt8, {kLarge});
    address = bytes.data();
    EXPECT_EQ(bytes.size(), static_cast<std::size_t>(kLarge));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(address) % 64, 0u);
    std::fill(bytes.begin(), bytes.end(), std::byte{7});
    EXPECT_EQ(pool.idle_bytes(), 0u);
  }
  EXPECT_GE(pool.idle_bytes(), static_cast<std::uint64_t>(kLarge));
  auto [again, bytes] = pool.allocate(DType::kFloat32, {kLarge / 4});
  EXPECT_EQ(bytes.data(), address);
  auto [other, more] = pool.allocate(DType::kUInt8, {kLarge});
  EXPECT_NE(more.data(), address);
}

TEST(BufferPool, KeepsNoMoreThanItMay) {
  BufferPool pool(4 << 20);
  { const auto a = pool.allocate(DType::kUInt8, {kLarge}), b = pool.allocate(DType::kUInt8, {kLarge}); }
  EXPECT_LE(pool.idle_bytes(), 4u << 20);
  EXPECT_GT(pool.idle_bytes(), 0u);
}

TEST(BufferPool, ATensorOutlivesThePool) {
  Tensor kept;
  {
    BufferPool pool(64 << 20);
    auto [tensor, bytes] = pool.allocate(DType::kUInt8, {kLarge});
    std::fill(bytes.begin(), bytes.end(), std::byte{7});
    kept = tensor;
  }
  EXPECT_EQ(std::count(kept.bytes.begin(), kept.bytes.end(), std::byte{7}), kLarge);
}

TEST(BufferPool, SmallOnesAreOrdinaryTensors) {
  BufferPool pool(64 << 20);
  { const auto tensor = pool.allocate(DType::kUInt8, {16}); }
  EXPECT_EQ(pool.idle_bytes(), 0u);
}

}  // namespace
}  // namespace draftflow
