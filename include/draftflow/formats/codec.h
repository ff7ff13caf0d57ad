// SPDX-License-Identifier: Apache-2.0
//
// Codecs of stored tensors (docs/formats/codecs.md): one tensor becomes the parts that a safetensors file holds under
// `name` and `name::scale`, and back. Lossless: raw, zstd. Lossy, one float32 scale per token (every index over all
// dimensions but the last): fp8_e4m3, int8. Parts are tensors of their own, never more bytes than the tensor had; those of
// raw share its bytes. Decoding trusts nothing. Pure functions, thread-safe.
//
//   EncodedTensor packed = encode(Codec::kInt8, "hidden", tensor);
//   Tensor again = decode(packed.codec, "hidden", tensor.dtype, tensor.shape, packed.parts);
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "draftflow/formats/tensor.h"

namespace draftflow {

enum class Codec { kRaw, kFp8E4M3, kInt8, kZstd };

std::string_view codec_name(Codec codec);       // "raw", "fp8_e4m3", "int8", "zstd"
Codec codec_from_name(std::string_view name);   // InvalidArgument, listing the known names
std::string scale_name(std::string_view name);  // "hidden::scale"

struct EncodedTensor {
  Codec codec = Codec::kRaw;  // what was used, which is what decode must be told
  TensorMap parts;
};

// Raw is used instead of the codec asked for where that saves nothing: a lossy codec on integers, bool, a tensor without a
// dimension or with a last one too short; zstd on bytes that it does not shrink. InvalidArgument for a lossy codec on
// float64, and on NaN or infinity, naming the first one's index, because a scale would hide it.
EncodedTensor encode(Codec codec, std::string_view name, const Tensor& tensor);

// The tensor of this dtype and shape from its parts; other entries of `parts` are ignored. The caller has bounded dtype and
// shape: no more than the tensor itself is allocated, and only after sizes agree. Corrupt for parts that are missing, of
// another dtype or size, damaged, or that encode cannot have made. What a lossy codec gives is always finite.
Tensor decode(Codec codec, std::string_view name, DType dtype, const std::vector<std::int64_t>& shape, const TensorMap& parts);

// Bytes [begin, begin + out.size()) of a tensor of `bytes` bytes from its zstd part, unpacking only the frames they touch.
// InvalidArgument past the end; else as decode.
void decode_zstd_part(std::string_view name, std::uint64_t bytes, const Tensor& packed, std::uint64_t begin,
                      std::span<std::byte> out);

std::uint64_t packed_bytes(const EncodedTensor& encoded);  // of all parts

// The most by which a decoded element may differ in a token whose largest magnitude is `largest`:
// relative_error_bound * largest, plus a floor that matters among subnormal numbers only. 0 for a lossless codec and for a
// dtype that it leaves raw; InvalidArgument for a lossy codec on float64.
double relative_error_bound(Codec codec, DType dtype);
double error_bound(Codec codec, DType dtype, double largest);

}  // namespace draftflow
