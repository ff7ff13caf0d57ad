// SPDX-License-Identifier: Apache-2.0
//
// Files of captured features as users have them: torch .ckpt, .ckpt.gz and .safetensors. Thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "draftflow/formats/tensor.h"

namespace draftflow {

// A .ckpt.gz that grows past this many bytes when unpacked is refused (InvalidArgument), and so is one that passes both
// kAnyUnpackedBytes and kMaxUnpackedRatio times its own size: a small file cannot fill memory. Gzip reaches about 1000 times on
// zeros, real features about twice.
constexpr std::uint64_t kMaxUnpackedBytes = 16ULL << 30, kAnyUnpackedBytes = 64ULL << 20, kMaxUnpackedRatio = 100;

// Every feature file below the folder, sorted by absolute path (byte order). Symbolic links to files are followed, links
// to folders are not. NotFound if the folder does not exist.
std::vector<std::filesystem::path> list_feature_files(const std::filesystem::path& folder);

struct FeatureFile {
  TensorMap tensors;
  std::vector<std::pair<std::string, std::string>> values;  // top-level entries that are no tensor: name -> "str", "int", ...
};

// One file, whatever its kind; the kind is told by the ending. Files are read whole (not mapped), so a file cut short meanwhile
// is Corrupt, not a SIGBUS.
FeatureFile read_feature_file(const std::filesystem::path& path);

// The tensors of a file that holds nothing else: a top-level value that is no tensor is InvalidArgument, naming it.
TensorMap load_feature_file(const std::filesystem::path& path);

}  // namespace draftflow
