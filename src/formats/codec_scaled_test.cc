// SPDX-License-Identifier: Apache-2.0
#include "formats/codec_scaled.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Shape = std::vector<std::int64_t>;

constexpr Codec kLossy[] = {Codec::kFp8E4M3, Codec::kInt8};
constexpr DType kPacked[] = {DType::kBFloat16, DType::kFloat16, DType::kFloat32};

// The value of an element, by arithmetic and not by the bits that the codec uses.
double small_float(unsigned code, int mantissa, int exponent_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const unsigned fraction = code & ((1U << mantissa) - 1), exponent = code >> mantissa & ((1U << exponent_bits) - 1);
  const double magnitude = exponent == 0
                               ? std::ldexp(fraction, 1 - bias - mantissa)
                               : std::ldexp(fraction + (1U << mantissa), static_cast<int>(exponent) - bias - mantissa);
  return (code >> (mantissa + exponent_bits) & 1) != 0 ? -magnitude : magnitude;
}

double element(const Tensor& tensor, std::size_t at) {
  if (tensor.dtype == DType::kFloat32) return tensor.as<float>()[at];
  const unsigned bits = tensor.as<std::uint16_t>()[at];
  return tensor.dtype == DType::kBFloat16 ? small_float(bits, 7, 8) : small_float(bits, 10, 5);
}

Tensor floats(Shape shape, const std::vector<float>& values) {
  return Tensor::copy_of(DType::kFloat32, std::move(shape), std::as_bytes(std::span(values)));
}

Tensor halves(DType dtype, Shape shape, const std::vector<std::uint16_t>& bits) {
  return Tensor::copy_of(dtype, std::move(shape), std::as_bytes(std::span(bits)));
}

// Random finite elements of every magnitude between two exponents, or of any bits at all where `low` is not below `high`.
Tensor random_tensor(DType dtype, std::int64_t rows, std::int64_t width, Random& random, int low, int high) {
  const auto count = static_cast<std::size_t>(rows * width);
  const auto value = [&] {
    if (low >= high) {
      float any = NAN;
      while (!std::isfinite(any)) any = std::bit_cast<float>(static_cast<std::uint32_t>(random.next()));
      return any;
    }
    return static_cast<float>(random.normal() * std::ldexp(1, low + static_cast<int>(random.below(high - low))));
  };
  if (dtype == DType::kFloat32) {
    std::vector<float> values(count);
    for (float& item : values) item = value();
    return floats({rows, width}, values);
  }
  std::vector<std::uint16_t> bits(count);
  for (std::uint16_t& item : bits) {
    item = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value()) >> 16);
    if (dtype == DType::kFloat16) {
      item = static_cast<std::uint16_t>(low >= high ? random.next() : random.below(0x3C00) | (random.next() & 0x8000));
      if ((item & 0x7C00) == 0x7C00) item = static_cast<std::uint16_t>(item & 0x83FF);
    }
  }
  return halves(dtype, {rows, width}, bits);
}

// Decodes what encode made and holds every element against the documented bound.
void expect_within_bound(Codec codec, const Tensor& tensor) {
  const EncodedTensor packed = encode(codec, "x", tensor);
  ASSERT_EQ(packed.codec, codec);
  const Tensor again = decode(packed.codec, "x", tensor.dtype, tensor.shape, packed.parts);
  ASSERT_EQ(again.dtype, tensor.dtype);
  ASSERT_EQ(again.shape, tensor.shape);
  const auto width = static_cast<std::size_t>(tensor.shape.back());
  const std::size_t count = tensor.bytes.size() / dtype_bytes(tensor.dtype);
  for (std::size_t row = 0; row < count; row += width) {
    double largest = 0;
    for (std::size_t i = row; i < row + width; ++i) largest = std::max(largest, std::abs(element(tensor, i)));
    const double bound = error_bound(codec, tensor.dtype, largest);
    for (std::size_t i = row; i < row + width; ++i) {
      ASSERT_LE(std::abs(element(again, i) - element(tensor, i)), bound)
          << codec_name(codec) << " " << dtype_name(tensor.dtype) << " row " << row / width << " element " << i - row << ": "
          << element(tensor, i) << " became " << element(again, i) << ", largest " << largest;
    }
  }
}

