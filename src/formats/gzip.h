// SPDX-License-Identifier: Apache-2.0
//
// Unpacks a gzip file into memory, however many members it has, without trusting what it says about its size: the buffer
// grows with the bytes that really come, up to a limit. Private to this room. Thread-safe.
//
//   Tensor bytes = gunzip_file("a.ckpt.gz", kMaxUnpackedBytes);
#pragma once

#include <cstdint>
#include <filesystem>

#include "draftflow/formats/tensor.h"

namespace draftflow::formats {

// The unpacked bytes as a uint8 tensor. Corrupt for a damaged or truncated file, InvalidArgument past max_bytes.
Tensor gunzip_file(const std::filesystem::path& path, std::uint64_t max_bytes);

}  // namespace draftflow::formats
