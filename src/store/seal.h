// SPDX-License-Identifier: Apache-2.0
//
// Seals the file of one generation (docs/formats/access.md): a tag over each chunk and one over the header, by keys that
// belong to this file alone, so that nothing can be forged, altered, moved or replayed under another name; or each chunk
// encrypted, its tag then that of the cipher. Tags are in no file's order: the caller keeps them in the header.
//
// Poly1305 and AES-GCM keys must meet one message only. Three things make that hold: each file has keys of its own, out of
// its identity (never reused: a put that is retried takes a new generation) and 128 random bits that its writer draws; each
// chunk has its own index; and the writer tags an index once, the header when its bytes are final. The random bits are
// there for those who can write to the folder: deleting the markers that keep generations unique, or putting an old copy of
// the folder back, still makes no key serve twice.
//
// Values; thread-safe. Keys are derived per file in about a microsecond.
//
//   const FileSalt salt = random_file_salt();                                        // the header keeps it
//   const FileKeys keys = file_keys(store_keys, {store_id, incarnation, sample_id, generation}, salt);
//   const Tag tag = tag_chunk(keys, 0, bytes);
//   ... same_tag(tag_chunk(keys, 0, bytes_read), tag) ...
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "store/access.h"

namespace draftflow::store {

constexpr std::uint64_t kHeaderIndex = UINT64_MAX;  // tag_chunk of the header; never a chunk's
constexpr std::size_t kMaxSealedBytes = 1 << 30;    // of one chunk

using Tag = std::array<std::byte, 16>;
using FileSalt = std::array<std::byte, 16>;

FileSalt random_file_salt();

struct FileIdentity {
  std::string_view store_id, incarnation, sample_id;
  std::uint64_t generation = 0;
};

struct FileKeys {
  Key mac, cipher;
};

FileKeys file_keys(const Keys& keys, const FileIdentity& identity, const FileSalt& salt);

// Poly1305 with a key for this index of this file only.
Tag tag_chunk(const FileKeys& keys, std::uint64_t index, std::span<const std::byte> bytes);
bool same_tag(const Tag& a, const Tag& b);  // constant time

// AES-256-GCM, nonce = index. `out` is as long as `in`, and either the very same memory or apart from it. kHeaderIndex,
// other lengths and overlaps are InvalidArgument.
void encrypt_chunk(const FileKeys& keys, std::uint64_t index, std::span<const std::byte> in, std::span<std::byte> out,
                   Tag& tag);

// False, and `out` is zeros, unless these are the bytes that were encrypted under this index of this file.
bool decrypt_chunk(const FileKeys& keys, std::uint64_t index, std::span<const std::byte> in, std::span<std::byte> out,
                   const Tag& tag);

}  // namespace draftflow::store
