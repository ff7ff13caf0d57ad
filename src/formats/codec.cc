// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/codec.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "formats/codec_scaled.h"
#include "formats/codec_zstd.h"

namespace draftflow {
namespace {

constexpr std::array<std::pair<Codec, std::string_view>, 4> kNames{{
    {Codec::kRaw, "raw"},
    {Codec::kFp8E4M3, "fp8_e4m3"},
    {Codec::kInt8, "int8"},
    {Codec::kZstd, "zstd"},
}};

bool is_lossy(Codec codec) {
  return codec == Codec::kFp8E4M3 || codec == Codec::kInt8;
}

const Tensor& part_named(Codec codec, std::string_view tensor, const std::string& part, const TensorMap& parts) {
  if (const Tensor* found = find_tensor(parts, part)) return *found;
  throw Corrupt(fmt::format("tensor '{}', packed by {}: its part '{}' is missing; the file is damaged", printable(tensor),
                            codec_name(codec), printable(part)));
}

Tensor decode_raw(std::string_view name, DType dtype, const std::vector<std::int64_t>& shape, const Tensor& part) {
  if (part.dtype != dtype || part.shape != shape || part.bytes.size() != tensor_bytes(dtype, shape)) {
    throw Corrupt(fmt::format("tensor '{}' is a {} of shape {}: {} of shape {} was expected; the file is damaged",
                              printable(name), dtype_name(part.dtype), shape_text(part.shape), dtype_name(dtype),
                              shape_text(shape)));
  }
  return part;
}

void check_packed(std::string_view name, const Tensor& packed) {
  if (packed.dtype == DType::kUInt8 && packed.shape.size() == 1) return;
  throw Corrupt(
      fmt::format("tensor '{}', packed by zstd, is a {} of shape {}: uint8 of one dimension was expected; the file is "
                  "damaged",
                  printable(name), dtype_name(packed.dtype), shape_text(packed.shape)));
}

// Half of the smallest subnormal: what rounding to the dtype costs near zero.
double half_step(DType dtype) {
  if (dtype == DType::kFloat16) return std::ldexp(1, -25);
  return std::ldexp(1, dtype == DType::kBFloat16 ? -134 : -150);
}

}  // namespace

std::string_view codec_name(Codec codec) {
  for (const auto& [known, name] : kNames) {
    if (known == codec) return name;
  }
  return "?";
}

Codec codec_from_name(std::string_view name) {
  for (const auto& [codec, known] : kNames) {
    if (known == name) return codec;
  }
  throw InvalidArgument(fmt::format("'{}' is no codec: raw, fp8_e4m3, int8 and zstd are known", printable(name)));
}

std::string scale_name(std::string_view name) {
  return std::string(name) + "::scale";
}

EncodedTensor encode(Codec codec, std::string_view name, const Tensor& tensor) {
  if (is_lossy(codec) && tensor.dtype == DType::kFloat64) {
    throw InvalidArgument(
        fmt::format("tensor '{}' is float64: codec {} packs bfloat16, float16 and float32; convert it, or store it with raw or "
                    "zstd",
                    printable(name), codec_name(codec)));
  }
  EncodedTensor encoded{codec, {}};
  if (is_lossy(codec) && formats::scaling_pays(tensor.dtype, tensor.shape)) {
    auto [codes, scales] = formats::encode_scaled(codec, name, tensor);
    encoded.parts.emplace_back(name, std::move(codes));
    encoded.parts.emplace_back(scale_name(name), std::move(scales));
    return encoded;
  }
  if (codec == Codec::kZstd) {
    if (std::optional<Tensor> packed = formats::encode_zstd(tensor)) {
      encoded.parts.emplace_back(name, *std::move(packed));
      return encoded;
    }
  }
  encoded.codec = Codec::kRaw;
  encoded.parts.emplace_back(name, tensor);
  return encoded;
}

Tensor decode(Codec codec, std::string_view name, DType dtype, const std::vector<std::int64_t>& shape, const TensorMap& parts) {
  const std::uint64_t bytes = tensor_bytes(dtype, shape);
  const Tensor& part = part_named(codec, name, std::string(name), parts);
  if (codec == Codec::kRaw) return decode_raw(name, dtype, shape, part);
  if (codec == Codec::kZstd) {
    check_packed(name, part);
    formats::check_seek_table(name, bytes, part.bytes);  // before anything is allocated
    auto [tensor, out] = Tensor::allocate(dtype, shape);
    formats::decode_zstd(name, bytes, part.bytes, 0, out);
    return std::move(tensor);
  }
  if (!formats::scaling_pays(dtype, shape)) {
    throw Corrupt(
        fmt::format("tensor '{}' is recorded as packed by {}, which never packs {} of shape {}: the record is damaged",
                    printable(name), codec_name(codec), dtype_name(dtype), shape_text(shape)));
  }
  return formats::decode_scaled(codec, name, dtype, shape, {part, part_named(codec, name, scale_name(name), parts)});
}

void decode_zstd_part(std::string_view name, std::uint64_t bytes, const Tensor& packed, std::uint64_t begin,
                      std::span<std::byte> out) {
  if (begin > bytes || out.size() > bytes - begin) {
    throw InvalidArgument(
        fmt::format("tensor '{}' has {} bytes: {} from byte {} on were asked", printable(name), bytes, out.size(), begin));
  }
  check_packed(name, packed);
  formats::decode_zstd(name, bytes, packed.bytes, begin, out);
}

std::uint64_t packed_bytes(const EncodedTensor& encoded) {
  std::uint64_t bytes = 0;
  for (const auto& [name, part] : encoded.parts) bytes += part.bytes.size();
  return bytes;
}

double relative_error_bound(Codec codec, DType dtype) {
  if (!is_lossy(codec)) return 0;
  double rounding = 0;  // to the dtype: 2^-(bits of its significand)
  switch (dtype) {
    case DType::kBFloat16: rounding = std::ldexp(1, -8); break;
    case DType::kFloat16: rounding = std::ldexp(1, -11); break;
    case DType::kFloat32: rounding = std::ldexp(1, -24); break;
    case DType::kFloat64:
      throw InvalidArgument(fmt::format("codec {} packs bfloat16, float16 and float32, not float64", codec_name(codec)));
    default: return 0;
  }
  const double coding = codec == Codec::kInt8 ? 0.5 / 127 : 16.0 / 448;
  return coding + rounding + std::ldexp(1, -20);
}

double error_bound(Codec codec, DType dtype, double largest) {
  const double relative = relative_error_bound(codec, dtype);
  return relative == 0 ? 0 : relative * largest + half_step(dtype) + std::ldexp(1, -145);
}

}  // namespace draftflow
