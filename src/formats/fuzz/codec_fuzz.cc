// SPDX-License-Identifier: Apache-2.0
//
// The first byte picks what the rest is: parts of a scaled tensor, a zstd part, or data that is packed and then damaged,
// because no mutation survives a frame's checksum. Built and run as safetensors_fuzz.cc says.
#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/formats/codec.h"

namespace {

using draftflow::Codec;
using draftflow::DType;
using draftflow::Tensor;
using Bytes = std::span<const std::uint8_t>;

Tensor bytes_tensor(Bytes bytes) {
  return Tensor::copy_of(DType::kUInt8, {static_cast<std::int64_t>(bytes.size())}, std::as_bytes(bytes));
}

void scaled(Codec codec, DType dtype, std::int64_t width, Bytes input) {
  const auto rows = static_cast<std::int64_t>(input.size()) / (width + 4);
  const auto codes = static_cast<std::size_t>(rows * width);
  const DType code = codec == Codec::kInt8 ? DType::kInt8 : DType::kUInt8;
  const Tensor scale = Tensor::copy_of(DType::kFloat32, {rows}, std::as_bytes(input.subspan(codes, 4 * rows)));
  const Tensor part = Tensor::copy_of(code, {rows, width}, std::as_bytes(input.first(codes)));
  const Tensor out = draftflow::decode(codec, "x", dtype, {rows, width}, {{"x", part}, {"x::scale", scale}});
  if (out.bytes.size() != codes * draftflow::dtype_bytes(dtype)) __builtin_trap();
  // What was decoded is finite: it packs again.
  draftflow::encode(Codec::kInt8, "x", out);
}

void damaged(Bytes input) {
  const std::size_t flips = std::min<std::size_t>(input.size() / 8, 3);
  const Bytes data = input.subspan(flips * 3);
  const Tensor tensor = bytes_tensor(data);
  const draftflow::EncodedTensor packed = draftflow::encode(Codec::kZstd, "x", tensor);
  if (packed.codec == Codec::kRaw) return;
  std::vector<std::uint8_t> part(packed.parts[0].second.as<std::uint8_t>().begin(),
                                 packed.parts[0].second.as<std::uint8_t>().end());
  for (std::size_t i = 0; i < flips; ++i) part[(input[3 * i] * 256U + input[3 * i + 1]) % part.size()] ^= input[3 * i + 2];
  const Tensor out = draftflow::decode(Codec::kZstd, "x", DType::kUInt8, tensor.shape, {{"x", bytes_tensor(part)}});
  if (!std::equal(out.bytes.begin(), out.bytes.end(), tensor.bytes.begin(), tensor.bytes.end())) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 3) return 0;
  const Bytes input(data + 3, size - 3);
  constexpr DType dtypes[] = {DType::kBFloat16, DType::kFloat16, DType::kFloat32};
  try {
    switch (data[0] % 4) {
      case 0: scaled(Codec::kFp8E4M3, dtypes[data[1] % 3], 5 + data[2] % 64, input); break;
      case 1: scaled(Codec::kInt8, dtypes[data[1] % 3], 5 + data[2] % 64, input); break;
      case 2: {
        const std::uint64_t bytes = data[1] * 256U + data[2];
        std::vector<std::byte> out(bytes / 3);
        draftflow::decode_zstd_part("x", bytes, bytes_tensor(input), bytes / 3, out);
        break;
      }
      default: damaged(input); break;
    }
  } catch (const draftflow::Corrupt&) {
  }
  return 0;
}
