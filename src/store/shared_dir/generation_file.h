// SPDX-License-Identifier: Apache-2.0
//
// The file of one generation: a safetensors file whose __metadata__ says whose bytes these are, holds their checksums, and
// what a codec did to them (docs/formats/shared_dir.md). In a store with a secret, tags take the place of the checksums, and
// the bytes are encrypted if the store is. Writing needs no copy of large tensors; reading trusts nothing. GenerationReader
// has one owner; reading from it is thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/base/file.h"
#include "draftflow/formats/buffer_pool.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/formats/tensor.h"
#include "store/seal.h"
#include "store/shared_dir/packing.h"

namespace draftflow::store {

constexpr std::uint64_t kChecksumChunkBytes = 1 << 20;

// Which immutable bytes: (store, incarnation, sample, generation).
struct Identity {
  std::string store_id, incarnation, sample_id;
  std::uint64_t generation = 0;
  bool operator==(const Identity&) const = default;
};

std::string describe(const Identity& identity);  // "sample 'a' generation 7 of store 's'", for messages

// How one file is sealed; `encrypted` is the store's.
struct Sealing {
  FileKeys keys;
  FileSalt salt{};
  bool encrypted = false;
};

// Writes header and parts from offset 0 on, hashing each chunk while it is in cache. `keys`: the store's, or nullptr.
void write_generation(int fd, const std::string& path, const Identity& identity, const PackedSample& sample,
                      const Keys* keys = nullptr);

class GenerationReader {
 public:
  // Checks the header down to the last bit, and that the file is the one `identity` means: else Corrupt. With `keys` also that
  // somebody who had them wrote it; without, a sealed file is Corrupt: its store's policy is gone.
  GenerationReader(UniqueFd fd, std::string path, Identity identity, const Keys* keys = nullptr);

  // A copy, in memory of the pool's where no codec is to be undone. Corrupt if the file lacks it, has another dtype or shape,
  // ends early, or a checksum or tag differs: naming all of it. Tags are checked whatever `verify` says.
  Tensor read(const FeatureSpec& spec, BufferPool& pool, bool verify = true) const;

  // Views of the whole file's mapping, which they keep; errors as in `read`, and InvalidArgument for a tensor that is packed or
  // encrypted. For local file systems: a file that another host cuts short is a SIGBUS.
  TensorMap map(const std::vector<const FeatureSpec*>& specs, bool verify) const;

  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  bool sealed() const { return sealing_.has_value(); }

 private:
  struct Place {
    const SafetensorsEntry* entry;
    std::size_t first_chunk;
  };
  void read_header(const Keys* keys);
  void open_seal(const std::string& head, const Keys& keys);
  void check_identity();
  void list_tensors();
  const StoredTensor& find(const FeatureSpec& spec) const;
  std::optional<Place> find_part(std::string_view name) const;
  void check_chunk(const FeatureSpec& spec, std::size_t chunk, std::uint64_t at, std::span<const std::byte> bytes) const;
  void check_hash(const FeatureSpec& spec, std::size_t chunk, std::uint64_t at, std::uint64_t size, std::uint64_t hash) const;
  void load(const FeatureSpec& spec, std::uint64_t at, std::span<std::byte> out, std::uint64_t end) const;
  Tensor read_part(const FeatureSpec& spec, const Place& place, BufferPool& pool, bool verify) const;
  void fill(const FeatureSpec& spec, const Place& place, std::span<std::byte> out, bool verify) const;
  void fill_sealed(const FeatureSpec& spec, const Place& place, std::span<std::byte> out) const;
  Tag tag_of(std::size_t chunk) const;
  Tensor unpack(const FeatureSpec& spec, const StoredTensor& stored, BufferPool& pool, bool verify) const;
  [[noreturn]] void fail(const std::string& problem) const;

  UniqueFd fd_;
  std::string path_;
  Identity identity_;
  std::optional<Sealing> sealing_;
  std::string head_;  // the file's first bytes: a small sample is all in here
  SafetensorsHeader header_;
  std::vector<StoredTensor> tensors_;
  std::string digests_;  // of the chunks, in the order of the bytes in the file: 16 hex digits of a checksum, or 32 of a tag
};

// The tensor bytes of a generation file, by its size and header length alone; its whole size if it is damaged.
std::uint64_t tensor_bytes_of_file(int fd, std::uint64_t file_bytes);

// Whether the file says that it is sealed: for a look at files of a store that has no policy. Never throws for what is in it.
bool is_sealed_file(int fd, const std::string& path);

}  // namespace draftflow::store
