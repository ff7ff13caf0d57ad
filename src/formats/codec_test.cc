// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

using Shape = std::vector<std::int64_t>;

constexpr Codec kAll[] = {Codec::kRaw, Codec::kFp8E4M3, Codec::kInt8, Codec::kZstd};

Tensor zeros(DType dtype, Shape shape) {
  auto [tensor, out] = Tensor::allocate(dtype, std::move(shape));
  std::fill(out.begin(), out.end(), std::byte{0});
  return tensor;
}

TEST(Codec, NamesGoBothWays) {
  for (const Codec codec : kAll) EXPECT_EQ(codec_from_name(codec_name(codec)), codec);
  EXPECT_EQ(codec_name(Codec::kFp8E4M3), "fp8_e4m3");
  try {
    codec_from_name("fp8");
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "'fp8' is no codec: raw, fp8_e4m3, int8 and zstd are known");
  }
}

TEST(Codec, RawSharesTheBytes) {
  const Tensor tensor = zeros(DType::kFloat64, {3, 4});
  const EncodedTensor packed = encode(Codec::kRaw, "x", tensor);
  EXPECT_EQ(packed.codec, Codec::kRaw);
  EXPECT_EQ(packed_bytes(packed), 96u);
  EXPECT_EQ(decode(Codec::kRaw, "x", DType::kFloat64, {3, 4}, packed.parts).bytes.data(), tensor.bytes.data());
}

TEST(Codec, RawOfAnotherKindIsCorrupt) {
  const TensorMap parts{{"x", zeros(DType::kInt32, {3, 4})}};
  EXPECT_THROW(decode(Codec::kRaw, "x", DType::kFloat32, {3, 4}, parts), Corrupt);
  EXPECT_THROW(decode(Codec::kRaw, "x", DType::kInt32, {4, 3}, parts), Corrupt);
  EXPECT_THROW(decode(Codec::kRaw, "y", DType::kInt32, {3, 4}, parts), Corrupt);
  Tensor cut = zeros(DType::kInt32, {3, 4});
  cut.bytes = cut.bytes.first(47);
  EXPECT_THROW(decode(Codec::kRaw, "x", DType::kInt32, {3, 4}, {{"x", cut}}), Corrupt);
}

TEST(Codec, LossyLeavesRawWhatItDoesNotShrink) {
  for (const Codec codec : {Codec::kFp8E4M3, Codec::kInt8}) {
    for (const DType dtype : {DType::kBool, DType::kUInt8, DType::kInt8, DType::kInt16, DType::kInt32, DType::kInt64}) {
      EXPECT_EQ(encode(codec, "x", zeros(dtype, {2, 64})).codec, Codec::kRaw) << dtype_name(dtype);
      EXPECT_EQ(error_bound(codec, dtype, 100), 0);
    }
    for (const Shape& shape : {Shape{}, Shape{0}, Shape{7, 0}, Shape{0, 64}, Shape{std::int64_t{1} << 40, 0}, Shape{9, 4}}) {
      const Tensor tensor = zeros(DType::kBFloat16, shape);
      const EncodedTensor packed = encode(codec, "x", tensor);
      EXPECT_EQ(packed.codec, Codec::kRaw) << shape_text(shape);
      EXPECT_EQ(decode(packed.codec, "x", DType::kBFloat16, shape, packed.parts).shape, shape);
      EXPECT_THROW(decode(codec, "x", DType::kBFloat16, shape, packed.parts), Corrupt);
    }
    EXPECT_EQ(encode(codec, "x", zeros(DType::kBFloat16, {9, 5})).codec, codec);
    EXPECT_EQ(encode(codec, "x", zeros(DType::kFloat32, {9, 2})).codec, codec);
    EXPECT_EQ(encode(codec, "x", zeros(DType::kFloat32, {9, 1})).codec, Codec::kRaw);
  }
}

TEST(Codec, LossyRefusesFloat64) {
  try {
    encode(Codec::kInt8, "hidden", zeros(DType::kFloat64, {2, 64}));
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(),
                 "tensor 'hidden' is float64: codec int8 packs bfloat16, float16 and float32; convert it, or store it with raw "
                 "or zstd");
  }
  EXPECT_THROW(relative_error_bound(Codec::kFp8E4M3, DType::kFloat64), InvalidArgument);
}

TEST(Codec, PackedIsNeverMoreThanTheTensor) {
  for (const Codec codec : kAll) {
    for (const std::int64_t width : {0, 1, 2, 3, 4, 5, 6, 64, 1000}) {
      for (const DType dtype : {DType::kBFloat16, DType::kFloat32, DType::kInt64}) {
        const Tensor tensor = zeros(dtype, {3, width});
        EXPECT_LE(packed_bytes(encode(codec, "x", tensor)), tensor.bytes.size()) << codec_name(codec) << " " << width;
      }
    }
  }
  EXPECT_EQ(packed_bytes(encode(Codec::kFp8E4M3, "x", zeros(DType::kBFloat16, {1, 10, 1000}))), 10'040u);
}

TEST(Codec, AnotherTensorsPartsAreLeftAlone) {
  const EncodedTensor a = encode(Codec::kInt8, "a", zeros(DType::kFloat32, {2, 8}));
  TensorMap file = a.parts;
  file.emplace_back("b", zeros(DType::kInt64, {1}));
  EXPECT_EQ(decode(Codec::kInt8, "a", DType::kFloat32, {2, 8}, file).shape, (Shape{2, 8}));
}

TEST(Codec, BoundsAreThoseOfTheDocument) {
  EXPECT_EQ(relative_error_bound(Codec::kRaw, DType::kFloat64), 0);
  EXPECT_EQ(relative_error_bound(Codec::kZstd, DType::kBFloat16), 0);
  EXPECT_NEAR(relative_error_bound(Codec::kInt8, DType::kFloat32), 0.003938, 1e-6);
  EXPECT_NEAR(relative_error_bound(Codec::kInt8, DType::kBFloat16), 0.007844, 1e-6);
  EXPECT_NEAR(relative_error_bound(Codec::kFp8E4M3, DType::kFloat16), 0.036204, 1e-6);
  EXPECT_NEAR(relative_error_bound(Codec::kFp8E4M3, DType::kBFloat16), 0.039622, 1e-6);
  EXPECT_EQ(error_bound(Codec::kInt8, DType::kBFloat16, 0), std::ldexp(1, -134) + std::ldexp(1, -145));
}

}  // namespace
}  // namespace draftflow
