// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/tensor.h"

#include <gtest/gtest.h>

#include <array>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

TEST(Tensor, CopyOfKeepsValuesAndOwnsThem) {
  std::array<std::int64_t, 3> values{1, -2, 3};
  const Tensor tensor = Tensor::copy_of(DType::kInt64, {3}, std::as_bytes(std::span(values)));
  values.fill(0);
  EXPECT_EQ(tensor.as<std::int64_t>()[1], -2);
  const Tensor shared = tensor;
  EXPECT_EQ(shared.bytes.data(), tensor.bytes.data());
}

TEST(Tensor, CopyOfRefusesTheWrongNumberOfBytes) {
  const std::array<std::byte, 9> bytes{};
  try {
    Tensor::copy_of(DType::kFloat32, {2}, bytes);
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "a float32 tensor of shape [2] has 8 bytes: 9 were given");
  }
}

TEST(Tensor, AllocateIsAlignedAndWritable) {
  for (const std::int64_t extent : {0, 1, 63, 64, 1000}) {
    auto [tensor, out] = Tensor::allocate(DType::kInt8, {extent});
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % 64, 0u);
    ASSERT_EQ(out.size(), static_cast<std::size_t>(extent));
    for (std::byte& byte : out) byte = std::byte{7};
    for (const std::int8_t value : tensor.as<std::int8_t>()) EXPECT_EQ(value, 7);
  }
}

TEST(Tensor, AllocateMoreThanThereIsIsExhausted) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer ends the program instead of returning null";
#endif
  EXPECT_THROW(Tensor::allocate(DType::kUInt8, {std::int64_t{1} << 52}), Exhausted);
}

TEST(Tensor, AsRefusesAnotherElementSize) {
  const auto [tensor, out] = Tensor::allocate(DType::kBFloat16, {4});
  EXPECT_EQ(tensor.as<std::uint16_t>().size(), 4u);
  EXPECT_THROW(tensor.as<float>(), InvalidArgument);
}

TEST(Tensor, BytesOfAShape) {
  EXPECT_EQ(tensor_bytes(DType::kInt64, std::vector<std::int64_t>{}), 8u);
  EXPECT_EQ(tensor_bytes(DType::kBFloat16, std::vector<std::int64_t>{1, 192, 64}), 24576u);
  EXPECT_EQ(tensor_bytes(DType::kUInt8, std::vector<std::int64_t>{std::int64_t{1} << 53}), 1ULL << 53);
  EXPECT_EQ(tensor_bytes(DType::kInt64, std::vector<std::int64_t>{INT64_MAX, INT64_MAX, 0}), 0u);
}

TEST(Tensor, BytesOfAnImpossibleShapeAreRefused) {
  using Shape = std::vector<std::int64_t>;
  EXPECT_THROW(tensor_bytes(DType::kUInt8, Shape{-1}), InvalidArgument);
  EXPECT_THROW(tensor_bytes(DType::kUInt8, Shape{0, -1}), InvalidArgument);
  EXPECT_THROW(tensor_bytes(DType::kUInt8, (Shape{(std::int64_t{1} << 53) + 1})), InvalidArgument);
  EXPECT_THROW(tensor_bytes(DType::kInt64, (Shape{std::int64_t{1} << 61})), InvalidArgument);  // 2^64 wraps to 0
  EXPECT_THROW(tensor_bytes(DType::kUInt8, (Shape{std::int64_t{1} << 32, std::int64_t{1} << 32})), InvalidArgument);
}

TEST(Tensor, ShapeTextIsBounded) {
  EXPECT_EQ(shape_text(std::vector<std::int64_t>{}), "[]");
  EXPECT_EQ(shape_text(std::vector<std::int64_t>{1, 192, 64}), "[1, 192, 64]");
  EXPECT_LT(shape_text(std::vector<std::int64_t>(1000, 1)).size(), 100u);
}

TEST(Tensor, SpecDescribesIt) {
  const FeatureSpec spec = spec_from_tensor("x", Tensor::allocate(DType::kFloat16, {2, 3}).first);
  EXPECT_EQ(spec.name, "x");
  EXPECT_EQ(spec.dtype, DType::kFloat16);
  EXPECT_EQ(spec.shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_TRUE(spec.required);
}

TEST(Tensor, FindByName) {
  const TensorMap tensors{{"a", Tensor::allocate(DType::kInt8, {1}).first}};
  EXPECT_EQ(find_tensor(tensors, "a"), &tensors[0].second);
  EXPECT_EQ(find_tensor(tensors, "b"), nullptr);
}

}  // namespace
}  // namespace draftflow
