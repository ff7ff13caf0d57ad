// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/generation_file.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_STATIC_LINKING_ONLY  // for a hash state on the stack
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>  // AVX2 where there is one: twice as fast
#else
#include <xxhash.h>
#endif

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "store/ref_maker.h"

namespace draftflow::store {
namespace {

constexpr std::size_t kDigits = 16;
constexpr std::string_view kFormatKey = "format", kFormat = "draftflow.generation.1";
constexpr std::string_view kHeaderKey = "header_xxh3_64", kChunksKey = "chunks_xxh3_64";
constexpr std::uint64_t kFirstReadBytes = 16 << 10;  // header and, of a small sample, everything
constexpr std::uint64_t kPieceBytes = 256 << 10;     // read and hashed at once: it must still be in cache
constexpr std::uint64_t kSmallBytes = 64 << 10;      // a sample of fewer is written in one piece

std::string digits_of(std::uint64_t hash) {
  return fmt::format("{:016x}", hash);
}

std::uint64_t hash_of(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::uint64_t chunks_in(std::uint64_t bytes) {
  return (bytes + kChecksumChunkBytes - 1) / kChecksumChunkBytes;
}

void write_at(int fd, std::span<const std::byte> data, std::uint64_t offset, const std::filesystem::path& path) {
  while (!data.empty()) {
    const ssize_t wrote = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (wrote < 0) {
      if (errno == EINTR) continue;
      throw_errno(errno, "writing " + path.string());
    }
    offset += static_cast<std::uint64_t>(wrote);
    data = data.subspan(static_cast<std::size_t>(wrote));
  }
}

// In pieces, each written while it is in cache.
std::uint64_t write_hashed(int fd, std::span<const std::byte> chunk, std::uint64_t offset, const std::filesystem::path& path) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (std::uint64_t at = 0; at < chunk.size(); at += kPieceBytes) {
    const auto piece = chunk.subspan(at, std::min<std::uint64_t>(kPieceBytes, chunk.size() - at));
    XXH3_64bits_update(&state, piece.data(), piece.size());
    write_at(fd, piece, offset + at, path);
  }
  return XXH3_64bits_digest(&state);
}

TensorMap in_file_order(TensorMap tensors) {
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const auto& a, const auto& b) { return dtype_bytes(a.second.dtype) > dtype_bytes(b.second.dtype); });
  return tensors;
}

// Where the value of a metadata key starts, or npos. Within a JSON string the quotes would be escaped, so the first match
// is the key itself, whatever a hostile id or name contains.
std::size_t find_value(std::string_view header, std::string_view key) {
  const std::string pattern = fmt::format("\"{}\":\"", key);
  const std::size_t at = header.find(pattern);
  return at == std::string_view::npos ? at : at + pattern.size();
}

void set_value(std::string& header, std::string_view key, std::string_view value) {
  header.replace(find_value(header, key), value.size(), value);
}

// The checksum of a header is taken with zeros in its own place.
std::string header_checksum(std::string header) {
  set_value(header, kHeaderKey, std::string(kDigits, '0'));
  return digits_of(hash_of(std::as_bytes(std::span(header))));
}

std::string blank_header(const Identity& identity, const TensorMap& tensors) {
  std::uint64_t chunks = 0;
  for (const auto& [name, tensor] : tensors) chunks += chunks_in(tensor.bytes.size());
  return make_safetensors_header(tensors, {{std::string(kFormatKey), std::string(kFormat)},
                                           {std::string(kHeaderKey), std::string(kDigits, '0')},
                                           {"store_id", identity.store_id},
                                           {"incarnation", identity.incarnation},
                                           {"sample_id", identity.sample_id},
                                           {"generation", std::to_string(identity.generation)},
                                           {std::string(kChunksKey), std::string(chunks * kDigits, '0')}});
}

}  // namespace

std::string describe(const Identity& identity) {
  return fmt::format("sample '{}' generation {} of store '{}'", printable(identity.sample_id), identity.generation,
                     printable(identity.store_id));
}

void write_generation(int fd, const std::filesystem::path& path, const Identity& identity, const TensorMap& tensors) {
  const TensorMap ordered = in_file_order(tensors);
  std::string header = blank_header(identity, ordered);
  const bool small = header.size() + bytes_of(ordered) <= kSmallBytes;
  std::string file = small ? header : "";
  std::uint64_t offset = header.size();
  std::string checksums;
  for (const auto& [name, tensor] : ordered) {
    for (std::uint64_t at = 0; at < tensor.bytes.size(); at += kChecksumChunkBytes) {
      const auto chunk = tensor.bytes.subspan(at, std::min<std::uint64_t>(kChecksumChunkBytes, tensor.bytes.size() - at));
      if (small) {
        checksums += digits_of(hash_of(chunk));
        file.append(reinterpret_cast<const char*>(chunk.data()), chunk.size());
      } else {
        checksums += digits_of(write_hashed(fd, chunk, offset, path));
      }
      offset += chunk.size();
    }
  }
  set_value(header, kChunksKey, checksums);
  set_value(header, kHeaderKey, header_checksum(header));
  if (small) {
    file.replace(0, header.size(), header);
    write_at(fd, std::as_bytes(std::span(file)), 0, path);
  } else {
    write_at(fd, std::as_bytes(std::span(header)), 0, path);
  }
}

