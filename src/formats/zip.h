// SPDX-License-Identifier: Apache-2.0
//
// A zip of stored (never compressed) entries, as torch.save writes it, read from memory. Every size and offset is checked
// against the bytes given, entries may not overlap or repeat a name, and every entry's CRC-32 is verified. Private to this
// room. Thread-safe.
//
//   for (const ZipEntry& entry : read_stored_zip(bytes, "a.ckpt")) use(entry.name, entry.data);
//
// A part of a zip can be read without the rest: `list_stored_zip` fetches the directory and the entries' headers alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace draftflow::formats {

constexpr std::string_view kNoteEntry = "note";  // of a torch zip of ours; torch has no entry of this name

struct ZipEntry {
  std::string_view name;  // both point into the input
  std::span<const std::byte> data;
  std::uint32_t crc = 0;  // by the directory
};

// Brings the bytes [at, at + size) of a file to their place in the span that is read. Empty: all are there.
using Fetch = std::function<void(std::uint64_t at, std::uint64_t size)>;

// In the order of the directory. Corrupt for damage; InvalidArgument for a compressed or encrypted entry.
std::vector<ZipEntry> read_stored_zip(std::span<const std::byte> bytes, std::string_view what);

// The same, but the entries' data are neither fetched nor verified.
std::vector<ZipEntry> list_stored_zip(std::span<const std::byte> bytes, std::string_view what, const Fetch& fetch);
// Corrupt if `data`, an entry's, has not the CRC-32 that the directory says.
void check_crc(const ZipEntry& entry, std::span<const std::byte> data, std::string_view what);

// The entry that a file begins with, by its local header alone and if it lies in `head`, the file's first bytes, whole; its
// CRC-32 is verified: Corrupt. Nothing for a file that begins with none, or with one that says its size behind the data.
std::optional<ZipEntry> first_stored_entry(std::span<const std::byte> head, std::string_view what);

}  // namespace draftflow::formats
