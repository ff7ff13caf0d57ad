// SPDX-License-Identifier: Apache-2.0
#include "formats/zip.h"

#include <fmt/format.h>
#include <libdeflate.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <string>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::formats {
namespace {

// Sizes and signatures of the records (PKWARE APPNOTE 4.3).
constexpr std::uint64_t kEndBytes = 22, kEnd64Bytes = 56, kLocator64Bytes = 20, kCentralBytes = 46, kLocalBytes = 30;
constexpr std::uint32_t kEndMark = 0x06054b50, kEnd64Mark = 0x06064b50, kLocator64Mark = 0x07064b50;
constexpr std::uint32_t kCentralMark = 0x02014b50, kLocalMark = 0x04034b50;
constexpr std::uint16_t kFlagSizesFollow = 1U << 3, kFlagUtf8 = 1U << 11, kFlagEncrypted = 1U << 0;
constexpr std::uint32_t kIn64 = 0xffffffff;  // the value is in the zip64 record or field

struct Directory {
  std::uint64_t begin = 0, end = 0, entries = 0;
};

struct Central {
  std::string_view name;
  std::uint16_t flags = 0, method = 0;
  std::uint32_t crc = 0;
  std::uint64_t size = 0, packed_size = 0, local = 0;
};

struct Extent {
  std::uint64_t begin, end;
  std::string_view name;
};

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, std::string_view what, const Fetch& fetch = {})
      : bytes_(bytes), what_(what), fetch_(fetch) {}

  std::vector<ZipEntry> entries() const {
    const Directory directory = find_directory();
    fetch(directory.begin, directory.end - directory.begin);
    const auto expected = static_cast<std::size_t>(std::min<std::uint64_t>(directory.entries, 1024));
    std::vector<ZipEntry> found;
    std::vector<Extent> extents;
    found.reserve(expected);
    extents.reserve(expected);
    std::set<std::string_view> names;
    std::uint64_t at = directory.begin;
    for (std::uint64_t i = 0; i < directory.entries; ++i) {
      const Central entry = read_central(at, directory.end);
      if (!names.insert(entry.name).second) fail(fmt::format("has two entries '{}'", printable(entry.name)));
      const std::span<const std::byte> data = entry_data(entry, directory.begin);
      extents.push_back({entry.local, static_cast<std::uint64_t>(data.data() - bytes_.data()) + data.size(), entry.name});
      found.push_back({entry.name, data, entry.crc});
    }
    if (at != directory.end) fail(fmt::format("has {} stray bytes after its directory", directory.end - at));
    check_overlaps(extents);
    return found;
  }

  std::optional<ZipEntry> first_entry() const {
    const std::uint64_t end = bytes_.size();
    if (!fits(0, kLocalBytes, end) || get<std::uint32_t>(0) != kLocalMark) return std::nullopt;
    const std::uint64_t size = get<std::uint32_t>(22), name = get<std::uint16_t>(26), extra = get<std::uint16_t>(28);
    const bool plain = get<std::uint16_t>(6) == 0 && get<std::uint16_t>(8) == 0 && get<std::uint32_t>(18) == size;
    if (!plain || !fits(kLocalBytes, name + extra + size, end)) return std::nullopt;
    const ZipEntry entry{text(kLocalBytes, name), bytes_.subspan(kLocalBytes + name + extra, size), get<std::uint32_t>(14)};
    check(entry, entry.data);
    return entry;
  }

  void check(const ZipEntry& entry, std::span<const std::byte> data) const {
    const std::uint32_t actual = ::libdeflate_crc32(0, data.data(), data.size());
    if (actual != entry.crc) {
      fail(fmt::format("entry '{}' has CRC-32 {:08x}, but {:08x} was written", printable(entry.name), actual, entry.crc));
    }
  }

 private:
  void fetch(std::uint64_t at, std::uint64_t size) const {
    if (fetch_ && size > 0) fetch_(at, size);
  }

  [[noreturn]] void fail(const std::string& problem) const {
    throw Corrupt(fmt::format("{}: the zip {}: the file is truncated or damaged", what_, problem));
  }

  bool fits(std::uint64_t at, std::uint64_t bytes, std::uint64_t end) const { return at <= end && bytes <= end - at; }

  template <class T>
  T get(std::uint64_t at) const {  // callers have checked the record that holds it
    T value;
    std::memcpy(&value, bytes_.data() + at, sizeof(T));
    return value;
  }

  std::string_view text(std::uint64_t at, std::uint64_t size) const {
    return {reinterpret_cast<const char*>(bytes_.data()) + at, size};
  }

  Directory find_directory() const {
    if (bytes_.size() < kEndBytes) fail(fmt::format("has {} bytes, too few", bytes_.size()));
    const std::uint64_t end = bytes_.size() - kEndBytes;
    const std::uint64_t tail = std::min<std::uint64_t>(bytes_.size(), kEndBytes + kLocator64Bytes);
    fetch(bytes_.size() - tail, tail);
    if (get<std::uint32_t>(end) != kEndMark || get<std::uint16_t>(end + 20) != 0) fail("does not end with an end record");
    Directory directory;
    directory.entries = get<std::uint16_t>(end + 10);
    const std::uint32_t size = get<std::uint32_t>(end + 12), offset = get<std::uint32_t>(end + 16);
    const bool has64 = end >= kLocator64Bytes && get<std::uint32_t>(end - kLocator64Bytes) == kLocator64Mark;
    if (has64) return find_directory64(end, directory.entries, size, offset);
    if (get<std::uint32_t>(end + 4) != 0 || get<std::uint16_t>(end + 8) != directory.entries) fail("is split over disks");
    directory.begin = offset;
    directory.end = directory.begin + size;
    if (directory.end != end)
      fail(fmt::format("has its directory at {} to {}, but it should end at {}", offset, directory.end, end));
    return directory;
  }

  // torch writes the zip64 records always; the 32-bit ones must then agree or say "see there".
  Directory find_directory64(std::uint64_t end, std::uint64_t entries16, std::uint32_t size32, std::uint32_t offset32) const {
    const std::uint64_t locator = end - kLocator64Bytes;
    const std::uint64_t record = get<std::uint64_t>(locator + 8);
    if (!fits(record, kEnd64Bytes, locator)) fail("has no zip64 end record");
    fetch(record, kEnd64Bytes);
    if (get<std::uint32_t>(record) != kEnd64Mark) fail("has no zip64 end record");
    if (get<std::uint64_t>(record + 4) != locator - record - 12) fail("has a zip64 end record of the wrong size");
    Directory directory;
    directory.entries = get<std::uint64_t>(record + 32);
    const std::uint64_t size = get<std::uint64_t>(record + 40);
    directory.begin = get<std::uint64_t>(record + 48);
    if (get<std::uint64_t>(record + 24) != directory.entries) fail("is split over disks");
    if (!fits(directory.begin, size, record)) fail("has its directory outside the file");
    directory.end = directory.begin + size;
    if (directory.end != record) fail("has a gap after its directory");
    const bool same = (entries16 == 0xffff || entries16 == directory.entries) && (size32 == kIn64 || size32 == size) &&
                      (offset32 == kIn64 || offset32 == directory.begin);
    if (!same) fail("has two end records that disagree");
    return directory;
  }

  Central read_central(std::uint64_t& at, std::uint64_t end) const {
    if (!fits(at, kCentralBytes, end) || get<std::uint32_t>(at) != kCentralMark)
      fail("has fewer directory entries than it says");
    Central entry;
    entry.flags = get<std::uint16_t>(at + 8);
    entry.method = get<std::uint16_t>(at + 10);
    entry.crc = get<std::uint32_t>(at + 16);
    entry.packed_size = get<std::uint32_t>(at + 20);
    entry.size = get<std::uint32_t>(at + 24);
    entry.local = get<std::uint32_t>(at + 42);
    const std::uint64_t name = get<std::uint16_t>(at + 28), extra = get<std::uint16_t>(at + 30),
                        comment = get<std::uint16_t>(at + 32);
    if (!fits(at, kCentralBytes + name + extra + comment, end)) fail("has a directory entry that leaves the directory");
    entry.name = text(at + kCentralBytes, name);
    read_extra64(at + kCentralBytes + name, extra, {&entry.size, &entry.packed_size, &entry.local}, entry.name);
    at += kCentralBytes + name + extra + comment;
    return entry;
  }

  // Replaces the values that say "see there" by those of the zip64 field, in the order that the format fixes.
  void read_extra64(std::uint64_t at, std::uint64_t bytes, std::initializer_list<std::uint64_t*> values,
                    std::string_view name) const {
    const bool needed = std::any_of(values.begin(), values.end(), [](const std::uint64_t* value) { return *value == kIn64; });
    const std::uint64_t end = at + bytes;
    while (needed && fits(at, 4, end)) {
      const std::uint64_t size = get<std::uint16_t>(at + 2);
      const bool is64 = get<std::uint16_t>(at) == 1;
      at += 4;
      if (!fits(at, size, end)) break;
      if (is64) {
        const std::uint64_t field_end = at + size;
        for (std::uint64_t* value : values) {
          if (*value != kIn64) continue;
          if (!fits(at, 8, field_end)) fail(fmt::format("has too short a zip64 field at entry '{}'", printable(name)));
          *value = get<std::uint64_t>(at);
          at += 8;
        }
        return;
      }
      at += size;
    }
    if (needed) fail(fmt::format("has no zip64 field at entry '{}', which needs it", printable(name)));
  }

  std::span<const std::byte> entry_data(const Central& entry, std::uint64_t end) const {
    const auto name = [&] { return printable(entry.name); };  // for messages
    const bool inside = fits(entry.local, kLocalBytes, end);
    if (inside) fetch(entry.local, kLocalBytes);
    if (!inside || get<std::uint32_t>(entry.local) != kLocalMark) {
      fail(fmt::format("has no entry '{}' where its directory says", name()));
    }
    const std::uint64_t at = entry.local;
    const std::uint64_t name_bytes = get<std::uint16_t>(at + 26), extra_bytes = get<std::uint16_t>(at + 28);
    if (!fits(at, kLocalBytes + name_bytes + extra_bytes, end))
      fail(fmt::format("has an entry '{}' that leaves the file", name()));
    fetch(at + kLocalBytes, name_bytes + extra_bytes);
    if (text(at + kLocalBytes, name_bytes) != entry.name || get<std::uint16_t>(at + 6) != entry.flags ||
        get<std::uint16_t>(at + 8) != entry.method) {
      fail(fmt::format("has an entry '{}' that its directory describes otherwise", name()));
    }
    refuse_unless_plain(entry);
    if (entry.packed_size != entry.size) fail(fmt::format("has a stored entry '{}' with two sizes", name()));
    std::uint64_t packed = get<std::uint32_t>(at + 18), size = get<std::uint32_t>(at + 22);
    read_extra64(at + kLocalBytes + name_bytes, extra_bytes, {&size, &packed}, entry.name);
    const bool later = (entry.flags & kFlagSizesFollow) != 0 && size == 0 && packed == 0;
    if (!later && (size != entry.size || packed != entry.size)) {
      fail(fmt::format("has an entry '{}' whose sizes disagree with the directory", name()));
    }
    const std::uint64_t data = at + kLocalBytes + name_bytes + extra_bytes;
    if (!fits(data, entry.size, end))
      fail(fmt::format("has an entry '{}' of {} bytes, more than the file holds", name(), entry.size));
    return bytes_.subspan(data, entry.size);
  }

  void refuse_unless_plain(const Central& entry) const {
    const auto refuse = [&](const char* problem) {
      throw InvalidArgument(fmt::format("{}: the zip entry '{}' is {}: only stored entries are read, as torch.save writes them",
                                        what_, printable(entry.name), problem));
    };
    if ((entry.flags & kFlagEncrypted) != 0) refuse("encrypted");
    if (entry.method != 0) refuse("compressed");
    if ((entry.flags & ~(kFlagSizesFollow | kFlagUtf8)) != 0) refuse("of a kind unknown here (its flags)");
  }

  void check_overlaps(std::vector<Extent>& extents) const {
    std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
    for (std::size_t i = 1; i < extents.size(); ++i) {
      if (extents[i].begin < extents[i - 1].end) {
        fail(fmt::format("has overlapping entries '{}' and '{}'", printable(extents[i - 1].name), printable(extents[i].name)));
      }
    }
  }

  std::span<const std::byte> bytes_;
  std::string_view what_;
  Fetch fetch_;
};

}  // namespace

std::vector<ZipEntry> read_stored_zip(std::span<const std::byte> bytes, std::string_view what) {
  const Reader reader(bytes, what);
  std::vector<ZipEntry> entries = reader.entries();
  for (const ZipEntry& entry : entries) reader.check(entry, entry.data);
  return entries;
}

std::vector<ZipEntry> list_stored_zip(std::span<const std::byte> bytes, std::string_view what, const Fetch& fetch) {
  return Reader(bytes, what, fetch).entries();
}

void check_crc(const ZipEntry& entry, std::span<const std::byte> data, std::string_view what) {
  Reader(data, what).check(entry, data);
}

std::optional<ZipEntry> first_stored_entry(std::span<const std::byte> head, std::string_view what) {
  return Reader(head, what).first_entry();
}

}  // namespace draftflow::formats
