// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/generation_file.h"

#include <fmt/format.h>
#include <unistd.h>

#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>  // AVX2 where there is one: twice as fast
#else
#include <xxhash.h>
#endif

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "draftflow/base/error.h"
#include "draftflow/base/gather_writer.h"
#include "draftflow/base/text.h"
#include "store/ref_maker.h"

namespace draftflow::store {
namespace {

constexpr std::size_t kDigits = 16;     // of a checksum
constexpr std::size_t kTagDigits = 32;  // of a tag, and of a salt
constexpr std::string_view kFormatKey = "format", kFormat = "draftflow.generation.1";
constexpr std::string_view kHeaderKey = "header_xxh3_64", kChunksKey = "chunks_xxh3_64", kPackedKey = "packed";
constexpr std::string_view kSealKey = "seal", kSaltKey = "file_salt", kHeaderTagKey = "header_poly1305",
                           kTagsKey = "chunk_tags";
constexpr std::uint64_t kFirstReadBytes = 16 << 10;  // header and, of a small sample, everything

std::string digits_of(std::uint64_t hash) {
  std::string digits(kDigits, '0');
  for (auto at = digits.rbegin(); hash != 0; hash >>= 4) *at++ = "0123456789abcdef"[hash & 15];
  return digits;
}

std::uint64_t hash_of(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::uint64_t chunks_in(std::uint64_t bytes) {
  return (bytes + kChecksumChunkBytes - 1) / kChecksumChunkBytes;
}

void write_at(int fd, std::span<const std::byte> data, std::uint64_t offset, const std::string& path) {
  while (!data.empty()) {
    const ssize_t wrote = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (wrote < 0) {
      if (errno == EINTR) continue;
      throw_errno(errno, "writing " + path);
    }
    offset += static_cast<std::uint64_t>(wrote);
    data = data.subspan(static_cast<std::size_t>(wrote));
  }
}

// Where the value of a metadata key starts, or npos. Within a JSON string the quotes would be escaped, so the first match
// is the key itself, whatever a hostile id or name contains.
std::size_t find_value(std::string_view header, std::string_view key) {
  const std::string pattern = fmt::format("\"{}\":\"", key);
  const std::size_t at = header.find(pattern);
  return at == std::string_view::npos ? at : at + pattern.size();
}

// In place: nothing moves.
void set_value(std::string& header, std::string_view key, std::string_view value) {
  std::copy(value.begin(), value.end(), header.begin() + static_cast<std::ptrdiff_t>(find_value(header, key)));
}

// The value of a key in a header not parsed yet; empty if it is not there whole.
std::string_view raw_value(std::string_view header, std::string_view key, std::size_t size) {
  const std::size_t at = find_value(header, key);
  return at == std::string_view::npos || at + size > header.size() ? std::string_view() : header.substr(at, size);
}

// The checksum of a header is taken with zeros in its own place.
std::string header_checksum(std::string header) {
  set_value(header, kHeaderKey, std::string(kDigits, '0'));
  return digits_of(hash_of(std::as_bytes(std::span(header))));
}

// And its tag with zeros in the places of both.
Tag header_tag(std::string header, const FileKeys& keys) {
  set_value(header, kHeaderKey, std::string(kDigits, '0'));
  set_value(header, kHeaderTagKey, std::string(kTagDigits, '0'));
  return tag_chunk(keys, kHeaderIndex, std::as_bytes(std::span(header)));
}

std::string_view seal_name(bool encrypted) {
  return encrypted ? "aes-256-gcm" : "poly1305";
}

FileIdentity file_identity(const Identity& identity) {
  return {identity.store_id, identity.incarnation, identity.sample_id, identity.generation};
}

std::string blank_header(const Identity& identity, const PackedSample& sample, const std::optional<Sealing>& sealing) {
  std::uint64_t chunks = 0;
  for (const auto& [name, part] : sample.parts) chunks += chunks_in(part.bytes.size());
  std::vector<std::pair<std::string, std::string>> metadata{{std::string(kFormatKey), std::string(kFormat)},
                                                            {std::string(kHeaderKey), std::string(kDigits, '0')},
                                                            {"store_id", identity.store_id},
                                                            {"incarnation", identity.incarnation},
                                                            {"sample_id", identity.sample_id},
                                                            {"generation", std::to_string(identity.generation)}};
  if (!sample.packed.empty()) metadata.emplace_back(kPackedKey, packed_to_json(sample.packed));
  if (sealing) {
    metadata.emplace_back(kSealKey, seal_name(sealing->encrypted));
    metadata.emplace_back(kSaltKey, to_hex(sealing->salt));
    metadata.emplace_back(kHeaderTagKey, std::string(kTagDigits, '0'));
    metadata.emplace_back(kTagsKey, std::string(chunks * kTagDigits, '0'));
  } else {
    metadata.emplace_back(kChunksKey, std::string(chunks * kDigits, '0'));
  }
  return make_safetensors_header(sample.parts, metadata);
}

// What the header keeps of each chunk: its checksum or, where sealed, its tag.
class ChunkDigests {
 public:
  explicit ChunkDigests(const std::optional<Sealing>& sealing) : sealing_(sealing) {}

  // The bytes to write in the chunk's place: its own, or `encrypted` filled with what they are encrypted.
  std::span<const std::byte> take(std::span<const std::byte> chunk, std::vector<std::byte>& encrypted) {
    if (!sealing_) {
      digests_ += digits_of(hash_of(chunk));
      return chunk;
    }
    Tag tag;
    if (sealing_->encrypted) {
      encrypted.resize(chunk.size());
      encrypt_chunk(sealing_->keys, index_, chunk, encrypted, tag);
      chunk = encrypted;
    } else {
      tag = tag_chunk(sealing_->keys, index_, chunk);
    }
    ++index_;
    digests_ += to_hex(tag);
    return chunk;
  }

  const std::string& digests() const { return digests_; }

 private:
  const std::optional<Sealing>& sealing_;
  std::uint64_t index_ = 0;
  std::string digests_;
};

}  // namespace

std::string describe(const Identity& identity) {
  return fmt::format("sample '{}' generation {} of store '{}'", printable(identity.sample_id), identity.generation,
                     printable(identity.store_id));
}

void write_generation(int fd, const std::string& path, const Identity& identity, const PackedSample& sample, const Keys* keys) {
  std::optional<Sealing> sealing;
  if (keys != nullptr) {
    const FileSalt salt = random_file_salt();
    sealing = Sealing{file_keys(*keys, file_identity(identity), salt), salt, keys->encrypted};
  }
  std::string header = blank_header(identity, sample, sealing);
  const bool one_write = header.size() + bytes_of(sample.parts) <= GatherWriter::kWindowBytes;
  ChunkDigests digests(sealing);
  GatherWriter out(fd, path);
  std::vector<std::vector<std::byte>> encrypted;  // until it is written
  out.add(std::as_bytes(std::span(header)));      // holds its place, and is filled in below
  for (const auto& [name, part] : sample.parts) {
    for (std::uint64_t at = 0; at < part.bytes.size(); at += kChecksumChunkBytes) {
      const auto chunk = part.bytes.subspan(at, std::min<std::uint64_t>(kChecksumChunkBytes, part.bytes.size() - at));
      out.add(digests.take(chunk, encrypted.emplace_back()));
      if (one_write) continue;
      if (!encrypted.back().empty()) out.flush();
      encrypted.clear();
    }
  }
  set_value(header, sealing ? kTagsKey : kChunksKey, digests.digests());
  if (sealing) set_value(header, kHeaderTagKey, to_hex(header_tag(header, sealing->keys)));
  set_value(header, kHeaderKey, header_checksum(header));
  const bool is_down = out.written() > 0;
  out.flush();
  if (is_down) write_at(fd, std::as_bytes(std::span(header)), 0, path);
}

GenerationReader::GenerationReader(UniqueFd fd, std::string path, Identity identity, const Keys* keys)
    : fd_(std::move(fd)), path_(std::move(path)), identity_(std::move(identity)) {
  read_header(keys);
  check_identity();
  list_tensors();
}

void GenerationReader::check_identity() {
  const auto expect = [&](std::string_view key, const std::string& wanted) {
    const std::string* found = header_.find_metadata(key);
    if (found == nullptr) fail(fmt::format("the file's metadata has no '{}'", key));
    if (*found != wanted) {
      fail(fmt::format("the file says {} '{}' where '{}' was expected: it is another one's file", key, printable(*found),
                       printable(wanted)));
    }
  };
  expect(kFormatKey, std::string(kFormat));
  expect("store_id", identity_.store_id);
  expect("incarnation", identity_.incarnation);
  expect("sample_id", identity_.sample_id);
  expect("generation", std::to_string(identity_.generation));
  if (sealing_) {
    expect(kSealKey, std::string(seal_name(sealing_->encrypted)));
  } else if (header_.find_metadata(kSealKey) != nullptr) {
    fail(
        "the file is sealed, but the store has no access policy: somebody took it away; put the store's access folder and "
        "store.json back from a copy");
  }
  std::uint64_t chunks = 0;
  for (const SafetensorsEntry& entry : header_.entries) chunks += chunks_in(entry.end - entry.begin);
  const std::string* found = header_.find_metadata(sealing_ ? kTagsKey : kChunksKey);
  if (found == nullptr || found->size() != chunks * (sealing_ ? kTagDigits : kDigits)) {
    fail(fmt::format("the file does not hold one {} for each chunk", sealing_ ? "tag" : "checksum"));
  }
  digests_ = *found;
}

void GenerationReader::list_tensors() {
  std::vector<StoredTensor> packed;
  if (const std::string* found = header_.find_metadata(kPackedKey)) {
    try {
      packed = packed_from_json(*found);
    } catch (const Corrupt& error) {
      fail(error.what());
    }
  }
  const std::string ending = scale_name("");
  for (const SafetensorsEntry& entry : header_.entries) {
    if (const StoredTensor* found = find_stored(packed, entry.name)) {
      tensors_.push_back(*found);
      continue;
    }
    const std::string_view name = entry.name;
    if (name.ends_with(ending) && find_stored(packed, name.substr(0, name.size() - ending.size())) != nullptr) {
      continue;  // the scales of a tensor listed by its own name
    }
    tensors_.push_back({entry.name, Codec::kRaw, entry.dtype, entry.shape});
  }
}

void GenerationReader::read_header(const Keys* keys) {
  const std::uint64_t size = file_size(fd_.get(), path_);
  head_.resize(std::min(size, kFirstReadBytes));
  try {
    read_exact(fd_.get(), std::as_writable_bytes(std::span(head_)), 0, path_);
    std::string head = head_;
    std::uint64_t length = 0;
    if (head.size() < sizeof(length)) fail(fmt::format("the file has only {} bytes", size));
    std::memcpy(&length, head.data(), sizeof(length));
    if (length > kMaxSafetensorsHeaderBytes || length > size - sizeof(length)) {
      fail(fmt::format("the file has {} bytes, but claims a header of {}: it is truncated or damaged", size, length));
    }
    const std::uint64_t have = std::min<std::uint64_t>(head.size(), sizeof(length) + length);
    head.resize(sizeof(length) + length);
    read_exact(fd_.get(), std::as_writable_bytes(std::span(head)).subspan(have), have, path_);
    const std::string_view checksum = raw_value(head, kHeaderKey, kDigits);
    if (checksum.empty() || checksum != header_checksum(head)) {
      fail("the header's checksum differs: the file is damaged or not draftflow's");
    }
    if (keys != nullptr) open_seal(head, *keys);
    header_ = parse_safetensors_header(std::as_bytes(std::span(head)), size, path_);
  } catch (const Corrupt& error) {
    const std::string_view text = error.what();
    if (text.starts_with(describe(identity_))) throw;
    fail(std::string(text));
  }
}

// Before anything else in the header is believed.
void GenerationReader::open_seal(const std::string& head, const Keys& keys) {
  Sealing sealing{.encrypted = keys.encrypted};
  Tag tag;
  if (!from_hex(raw_value(head, kSaltKey, kTagDigits), sealing.salt) ||
      !from_hex(raw_value(head, kHeaderTagKey, kTagDigits), tag)) {
    fail("the file is not sealed, as all files of a store with a secret are: somebody without the secret put it there");
  }
  sealing.keys = file_keys(keys, file_identity(identity_), sealing.salt);
  if (!same_tag(header_tag(head, sealing.keys), tag)) {
    fail("the header's tag differs: the file was forged or altered, or is another sample's or generation's");
  }
  sealing_ = std::move(sealing);
}

const StoredTensor& GenerationReader::find(const FeatureSpec& spec) const {
  const StoredTensor* found = find_stored(tensors_, spec.name);
  if (found == nullptr) fail(fmt::format("the file has no tensor '{}', which the ref names", printable(spec.name)));
  if (found->dtype != spec.dtype || found->shape != spec.shape) {
    check_against_spec(spec, found->dtype, found->shape, fmt::format("{} ({})", describe(identity_), path_));
  }
  return *found;
}

std::optional<GenerationReader::Place> GenerationReader::find_part(std::string_view name) const {
  std::size_t first_chunk = 0;
  for (const SafetensorsEntry& entry : header_.entries) {
    if (entry.name == name) return Place{&entry, first_chunk};
    first_chunk += chunks_in(entry.end - entry.begin);
  }
  return std::nullopt;
}

void GenerationReader::check_hash(const FeatureSpec& spec, std::size_t chunk, std::uint64_t at, std::uint64_t size,
                                  std::uint64_t hash) const {
  const std::string found = digits_of(hash);
  const std::string_view wanted = std::string_view(digests_).substr(chunk * kDigits, kDigits);
  if (found == wanted) return;
  fail(fmt::format("tensor '{}' differs from what was written, in its bytes {} to {} (checksum {}, not {})",
                   printable(spec.name), at, at + size, found, wanted));
}

Tag GenerationReader::tag_of(std::size_t chunk) const {
  Tag tag;
  if (!from_hex(std::string_view(digests_).substr(chunk * kTagDigits, kTagDigits), tag))
    fail("a chunk's tag is not hex digits");
  return tag;
}

void GenerationReader::check_chunk(const FeatureSpec& spec, std::size_t chunk, std::uint64_t at,
                                   std::span<const std::byte> bytes) const {
  if (!sealing_) return check_hash(spec, chunk, at, bytes.size(), hash_of(bytes));
  if (same_tag(tag_chunk(sealing_->keys, chunk, bytes), tag_of(chunk))) return;
  fail(fmt::format("tensor '{}' was altered in its bytes {} to {} (its tag differs)", printable(spec.name), at,
                   at + bytes.size()));
}

// `end`: of the part in the file; what ends in the first bytes, which are read already, is copied from there.
void GenerationReader::load(const FeatureSpec& spec, std::uint64_t at, std::span<std::byte> out, std::uint64_t end) const {
  try {
    if (end <= head_.size()) {
      std::memcpy(out.data(), head_.data() + at, out.size());
    } else {
      read_exact(fd_.get(), out, at, path_);
    }
  } catch (const Corrupt& error) {
    fail(fmt::format("tensor '{}': {}", printable(spec.name), error.what()));
  }
}

void GenerationReader::fill(const FeatureSpec& spec, const Place& place, std::span<std::byte> out, bool verify) const {
  const std::uint64_t begin = header_.data_offset + place.entry->begin;
  std::size_t index = place.first_chunk;
  for (std::uint64_t at = 0; at < out.size(); at += kChecksumChunkBytes, ++index) {
    const auto chunk = out.subspan(at, std::min<std::uint64_t>(kChecksumChunkBytes, out.size() - at));
    load(spec, begin + at, chunk, begin + out.size());
    if (verify) check_hash(spec, index, at, chunk.size(), hash_of(chunk));  // while it is in cache
  }
}

void GenerationReader::fill_sealed(const FeatureSpec& spec, const Place& place, std::span<std::byte> out) const {
  const std::uint64_t begin = header_.data_offset + place.entry->begin;
  std::size_t index = place.first_chunk;
  for (std::uint64_t at = 0; at < out.size(); at += kChecksumChunkBytes, ++index) {
    const auto chunk = out.subspan(at, std::min<std::uint64_t>(kChecksumChunkBytes, out.size() - at));
    load(spec, begin + at, chunk, begin + out.size());
    if (!sealing_->encrypted) {
      check_chunk(spec, index, at, chunk);
    } else if (!decrypt_chunk(sealing_->keys, index, chunk, chunk, tag_of(index))) {
      fail(fmt::format("tensor '{}' was altered in its bytes {} to {} (it does not decrypt)", printable(spec.name), at,
                       at + chunk.size()));
    }
  }
}

Tensor GenerationReader::read_part(const FeatureSpec& spec, const Place& place, BufferPool& pool, bool verify) const {
  auto [tensor, out] = pool.allocate(place.entry->dtype, place.entry->shape);
  if (sealing_) {
    fill_sealed(spec, place, out);
  } else {
    fill(spec, place, out, verify);
  }
  return tensor;
}

Tensor GenerationReader::read(const FeatureSpec& spec, BufferPool& pool, bool verify) const {
  const StoredTensor& stored = find(spec);
  if (stored.codec != Codec::kRaw) return unpack(spec, stored, pool, verify);
  return read_part(spec, *find_part(spec.name), pool, verify);
}

Tensor GenerationReader::unpack(const FeatureSpec& spec, const StoredTensor& stored, BufferPool& pool, bool verify) const {
  TensorMap parts;
  for (const std::string& name : {spec.name, scale_name(spec.name)}) {
    if (const auto place = find_part(name)) parts.emplace_back(name, read_part(spec, *place, pool, verify));
  }
  try {
    return decode(stored.codec, spec.name, stored.dtype, stored.shape, parts);
  } catch (const Corrupt& error) {
    fail(error.what());
  }
}

TensorMap GenerationReader::map(const std::vector<const FeatureSpec*>& specs, bool verify) const {
  for (const FeatureSpec* spec : specs) {
    const Codec codec = find(*spec).codec;
    if (codec == Codec::kRaw && !(sealing_ && sealing_->encrypted)) continue;
    throw InvalidArgument(
        fmt::format("zero-copy get of tensor '{}' of {}: its bytes are {} and must be copied out: leave "
                    "zero_copy out",
                    printable(spec->name), describe(identity_),
                    codec == Codec::kRaw ? "encrypted" : fmt::format("packed by {}", codec_name(codec))));
  }
  const MappedFile file = map_file(fd_.get(), path_);
  TensorMap tensors;
  for (const FeatureSpec* spec : specs) {
    const Place place = *find_part(spec->name);
    const auto bytes = file.bytes.subspan(header_.data_offset + place.entry->begin, place.entry->end - place.entry->begin);
    for (std::uint64_t at = 0; (verify || sealing_) && at < bytes.size(); at += kChecksumChunkBytes) {
      const auto chunk = bytes.subspan(at, std::min<std::uint64_t>(kChecksumChunkBytes, bytes.size() - at));
      check_chunk(*spec, place.first_chunk + at / kChecksumChunkBytes, at, chunk);
    }
    tensors.emplace_back(spec->name, Tensor{place.entry->dtype, place.entry->shape, bytes, file.owner});
  }
  return tensors;
}

void GenerationReader::fail(const std::string& problem) const {
  throw Corrupt(fmt::format("{} ({}): {}; drop this sample or capture it again", describe(identity_), path_, problem));
}

std::uint64_t tensor_bytes_of_file(int fd, std::uint64_t file_bytes) {
  std::uint64_t length = 0;
  if (::pread(fd, &length, sizeof(length), 0) != sizeof(length)) return file_bytes;
  return length > file_bytes || file_bytes - length < sizeof(length) ? file_bytes : file_bytes - length - sizeof(length);
}

bool is_sealed_file(int fd, const std::string& path) {
  try {
    return read_safetensors_header(fd, path).find_metadata(kSealKey) != nullptr;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace draftflow::store
