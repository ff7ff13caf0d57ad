// SPDX-License-Identifier: Apache-2.0
#include "formats/zip_writer.h"

#include <libdeflate.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

namespace draftflow::formats {
namespace {

static_assert(std::endian::native == std::endian::little, "the records are written as they lie in memory");

constexpr std::uint64_t kAlignment = 64;
constexpr std::uint64_t kIn64 = 0xffffffff;   // "see the zip64 field": what is this large or larger goes there
constexpr std::uint64_t kCountIn64 = 0xffff;  // the same for the number of entries
constexpr std::uint64_t kLocalBytes = 30, kFieldBytes = 4;
constexpr std::uint16_t kVersion = 45;                            // of the format: the first with zip64
constexpr std::uint16_t kZip64Field = 1, kPaddingField = 0x4246;  // "FB", as torch's
constexpr std::uint32_t kTimeAndDate = 0x210000;                  // midnight of 1980-01-01, the first that a zip can say
constexpr std::uint64_t kEnd64Rest = 44;                          // the zip64 end record without its first 12 bytes

constexpr auto kPadding = [] {  // of an entry, at most
  std::array<std::byte, kAlignment> bytes{};
  bytes.fill(std::byte{'Z'});
  return bytes;
}();

// The fixed part of one, at most 64 bytes, little-endian.
class Record {
 public:
  Record() = default;
  explicit Record(const char (&mark)[5]) { add(mark, 4); }

  Record& u16(std::uint64_t value) { return add(&value, 2); }
  Record& u32(std::uint64_t value) { return add(&value, 4); }
  Record& u64(std::uint64_t value) { return add(&value, 8); }

  std::size_t size() const { return size_; }
  std::span<const std::byte> bytes() const { return std::span(bytes_).first(size_); }

 private:
  Record& add(const void* value, std::size_t size) {
    std::memcpy(bytes_.data() + size_, value, size);
    size_ += size;
    return *this;
  }

  std::array<std::byte, 64> bytes_{};
  std::size_t size_ = 0;
};

std::uint64_t clipped(std::uint64_t value) {
  return std::min(value, kIn64);
}

}  // namespace

// A local header's zip64 field has both sizes or is absent.
void ZipWriter::put_local_header(const Entry& entry) {
  Record extra;
  if (entry.size >= kIn64) extra.u16(kZip64Field).u16(16).u64(entry.size).u64(entry.size);
  const std::uint64_t data = entry.local + kLocalBytes + entry.name.size() + extra.size() + kFieldBytes;
  const std::uint64_t padding = (kAlignment - data % kAlignment) % kAlignment;
  extra.u16(kPaddingField).u16(padding);
  put(Record("PK\x03\x04")
          .u16(kVersion)
          .u16(0)  // flags
          .u16(0)  // stored
          .u32(kTimeAndDate)
          .u32(entry.crc)
          .u32(clipped(entry.size))
          .u32(clipped(entry.size))
          .u16(entry.name.size())
          .u16(extra.size() + padding)
          .bytes());
  put(std::as_bytes(std::span(entry.name)));
  put(extra.bytes());
  put(std::span(kPadding).first(padding));
}

// The directory's zip64 field has what did not fit, in the order that the format fixes.
void ZipWriter::put_directory_entry(const Entry& entry) {
  Record extra;
  const bool large = entry.size >= kIn64, far = entry.local >= kIn64;
  if (large || far) extra.u16(kZip64Field).u16((large ? 16 : 0) + (far ? 8 : 0));
  if (large) extra.u64(entry.size).u64(entry.size);
  if (far) extra.u64(entry.local);
  put(Record("PK\x01\x02")
          .u16(kVersion)  // made by
          .u16(kVersion)
          .u16(0)
          .u16(0)
          .u32(kTimeAndDate)
          .u32(entry.crc)
          .u32(clipped(entry.size))
          .u32(clipped(entry.size))
          .u16(entry.name.size())
          .u16(extra.size())
          .u16(0)  // comment
          .u16(0)  // disk
          .u16(0)  // attributes inside
          .u32(0)  // and outside
          .u32(clipped(entry.local))
          .bytes());
  put(std::as_bytes(std::span(entry.name)));
  put(extra.bytes());
}

void ZipWriter::put(std::span<const std::byte> bytes) {
  at_ += bytes.size();
  if (!bytes.empty()) sink_(bytes);
}

void ZipWriter::add(std::string name, std::span<const std::byte> data) {
  const std::uint32_t crc = ::libdeflate_crc32(0, data.data(), data.size());
  Entry entry{.name = std::move(name), .crc = crc, .size = data.size(), .local = at_};
  put_local_header(entry);
  put(data);
  entries_.push_back(std::move(entry));
}

void ZipWriter::finish() {
  const std::uint64_t begin = at_, count = entries_.size();
  for (const Entry& entry : entries_) put_directory_entry(entry);
  const std::uint64_t record = at_, size = record - begin;
  put(Record("PK\x06\x06")
          .u64(kEnd64Rest)
          .u16(kVersion)
          .u16(kVersion)
          .u32(0)  // disks
          .u32(0)
          .u64(count)
          .u64(count)
          .u64(size)
          .u64(begin)
          .bytes());
  put(Record("PK\x06\x07").u32(0).u64(record).u32(1).bytes());
  put(Record("PK\x05\x06")
          .u16(0)
          .u16(0)
          .u16(std::min(count, kCountIn64))
          .u16(std::min(count, kCountIn64))
          .u32(clipped(size))
          .u32(clipped(begin))
          .u16(0)
          .bytes());
}

}  // namespace draftflow::formats
