// SPDX-License-Identifier: Apache-2.0
#include "formats/codec_scaled.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

// The loops below are written for the vectoriser: both sides of a choice are computed and then chosen by a mask, because g++
// makes a branch of anything else.
namespace draftflow::formats {
namespace {

constexpr std::uint32_t kFloatMagnitude = 0x7FFFFFFF;

std::uint32_t choose(bool first, std::uint32_t a, std::uint32_t b) {
  const std::uint32_t mask = 0U - static_cast<std::uint32_t>(first);
  return (a & mask) | (b & ~mask);
}

// A binary float with fewer bits than float32, as the magnitude's bits.
template <int kMantissa, int kBias>
struct SmallFloat {
  static constexpr int kDropped = 23 - kMantissa;
  static constexpr std::uint32_t kRebias = static_cast<std::uint32_t>(127 - kBias) << 23;
  static constexpr int kStepExponent = 1 - kBias - kMantissa;  // of the smallest subnormal

  // Rounds to nearest, ties to even; the caller keeps the magnitude below overflow.
  static std::uint32_t narrow(std::uint32_t magnitude) {
    // A float whose last place is one subnormal step: adding it rounds to that step.
    constexpr std::uint32_t rounder = static_cast<std::uint32_t>(127 + 23 + kStepExponent) << 23;
    const std::uint32_t tiny =
        std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + std::bit_cast<float>(rounder)) - rounder;
    const std::uint32_t odd = (magnitude >> kDropped) & 1;
    const std::uint32_t normal = (magnitude + ((1U << (kDropped - 1)) - 1) + odd - kRebias) >> kDropped;
    constexpr auto smallest_normal = static_cast<std::int32_t>(kRebias + (1U << 23));
    return choose(static_cast<std::int32_t>(magnitude) < smallest_normal, tiny, normal);
  }

  static float widen(std::uint32_t code) {
    constexpr float step = std::bit_cast<float>(static_cast<std::uint32_t>(127 + kStepExponent) << 23);
    const float tiny = static_cast<float>(static_cast<std::int32_t>(code)) * step;
    const std::uint32_t normal = (code << kDropped) + kRebias;
    return std::bit_cast<float>(
        choose(static_cast<std::int32_t>(code) < (1 << kMantissa), std::bit_cast<std::uint32_t>(tiny), normal));
  }
};

using E4M3 = SmallFloat<3, 7>;
using Binary16 = SmallFloat<10, 15>;

struct BFloat16 {
  using Bits = std::int16_t;
  static constexpr Bits kMagnitude = 0x7FFF, kInfinity = 0x7F80;
  static float widen(Bits bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
  static Bits narrow(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    return static_cast<Bits>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
  }
};

struct Float16 {
  using Bits = std::int16_t;
  static constexpr Bits kMagnitude = 0x7FFF, kInfinity = 0x7C00;
  static float widen(Bits bits) {
    const auto wide = static_cast<std::uint32_t>(static_cast<std::uint16_t>(bits));
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(Binary16::widen(wide & 0x7FFF)) | (wide & 0x8000) << 16);
  }
  static Bits narrow(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    return static_cast<Bits>(Binary16::narrow(bits & kFloatMagnitude) | (bits >> 16 & 0x8000));
  }
};

struct Float32 {
  using Bits = std::int32_t;
  static constexpr Bits kMagnitude = 0x7FFFFFFF, kInfinity = 0x7F800000;
  static float widen(Bits bits) { return std::bit_cast<float>(bits); }
  // The scale of the largest float32 may be rounded up, and code times scale then to infinity.
  static Bits narrow(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t magnitude = bits & kFloatMagnitude;
    return static_cast<Bits>(choose(static_cast<Bits>(magnitude) < kInfinity, magnitude, kInfinity - 1) |
                             (bits & ~kFloatMagnitude));
  }
};

struct Fp8Code {
  using Code = std::uint8_t;
  static constexpr DType kDType = DType::kUInt8;
  static constexpr float kLargest = 448;
  static Code pack(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    return static_cast<Code>(E4M3::narrow(bits & kFloatMagnitude) | (bits >> 24 & 0x80));
  }
  static float unpack(Code code) {
    const std::uint32_t sign = static_cast<std::uint32_t>(code & 0x80) << 24;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(E4M3::widen(code & 0x7FU)) | sign);
  }
  static bool invalid(Code code) { return (code & 0x7F) == 0x7F; }  // NaN
};

