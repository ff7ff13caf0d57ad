// SPDX-License-Identifier: Apache-2.0
//
// Writes a zip of stored entries front to back, as torch.save lays it out: each entry's data aligned to 64 bytes by padding
// in its local header's extra field, checksums and sizes in front of the data, zip64 where a size or a place needs it, the
// zip64 end records always. Private to this room. Not thread-safe; the names and data given are not kept.
//
//   ZipWriter zip(sink);
//   zip.add("archive/version", bytes);
//   zip.finish();
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace draftflow::formats {

class ZipWriter {
 public:
  using Sink = std::function<void(std::span<const std::byte>)>;

  explicit ZipWriter(Sink sink) : sink_(std::move(sink)) {}

  void add(std::string name, std::span<const std::byte> data);  // name: ASCII, below 65,536 bytes, not given before
  void finish();                                                // the directory and the end records; call once, last

 private:
  struct Entry {
    std::string name;
    std::uint32_t crc = 0;
    std::uint64_t size = 0, local = 0;
  };
  void put_local_header(const Entry& entry);
  void put_directory_entry(const Entry& entry);
  void put(std::span<const std::byte> bytes);

  Sink sink_;
  std::uint64_t at_ = 0;
  std::vector<Entry> entries_;
};

}  // namespace draftflow::formats
