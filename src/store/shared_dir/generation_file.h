// SPDX-License-Identifier: Apache-2.0
//
// The file of one generation: a safetensors file whose __metadata__ says whose bytes these are and holds their checksums
// (docs/formats/shared_dir.md). Writing needs no copy of large tensors; reading trusts nothing. GenerationReader has one
// owner; reading from it is thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "draftflow/base/file.h"
#include "draftflow/formats/buffer_pool.h"
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

  // A copy in memory of the pool's. Corrupt if the file lacks it, has another dtype or shape, ends early, or a checksum
  // differs: naming all of it.
  Tensor read(const FeatureSpec& spec, BufferPool& pool, bool verify = true) const;

  // Views of the whole file's mapping, which they keep; errors as in `read`. For local file systems: a file that another
  // host cuts short is a SIGBUS.
  TensorMap map(const std::vector<const FeatureSpec*>& specs, bool verify) const;

  const SafetensorsHeader& header() const { return header_; }
  int fd() const { return fd_.get(); }

 private:
  struct Place {
    const SafetensorsEntry* entry;
    std::size_t first_chunk;
  };
  void read_header();
  Place find(const FeatureSpec& spec) const;
  void check_chunk(const FeatureSpec& spec, std::size_t chunk, std::uint64_t at, std::uint64_t size, std::uint64_t hash) const;
  void fill(const FeatureSpec& spec, const Place& place, std::span<std::byte> out, bool verify) const;
  [[noreturn]] void fail(const std::string& problem) const;

  UniqueFd fd_;
  std::filesystem::path path_;
  Identity identity_;
  std::string head_;  // the file's first bytes: a small sample is all in here
  SafetensorsHeader header_;
  std::string checksums_;  // 16 hex digits a chunk, in the order of the bytes in the file
};

// The tensor bytes of a generation file, by its size and header length alone; its whole size if it is damaged.
std::uint64_t tensor_bytes_of_file(int fd, std::uint64_t file_bytes);

}  // namespace draftflow::store
