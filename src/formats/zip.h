// SPDX-License-Identifier: Apache-2.0
//
// A zip of stored (never compressed) entries, as torch.save writes it, read from memory. Every size and offset is checked
// against the bytes given, entries may not overlap or repeat a name, and every entry's CRC-32 is verified. Private to this
// room. Thread-safe.
//
//   for (const ZipEntry& entry : read_stored_zip(bytes, "a.ckpt")) use(entry.name, entry.data);
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace draftflow::formats {

struct ZipEntry {
  std::string_view name;  // both point into the input
  std::span<const std::byte> data;
};

// In the order of the directory. Corrupt for damage; InvalidArgument for a compressed or encrypted entry.
std::vector<ZipEntry> read_stored_zip(std::span<const std::byte> bytes, std::string_view what);

}  // namespace draftflow::formats
