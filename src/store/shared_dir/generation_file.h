// SPDX-License-Identifier: Apache-2.0
//
// The file of one generation: a safetensors file whose __metadata__ says whose bytes these are and holds their checksums
// (docs/formats/shared_dir.md). Writing needs no copy of the tensors; reading trusts nothing. GenerationReader has one
// owner; reading from it is thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "draftflow/base/file.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/formats/tensor.h"

namespace draftflow::store {

constexpr std::uint64_t kChecksumChunkBytes = 1 << 20;

// Which immutable bytes: (store, incarnation, sample, generation).
struct Identity {
  std::string store_id, incarnation, sample_id;
  std::uint64_t generation = 0;
};

std::string describe(const Identity& identity);  // "sample 'a' generation 7 of store 's'", for messages

// Writes header and tensors from offset 0 on, hashing each chunk while it is in cache. The tensors go largest element
// first, so that each is aligned in the file.
void write_generation(int fd, const std::filesystem::path& path, const Identity& identity, const TensorMap& tensors);

class GenerationReader {
 public:
  // Checks the header down to the last bit, and that the file is the one `identity` means: else Corrupt.
  GenerationReader(UniqueFd fd, std::filesystem::path path, Identity identity);

  // Corrupt if the file lacks it, has another dtype or shape, ends early, or a checksum differs: naming all of it.
  Tensor read(const FeatureSpec& spec) const;

  const SafetensorsHeader& header() const { return header_; }

 private:
  void read_header();
  [[noreturn]] void fail(const std::string& problem) const;

  UniqueFd fd_;
  std::filesystem::path path_;
  Identity identity_;
  SafetensorsHeader header_;
  std::string checksums_;  // 16 hex digits a chunk, in the order of the bytes in the file
};

// The tensor bytes of a generation file, by its size and header length alone; its whole size if it is damaged.
std::uint64_t tensor_bytes_of_file(int fd, std::uint64_t file_bytes);

}  // namespace draftflow::store