struct Int8Code {
  using Code = std::int8_t;
  static constexpr DType kDType = DType::kInt8;
  static constexpr float kLargest = 127;
  // 1.5 * 2^23 has a last place of 1: the sum's low byte is the rounded value.
  static Code pack(float value) { return static_cast<Code>(std::bit_cast<std::uint32_t>(value + 12582912.0F)); }
  static float unpack(Code code) { return static_cast<float>(code); }
  static bool invalid(Code code) { return code == -128; }
};

// The rows of a tensor of two dimensions: all but the last one, and the last one.
struct Rows {
  std::vector<std::int64_t> scale_shape;
  std::size_t count = 0, width = 0;

  explicit Rows(const std::vector<std::int64_t>& shape) : scale_shape(shape.begin(), shape.end() - 1) {
    count = tensor_bytes(DType::kUInt8, scale_shape);
    width = static_cast<std::size_t>(shape.back());
  }
};

std::string index_text(const std::vector<std::int64_t>& shape, std::uint64_t at) {
  std::vector<std::int64_t> index(shape.size());
  for (std::size_t i = shape.size(); i-- > 0; at /= static_cast<std::uint64_t>(shape[i])) {
    index[i] = static_cast<std::int64_t>(at % static_cast<std::uint64_t>(shape[i]));
  }
  return shape_text(index);
}

template <class T>
T load(const std::byte* from, std::size_t index) {  // tensors of foreign files need not be aligned
  T value;
  std::memcpy(&value, from + index * sizeof(T), sizeof(T));
  return value;
}

// A subnormal scale is rounded up: rounded down, it could push codes far past the largest one.
float scale_for(float largest, float largest_code) {
  float scale = largest / largest_code;
  if (scale < std::numeric_limits<float>::min() && static_cast<double>(scale) * largest_code < largest) {
    scale = std::nextafter(scale, 1.0F);
  }
  return scale;
}

template <class Source>
[[noreturn]] void throw_not_finite(Codec codec, std::string_view name, const Tensor& tensor, std::size_t at) {
  using Bits = typename Source::Bits;
  Bits bits = 0;
  do {
    bits = load<Bits>(tensor.bytes.data(), at++) & Source::kMagnitude;
  } while (bits < Source::kInfinity);
  throw InvalidArgument(fmt::format(
      "tensor '{}' holds {} at {}: codec {} packs finite values only, because a scale would hide it; find where it "
      "comes from, or store the tensor with raw or zstd",
      printable(name), bits == Source::kInfinity ? "infinity" : "NaN", index_text(tensor.shape, at - 1), codec_name(codec)));
}

template <class Source, class Packing>
ScaledTensor encode_rows(Codec codec, std::string_view name, const Tensor& tensor) {
  using Bits = typename Source::Bits;
  const Rows rows(tensor.shape);
  auto [codes, code_bytes] = Tensor::allocate(Packing::kDType, tensor.shape);
  auto [scales, scale_bytes] = Tensor::allocate(DType::kFloat32, rows.scale_shape);
  auto* const scale_out = reinterpret_cast<float*>(scale_bytes.data());
  for (std::size_t row = 0; row < rows.count; ++row) {
    const std::byte* const from = tensor.bytes.data() + row * rows.width * sizeof(Bits);
    auto* const to = reinterpret_cast<typename Packing::Code*>(code_bytes.data()) + row * rows.width;
    Bits largest = 0;
    for (std::size_t i = 0; i < rows.width; ++i) {
      largest = std::max(largest, static_cast<Bits>(load<Bits>(from, i) & Source::kMagnitude));
    }
    if (largest >= Source::kInfinity) throw_not_finite<Source>(codec, name, tensor, row * rows.width);
    const float scale = scale_for(Source::widen(largest), Packing::kLargest);
    scale_out[row] = scale;
    const float divisor = largest == 0 ? 1.0F : scale;
    for (std::size_t i = 0; i < rows.width; ++i) to[i] = Packing::pack(Source::widen(load<Bits>(from, i)) / divisor);
  }
  return {std::move(codes), std::move(scales)};
}

