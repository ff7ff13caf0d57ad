// SPDX-License-Identifier: Apache-2.0
//
// safetensors files: an 8-byte little-endian header length, a JSON header, then the bytes (docs/formats/safetensors.md).
// Reading trusts nothing: every error of the format is Corrupt, naming the file and the tensor; memory stays within the
// file's own size; nothing is executed. Functions are thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "draftflow/formats/tensor.h"

namespace draftflow {

constexpr std::uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsEntry {
  std::string name;
  DType dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  // byte offsets from the start of the data section
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;                      // in order of their bytes in the file
  std::vector<std::pair<std::string, std::string>> metadata;  // __metadata__
  std::uint64_t data_offset = 0;                              // where the data section starts in the file

  const SafetensorsEntry* find(std::string_view name) const;
  const std::string* find_metadata(std::string_view key) const;
};

// Checks everything there is to check: `file_bytes` is the whole file's size, `head` at least its 8 + header bytes.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, std::uint64_t file_bytes, std::string_view what);

// Reads and checks the header of an open file.
SafetensorsHeader read_safetensors_header(int fd, const std::string& path);

// Reads the named tensors, or all of them; a name that the file lacks is NotFound, listing those it has.
TensorMap read_safetensors(const std::filesystem::path& path, const std::optional<std::vector<std::string>>& names = {});

// The header bytes (length prefix included, padded with spaces so that data starts at a multiple of 64) for tensors
// written in the order given. InvalidArgument for duplicate or reserved names.
std::string make_safetensors_header(const TensorMap& tensors, const std::vector<std::pair<std::string, std::string>>& metadata);

// Writes a new file in one step (temporary, fsync, rename, fsync of the folder).
void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                       const std::vector<std::pair<std::string, std::string>>& metadata = {});

}  // namespace draftflow
