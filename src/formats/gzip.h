// SPDX-License-Identifier: Apache-2.0
//
// Unpacks a gzip file into memory, however many members it has, without trusting what it says about its size: the buffer
// grows with the bytes that really come, up to a limit. Private to this room. Thread-safe.
//
//   Tensor bytes = gunzip_file("a.ckpt.gz", {.max_bytes = kMaxUnpackedBytes});
#pragma once

#include <cstdint>
#include <filesystem>

#include "draftflow/formats/tensor.h"

namespace draftflow::formats {

struct GzipLimits {
  std::uint64_t max_bytes = 0;
  // Past any_bytes, also at most max_ratio times the packed file.
  std::uint64_t any_bytes = UINT64_MAX, max_ratio = 0;
};

// The unpacked bytes as a uint8 tensor. Corrupt for a damaged or truncated file, InvalidArgument past the limits.
Tensor gunzip_file(const std::filesystem::path& path, const GzipLimits& limits);

}  // namespace draftflow::formats
