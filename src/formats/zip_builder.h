// SPDX-License-Identifier: Apache-2.0
//
// For tests and fuzzing only: a zip of stored entries, laid out as torch.save does or, through the public knobs, wrongly.
//
//   std::string zip = ZipBuilder().add("a/data.pkl", pickle).add("a/data/0", bytes).finish();
#pragma once

#include <zlib.h>

#include <cstdint>
#include <string>
#include <vector>

namespace draftflow::testing_support {

class ZipBuilder {
 public:
  struct Entry {
    std::string name, data;
    std::uint16_t flags = 0, method = 0;
    std::uint32_t crc = 0, size = 0, packed_size = 0;  // as both headers say
    std::uint32_t local = 0;                           // as the directory says
    std::string local_name, extra, local_extra;
  };

  std::vector<Entry> entries;
  std::string file;  // entries so far; may be tampered with
  std::string comment;
  bool zip64 = true;  // torch writes the zip64 end records always

  ZipBuilder& add(const std::string& name, const std::string& data) { return add(Entry{.name = name, .data = data}); }

  ZipBuilder& add(Entry entry) {
    entry.crc = static_cast<std::uint32_t>(::crc32_z(0, reinterpret_cast<const Bytef*>(entry.data.data()), entry.data.size()));
    entry.size = entry.packed_size = static_cast<std::uint32_t>(entry.data.size());
    entry.local = static_cast<std::uint32_t>(file.size());
    if (entry.local_name.empty()) entry.local_name = entry.name;
    const std::size_t before = file.size() + 30 + entry.local_name.size() + entry.local_extra.size();
    if (entry.local_extra.empty()) {  // align the data to 64 bytes as torch does
      const std::size_t padding = (64 - (before + 4) % 64) % 64;
      entry.local_extra = "FB" + u16(padding) + std::string(padding, 'Z');
    }
    file += "PK\x03\x04" + u16(0) + u16(entry.flags) + u16(entry.method) + u32(0) + u32(entry.crc) + u32(entry.packed_size) +
            u32(entry.size) + u16(entry.local_name.size()) + u16(entry.local_extra.size()) + entry.local_name +
            entry.local_extra;
    file += entry.data;
    entries.push_back(std::move(entry));
    return *this;
  }

  std::string directory() const {
    std::string text;
    for (const Entry& entry : entries) {
      text += "PK\x01\x02" + u16(0) + u16(0) + u16(entry.flags) + u16(entry.method) + u32(0) + u32(entry.crc) +
              u32(entry.packed_size) + u32(entry.size) + u16(entry.name.size()) + u16(entry.extra.size()) + u16(0) + u16(0) +
              u16(0) + u32(0) + u32(entry.local) + entry.name + entry.extra;
    }
    return text;
  }

  std::string finish() const {
    const std::string central = directory();
    const std::uint64_t begin = file.size(), count = entries.size();
    std::string zip = file + central;
    if (zip64) {
      const std::uint64_t record = zip.size();
      zip += "PK\x06\x06" + u64(44) + u16(0) + u16(0) + u32(0) + u32(0) + u64(count) + u64(count) + u64(central.size()) +
             u64(begin);
      zip += "PK\x06\x07" + u32(0) + u64(record) + u32(1);
    }
    return zip + "PK\x05\x06" + u16(0) + u16(0) + u16(count) + u16(count) + u32(central.size()) + u32(begin) +
           u16(comment.size()) + comment;
  }

  static std::string u16(std::uint64_t value) { return little(value, 2); }
  static std::string u32(std::uint64_t value) { return little(value, 4); }
  static std::string u64(std::uint64_t value) { return little(value, 8); }

 private:
  static std::string little(std::uint64_t value, int bytes) {
    std::string text;
    for (int i = 0; i < bytes; ++i) text += static_cast<char>(value >> (8 * i));
    return text;
  }
};

}  // namespace draftflow::testing_support
