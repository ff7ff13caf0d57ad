// SPDX-License-Identifier: Apache-2.0
//
// zstd in the published seekable layout: independent frames of 1 MiB, then a seek table (docs/formats/codecs.md). Private to
// this room. Thread-safe.
//
//   std::optional<Tensor> packed = encode_zstd(tensor);  // absent: not smaller
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "draftflow/formats/tensor.h"

namespace draftflow::formats {

constexpr std::size_t kZstdFrameBytes = 1U << 20;

// uint8 [packed bytes], or nothing when that would not be smaller than the tensor.
std::optional<Tensor> encode_zstd(const Tensor& tensor);

// Throws Corrupt unless the seek table is sound and tells of exactly `bytes` bytes.
void check_seek_table(std::string_view name, std::uint64_t bytes, std::span<const std::byte> packed);

// Fills `out` from `begin` on, which must be within `bytes`. Checks the seek table first.
void decode_zstd(std::string_view name, std::uint64_t bytes, std::span<const std::byte> packed, std::uint64_t begin,
                 std::span<std::byte> out);

}  // namespace draftflow::formats