GenerationReader::GenerationReader(UniqueFd fd, std::filesystem::path path, Identity identity)
    : fd_(std::move(fd)), path_(std::move(path)), identity_(std::move(identity)) {
  read_header();
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
  std::uint64_t chunks = 0;
  for (const SafetensorsEntry& entry : header_.entries) chunks += chunks_in(entry.end - entry.begin);
  const std::string* found = header_.find_metadata(kChunksKey);
  if (found == nullptr || found->size() != chunks * kDigits) fail("the file does not hold one checksum for each chunk");
  checksums_ = *found;
}

void GenerationReader::read_header() {
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
    const std::size_t at = find_value(head, kHeaderKey);
    if (at == std::string::npos || at + kDigits > head.size() || head.substr(at, kDigits) != header_checksum(head)) {
      fail("the header's checksum differs: the file is damaged or not draftflow's");
    }
    header_ = parse_safetensors_header(std::as_bytes(std::span(head)), size, path_.string());
  } catch (const Corrupt& error) {
    const std::string_view text = error.what();
    if (text.starts_with(describe(identity_))) throw;
    fail(std::string(text));
  }
}

GenerationReader::Place GenerationReader::find(const FeatureSpec& spec) const {
  Place place{nullptr, 0};
  for (const SafetensorsEntry& candidate : header_.entries) {
    if (candidate.name == spec.name) {
      place.entry = &candidate;
      break;
    }
    place.first_chunk += chunks_in(candidate.end - candidate.begin);
  }
  if (place.entry == nullptr) fail(fmt::format("the file has no tensor '{}', which the ref names", printable(spec.name)));
  if (place.entry->dtype != spec.dtype || place.entry->shape != spec.shape) {
    check_against_spec(spec, place.entry->dtype, place.entry->shape,
                       fmt::format("{} ({})", describe(identity_), path_.string()));
  }
  return place;
}

void GenerationReader::check_chunk(const FeatureSpec& spec, std::size_t chunk, std::uint64_t at, std::uint64_t size,
                                   std::uint64_t hash) const {
  const std::string found = digits_of(hash);
  const std::string_view wanted = std::string_view(checksums_).substr(chunk * kDigits, kDigits);
  if (found == wanted) return;
  fail(fmt::format("tensor '{}' differs from what was written, in its bytes {} to {} (checksum {}, not {})",
                   printable(spec.name), at, at + size, found, wanted));
}

void GenerationReader::fill(const FeatureSpec& spec, const Place& place, std::span<std::byte> out, bool verify) const {
  const std::uint64_t begin = header_.data_offset + place.entry->begin;
  XXH3_state_t state;
  for (std::uint64_t at = 0; at < out.size(); at += kPieceBytes) {
    const auto piece = out.subspan(at, std::min<std::uint64_t>(kPieceBytes, out.size() - at));
    try {
      if (begin + out.size() <= head_.size()) {
        std::memcpy(piece.data(), head_.data() + begin + at, piece.size());
      } else {
        read_exact(fd_.get(), piece, begin + at, path_);
      }
    } catch (const Corrupt& error) {
      fail(fmt::format("tensor '{}': {}", printable(spec.name), error.what()));
    }
    if (!verify) continue;
    const std::uint64_t in_chunk = at % kChecksumChunkBytes, end = at + piece.size();
    if (in_chunk == 0) XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, piece.data(), piece.size());
    if (end % kChecksumChunkBytes != 0 && end != out.size()) continue;
    check_chunk(spec, place.first_chunk + at / kChecksumChunkBytes, at - in_chunk, in_chunk + piece.size(),
                XXH3_64bits_digest(&state));
  }
}

Tensor GenerationReader::read(const FeatureSpec& spec, BufferPool& pool, bool verify) const {
  const Place place = find(spec);
  auto [tensor, out] = pool.allocate(place.entry->dtype, place.entry->shape);
  fill(spec, place, out, verify);
  return tensor;
}

TensorMap GenerationReader::map(const std::vector<const FeatureSpec*>& specs, bool verify) const {
  const std::uint64_t size = file_size(fd_.get(), path_);
  void* memory = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd_.get(), 0);
  if (memory == MAP_FAILED) throw_errno(errno, "mapping " + path_.string());
  const std::shared_ptr<const void> owner(memory, [size](const void* mapped) { ::munmap(const_cast<void*>(mapped), size); });
  TensorMap tensors;
  for (const FeatureSpec* spec : specs) {
    const Place place = find(*spec);
    const std::span<const std::byte> bytes(static_cast<const std::byte*>(memory) + header_.data_offset + place.entry->begin,
                                           place.entry->end - place.entry->begin);
    for (std::uint64_t at = 0; verify && at < bytes.size(); at += kChecksumChunkBytes) {
      const auto chunk = bytes.subspan(at, std::min<std::uint64_t>(kChecksumChunkBytes, bytes.size() - at));
      check_chunk(*spec, place.first_chunk + at / kChecksumChunkBytes, at, chunk.size(), hash_of(chunk));
    }
    tensors.emplace_back(spec->name, Tensor{place.entry->dtype, place.entry->shape, bytes, owner});
  }
  return tensors;
}

void GenerationReader::fail(const std::string& problem) const {
  throw Corrupt(fmt::format("{} ({}): {}; drop this sample or capture it again", describe(identity_), path_.string(), problem));
}

std::uint64_t tensor_bytes_of_file(int fd, std::uint64_t file_bytes) {
  std::uint64_t length = 0;
  if (::pread(fd, &length, sizeof(length), 0) != sizeof(length)) return file_bytes;
  return length > file_bytes || file_bytes - length < sizeof(length) ? file_bytes : file_bytes - length - sizeof(length);
}

}  // namespace draftflow::store