TEST(CodecScaled, RandomDataStaysWithinTheBound) {
  for (const Codec codec : kLossy) {
    for (const DType dtype : kPacked) {
      for (std::uint64_t seed = 1; seed <= 5; ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        Random random(seed);
        expect_within_bound(codec, random_tensor(dtype, 40, 257, random, 0, 1));
        expect_within_bound(codec, random_tensor(dtype, 40, 257, random, -30, 10));
        expect_within_bound(codec, random_tensor(dtype, 300, 9, random, 0, 0));
        expect_within_bound(codec, random_tensor(dtype, 300, 9, random, -149, -110));
        expect_within_bound(codec, random_tensor(dtype, 300, 9, random, 100, 124));
      }
    }
  }
}

TEST(CodecScaled, AdversarialRowsStayWithinTheBound) {
  constexpr float most = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::denorm_min();
  std::vector<float> values;
  for (const float largest : {most, 1.0F, std::numeric_limits<float>::min(), 1000 * least, 449 * least, 200 * least, least}) {
    for (const float part : {1.0F, -1.0F, 0.5F, 0.03F, 1e-6F, 0.0F, -0.9999999F, 0.0019F}) values.push_back(largest * part);
  }
  for (int i = 0; i < 8; ++i) values.push_back(0);
  for (const float outlier : {1e30F, 1e-3F, 1e-3F, -1e-3F, 2e-3F, 0.0F, 1e-38F, 1e29F}) values.push_back(outlier);
  const auto rows = static_cast<std::int64_t>(values.size() / 8);
  for (const Codec codec : kLossy) {
    expect_within_bound(codec, floats({rows, 8}, values));
    // Every finite element of 16 bits, in rows of one magnitude and in rows of all.
    for (const auto& [dtype, finite] : {std::pair{DType::kBFloat16, 0x7F80U}, std::pair{DType::kFloat16, 0x7C00U}}) {
      std::vector<std::uint16_t> near, far;
      for (unsigned i = 0; i < finite; ++i) {
        near.push_back(static_cast<std::uint16_t>(i | (i % 2) << 15));
        far.push_back(static_cast<std::uint16_t>(i * 12289 % finite));
      }
      expect_within_bound(codec, halves(dtype, {finite / 8, 8}, near));
      expect_within_bound(codec, halves(dtype, {finite / 8, 8}, far));
    }
  }
}