template <class Packing>
void check_row(std::string_view name, const std::vector<std::int64_t>& shape, const typename Packing::Code* from,
               std::size_t begin, std::size_t width) {
  unsigned char invalid = 0;  // of a byte, so that sixteen fit a register
  for (std::size_t i = 0; i < width; ++i) invalid |= static_cast<unsigned char>(Packing::invalid(from[i]));
  if (invalid == 0) return;
  const auto at = static_cast<std::size_t>(std::find_if(from, from + width, Packing::invalid) - from);
  throw Corrupt(fmt::format("tensor '{}': the code at {} is {:#04x}, which is never written: the file is damaged",
                            printable(name), index_text(shape, begin + at), static_cast<std::uint8_t>(from[at])));
}

template <class Source, class Packing>
Tensor decode_rows(std::string_view name, DType dtype, const std::vector<std::int64_t>& shape, const ScaledTensor& packed) {
  using Bits = typename Source::Bits;
  const Rows rows(shape);
  const float largest_scale = scale_for(Source::widen(Source::kInfinity - 1), Packing::kLargest);
  auto [tensor, bytes] = Tensor::allocate(dtype, shape);
  for (std::size_t row = 0; row < rows.count; ++row) {
    const float scale = load<float>(packed.scales.bytes.data(), row);
    if (!(scale >= 0 && scale <= largest_scale)) {
      throw Corrupt(fmt::format("tensor '{}': the scale of token {} is {}: 0 to {} are possible for {}; the file is damaged",
                                printable(name), index_text(packed.scales.shape, row), scale, largest_scale,
                                dtype_name(dtype)));
    }
    const auto* const from = reinterpret_cast<const typename Packing::Code*>(packed.codes.bytes.data()) + row * rows.width;
    check_row<Packing>(name, shape, from, row * rows.width, rows.width);
    auto* const to = reinterpret_cast<Bits*>(bytes.data()) + row * rows.width;
    for (std::size_t i = 0; i < rows.width; ++i) to[i] = Source::narrow(Packing::unpack(from[i]) * scale);
  }
  return std::move(tensor);
}

void check_part(std::string_view name, const Tensor& part, DType dtype, const std::vector<std::int64_t>& shape) {
  if (part.dtype == dtype && part.shape == shape && part.bytes.size() == tensor_bytes(dtype, shape)) return;
  throw Corrupt(fmt::format("tensor '{}' is a {} of shape {}: {} of shape {} was expected; the file is damaged",
                            printable(name), dtype_name(part.dtype), shape_text(part.shape), dtype_name(dtype),
                            shape_text(shape)));
}

// Calls f with the source's and the code's types.
template <class F>
auto with_types(Codec codec, DType dtype, F f) {
  const bool fp8 = codec == Codec::kFp8E4M3;
  switch (dtype) {
    case DType::kBFloat16: return fp8 ? f(BFloat16{}, Fp8Code{}) : f(BFloat16{}, Int8Code{});
    case DType::kFloat16: return fp8 ? f(Float16{}, Fp8Code{}) : f(Float16{}, Int8Code{});
    default: return fp8 ? f(Float32{}, Fp8Code{}) : f(Float32{}, Int8Code{});
  }
}

}  // namespace

bool scaling_pays(DType dtype, const std::vector<std::int64_t>& shape) {
  const bool packs = dtype == DType::kBFloat16 || dtype == DType::kFloat16 || dtype == DType::kFloat32;
  if (!packs || shape.empty() || tensor_bytes(dtype, shape) == 0) return false;
  const auto width = static_cast<std::uint64_t>(shape.back());
  return width + sizeof(float) < width * dtype_bytes(dtype);
}

ScaledTensor encode_scaled(Codec codec, std::string_view name, const Tensor& tensor) {
  return with_types(codec, tensor.dtype, [&](auto source, auto packing) {
    return encode_rows<decltype(source), decltype(packing)>(codec, name, tensor);
  });
}

Tensor decode_scaled(Codec codec, std::string_view name, DType dtype, const std::vector<std::int64_t>& shape,
                     const ScaledTensor& packed) {
  check_part(name, packed.codes, codec == Codec::kFp8E4M3 ? DType::kUInt8 : DType::kInt8, shape);
  check_part(scale_name(name), packed.scales, DType::kFloat32, Rows(shape).scale_shape);
  return with_types(codec, dtype, [&](auto source, auto packing) {
    return decode_rows<decltype(source), decltype(packing)>(name, dtype, shape, packed);
  });
}

}  // namespace draftflow::formats
