// SPDX-License-Identifier: Apache-2.0
//
// The lossy codecs: one float32 scale per token and one byte per element (docs/formats/codecs.md). Private to this room.
// `codec` is kFp8E4M3 or kInt8. Thread-safe.
//
//   auto [codes, scales] = encode_scaled(Codec::kInt8, "hidden", tensor);
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "draftflow/formats/codec.h"

namespace draftflow::formats {

struct ScaledTensor {
  Tensor codes;   // uint8 or int8, the tensor's shape
  Tensor scales;  // float32, the shape less its last dimension
};

// Whether packing makes such a tensor smaller; only then may the functions below be called. False for every other dtype.
bool scaling_pays(DType dtype, const std::vector<std::int64_t>& shape);

// InvalidArgument for NaN or infinity.
ScaledTensor encode_scaled(Codec codec, std::string_view name, const Tensor& tensor);

// Corrupt for parts that encode_scaled cannot have made.
Tensor decode_scaled(Codec codec, std::string_view name, DType dtype, const std::vector<std::int64_t>& shape,
                     const ScaledTensor& packed);

}  // namespace draftflow::formats