TEST(CodecScaled, ZeroTokensComeBackAsZeros) {
  for (const Codec codec : kLossy) {
    const EncodedTensor packed = encode(codec, "x", floats({2, 5}, {0, 0, 0, 0, 0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(packed.parts[1].second.as<float>()[0], 0);
    for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(packed.parts[0].second.bytes[i], std::byte{0});
    const Tensor again = decode(codec, "x", DType::kFloat32, {2, 5}, packed.parts);
    for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(again.as<float>()[i], 0);
    EXPECT_EQ(again.as<float>()[9], 5);
  }
}

// With a largest element of 448 the scale is 1, and codes are values.
TEST(CodecScaled, Fp8RoundsToTheNearestCodeTiesToEven) {
  for (unsigned code = 0; code < 0x7E; ++code) {
    const double here = small_float(code, 3, 4), next = small_float(code + 1, 3, 4), middle = (here + next) / 2;
    const auto below = std::nextafter(static_cast<float>(middle), 0.0F),
               above = std::nextafter(static_cast<float>(middle), 1e9F);
    const EncodedTensor packed = encode(
        Codec::kFp8E4M3, "x", floats({6}, {448, static_cast<float>(here), below, static_cast<float>(middle), above, -above}));
    const unsigned even = code % 2 == 0 ? code : code + 1;
    EXPECT_EQ(packed.parts[1].second.as<float>()[0], 1);
    EXPECT_THAT(packed.parts[0].second.as<std::uint8_t>(), ElementsAre(0x7E, code, code, even, code + 1, 0x80 | (code + 1)));
  }
}

TEST(CodecScaled, Fp8DecodesEveryCode) {
  for (const DType dtype : kPacked) {
    std::vector<std::uint8_t> codes;
    for (unsigned code = 0; code < 256; ++code) codes.push_back((code & 0x7F) == 0x7F ? 0 : static_cast<std::uint8_t>(code));
    const TensorMap parts{{"x", Tensor::copy_of(DType::kUInt8, {256}, std::as_bytes(std::span(codes)))},
                          {"x::scale", floats({}, {0.5F})}};
    const Tensor again = decode(Codec::kFp8E4M3, "x", dtype, {256}, parts);
    for (std::size_t i = 0; i < 256; ++i) EXPECT_EQ(element(again, i), small_float(codes[i], 3, 4) / 2) << i;
  }
}

TEST(CodecScaled, Float16IsReadAsItsValue) {
  std::vector<std::uint16_t> bits;
  std::vector<float> values;
  for (unsigned i = 0; i < 0x10000; ++i) {
    if ((i & 0x7C00) == 0x7C00) continue;
    bits.push_back(static_cast<std::uint16_t>(i));
    values.push_back(static_cast<float>(small_float(i, 10, 5)));
  }
  const Shape shape{static_cast<std::int64_t>(bits.size() / 8), 8};
  for (const Codec codec : kLossy) {
    const EncodedTensor narrow = encode(codec, "x", halves(DType::kFloat16, shape, bits));
    const EncodedTensor wide = encode(codec, "x", floats(shape, values));
    for (std::size_t part = 0; part < 2; ++part) {
      const auto a = narrow.parts[part].second.bytes, b = wide.parts[part].second.bytes;
      EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << codec_name(codec) << " part " << part;
    }
  }
}

// The worked examples of docs/formats/codecs.md.
TEST(CodecScaled, BytesArePinned) {
  // 127, -63.5, 1, 0.5, 1.5, 0, -127, 64
  const Tensor a = halves(DType::kBFloat16, {1, 8}, {0x42FE, 0xC27E, 0x3F80, 0x3F00, 0x3FC0, 0, 0xC2FE, 0x4280});
  const EncodedTensor int8 = encode(Codec::kInt8, "h", a);
  ASSERT_EQ(int8.parts.size(), 2u);
  EXPECT_EQ(int8.parts[0].first, "h");
  EXPECT_EQ(int8.parts[0].second.dtype, DType::kInt8);
  EXPECT_THAT(int8.parts[0].second.as<std::uint8_t>(), ElementsAre(0x7F, 0xC0, 0x01, 0x00, 0x02, 0x00, 0x81, 0x40));
  EXPECT_EQ(int8.parts[1].first, "h::scale");
  EXPECT_EQ(int8.parts[1].second.shape, Shape{1});
  EXPECT_THAT(int8.parts[1].second.bytes, ElementsAre(std::byte{0}, std::byte{0}, std::byte{0x80}, std::byte{0x3F}));
  EXPECT_EQ(packed_bytes(int8), 12u);
  // 448, -224, 1, 0.0625, 17, 0, 2^-9, 2^-10
  const Tensor b = halves(DType::kBFloat16, {1, 8}, {0x43E0, 0xC360, 0x3F80, 0x3D80, 0x4188, 0, 0x3B00, 0x3A80});
  const EncodedTensor fp8 = encode(Codec::kFp8E4M3, "h", b);
  EXPECT_EQ(fp8.parts[0].second.dtype, DType::kUInt8);
  EXPECT_THAT(fp8.parts[0].second.as<std::uint8_t>(), ElementsAre(0x7E, 0xF6, 0x38, 0x18, 0x58, 0x00, 0x01, 0x00));
  EXPECT_THAT(fp8.parts[1].second.as<float>(), ElementsAre(1.0F));
}

std::string message_of(const std::function<void()>& call, ErrorKind kind) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

TEST(CodecScaled, NotFiniteIsRefusedByNameAndIndex) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const Codec codec : kLossy) {
    const std::string name(codec_name(codec));
    std::vector<float> values(30, 1);
    values[17] = nan, values[18] = inf;
    EXPECT_EQ(message_of(
                  [&] {
                    encode(codec, "hid\nden", floats({2, 3, 5}, values));
                  },
                  ErrorKind::kInvalidArgument),
              "tensor 'hid\\x0aden' holds NaN at [1, 0, 2]: codec " + name +
                  " packs finite values only, because a scale would hide it; find where it comes from, or store the tensor "
                  "with raw or zstd");
    values[3] = -inf;
    EXPECT_THAT(message_of(
                    [&] {
                      encode(codec, "x", floats({2, 3, 5}, values));
                    },
                    ErrorKind::kInvalidArgument),
                HasSubstr("holds infinity at [0, 0, 3]"));
    EXPECT_THROW(encode(codec, "x", halves(DType::kFloat16, {5}, {0, 0, 0, 0, 0xFC00})), InvalidArgument);
    EXPECT_THROW(encode(codec, "x", halves(DType::kFloat16, {5}, {0, 0, 0, 0, 0x7C01})), InvalidArgument);
    EXPECT_THROW(encode(codec, "x", halves(DType::kBFloat16, {5}, {0, 0x7F80, 0, 0, 0})), InvalidArgument);
    EXPECT_THROW(encode(codec, "x", halves(DType::kBFloat16, {5}, {0, 0xFF81, 0, 0, 0})), InvalidArgument);
  }
}

TEST(CodecScaled, PartsThatCannotBeAreCorrupt) {
  const Shape shape{2, 6};
  const auto decoded = [&](Codec codec, const TensorMap& parts, DType dtype = DType::kFloat16) {
    return message_of([&] { decode(codec, "x", dtype, shape, parts); }, ErrorKind::kCorrupt);
  };
  const Tensor tensor = floats({2, 6}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  const TensorMap good = encode(Codec::kInt8, "x", tensor).parts;
  EXPECT_EQ(decoded(Codec::kInt8, {good[0]}),
            "tensor 'x', packed by int8: its part 'x::scale' is missing; the file is damaged");
  EXPECT_THAT(decoded(Codec::kInt8, {good[1]}), HasSubstr("its part 'x' is missing"));
  EXPECT_EQ(decoded(Codec::kFp8E4M3, good),
            "tensor 'x' is a int8 of shape [2, 6]: uint8 of shape [2, 6] was expected; the file is damaged");
  EXPECT_THAT(decoded(Codec::kInt8, {good[0], {"x::scale", floats({2, 1}, {1, 1})}}),
              HasSubstr("'x::scale' is a float32 of shape [2, 1]: float32 of shape [2] was expected"));
  EXPECT_THAT(decoded(Codec::kInt8, {good[0], {"x::scale", Tensor::allocate(DType::kInt32, {2}).first}}),
              HasSubstr("'x::scale' is a int32"));
  EXPECT_THAT(decoded(Codec::kInt8, {{"x", Tensor::allocate(DType::kInt8, {2, 5}).first}, good[1]}), HasSubstr("[2, 5]"));
  for (const float scale : {-1.0F, NAN, INFINITY, -INFINITY, 1e6F}) {
    EXPECT_THAT(decoded(Codec::kInt8, {good[0], {"x::scale", floats({2}, {1, scale})}}),
                HasSubstr("tensor 'x': the scale of token [1] is "));
  }
  std::vector<std::int8_t> codes(12, 1);
  codes[8] = -128;
  const auto as_part = [&](DType dtype) { return Tensor::copy_of(dtype, shape, std::as_bytes(std::span(codes))); };
  EXPECT_EQ(decoded(Codec::kInt8, {{"x", as_part(DType::kInt8)}, good[1]}),
            "tensor 'x': the code at [1, 2] is 0x80, which is never written: the file is damaged");
  codes[8] = -1;
  EXPECT_THAT(decoded(Codec::kFp8E4M3, {{"x", as_part(DType::kUInt8)}, good[1]}), HasSubstr("the code at [1, 2] is 0xff"));
  EXPECT_EQ(decoded(Codec::kInt8, good, DType::kFloat64),
            "tensor 'x' is recorded as packed by int8, which never packs float64 of shape [2, 6]: the record is damaged");
}

}  // namespace
}  // namespace draftflow
