// SPDX-License-Identifier: Apache-2.0
#include "formats/codec_zstd.h"

#include <fmt/format.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::formats {
namespace {

constexpr int kLevel = 1;
constexpr std::uint32_t kFrameMagic = 0xFD2FB528, kTableMagic = 0x184D2A5E, kFooterMagic = 0x8F92EAB1;
constexpr std::size_t kHeadBytes = 8, kEntryBytes = 8, kFooterBytes = 9;
constexpr std::uint64_t kMostPerByte = 32768;   // a block of 128 KiB, all of one byte, takes 4
constexpr std::uint64_t kMaxFrames = 1U << 27;  // the published format's own limit
constexpr std::byte kReadableDescriptor{0x03};  // the two unused bits; checksums and reserved bits are not read

using Bytes = std::span<const std::byte>;

std::uint32_t load_u32(Bytes bytes, std::size_t at) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) value |= static_cast<std::uint32_t>(bytes[at + i]) << (8 * i);
  return value;
}

void store_u32(std::span<std::byte> bytes, std::size_t at, std::uint64_t value) {
  for (std::size_t i = 0; i < 4; ++i) bytes[at + i] = static_cast<std::byte>(value >> (8 * i));
}

[[noreturn]] void throw_damaged(std::string_view name, const std::string& what) {
  throw Corrupt(fmt::format("tensor '{}', packed by zstd: {}; the file is damaged", printable(name), what));
}

[[noreturn]] void throw_no_memory(std::string_view what) {
  throw Exhausted(fmt::format("no memory to {} a tensor by zstd: free some and try again", what));
}

struct Compressor {
  ZSTD_CCtx* context = ::ZSTD_createCCtx();
  Compressor() {
    if (context == nullptr) throw_no_memory("pack");
    ::ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, kLevel);
    ::ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  }
  Compressor(const Compressor&) = delete;
  Compressor& operator=(const Compressor&) = delete;
  ~Compressor() { ::ZSTD_freeCCtx(context); }
};

struct Decompressor {
  ZSTD_DCtx* context = ::ZSTD_createDCtx();
  Decompressor() {
    if (context == nullptr) throw_no_memory("unpack");
  }
  Decompressor(const Decompressor&) = delete;
  Decompressor& operator=(const Decompressor&) = delete;
  ~Decompressor() { ::ZSTD_freeDCtx(context); }

  // Fills `out` from one frame, which must unpack to exactly that.
  void unpack(std::string_view name, std::uint64_t frame, Bytes packed, std::span<std::byte> out) const {
    // Only what is one frame from end to end: neither older formats, nor a frame to skip, nor two in a row.
    if (packed.size() < 4 || load_u32(packed, 0) != kFrameMagic ||
        ::ZSTD_findFrameCompressedSize(packed.data(), packed.size()) != packed.size()) {
      throw_damaged(name, fmt::format("frame {} is not one zstd frame of {} bytes", frame, packed.size()));
    }
    const std::size_t result = ::ZSTD_decompressDCtx(context, out.data(), out.size(), packed.data(), packed.size());
    if (::ZSTD_isError(result) != 0) {
      if (::ZSTD_getErrorCode(result) == ZSTD_error_memory_allocation) throw_no_memory("unpack");
      throw_damaged(name,
                    fmt::format("frame {} does not unpack to {} bytes: {}", frame, out.size(), ::ZSTD_getErrorName(result)));
    }
    if (result != out.size()) {
      throw_damaged(name, fmt::format("frame {} unpacks to {} bytes, where the seek table says {}", frame, result, out.size()));
    }
  }
};

struct Frame {
  std::uint64_t number = 0;
  std::uint64_t packed_begin = 0, packed_bytes = 0;  // in the part
  std::uint64_t begin = 0, bytes = 0;                // in the tensor
};

// The table is walked where it lies: a copy of it could be larger than the tensor.
class SeekTable {
 public:
  SeekTable(std::string_view name, std::uint64_t bytes, Bytes packed) {
    if (packed.size() < kHeadBytes + kFooterBytes || load_u32(packed, packed.size() - 4) != kFooterMagic) {
      throw_damaged(name, fmt::format("its {} bytes do not end in a seek table", packed.size()));
    }
    const Bytes footer = packed.last(kFooterBytes);
    if ((footer[4] & ~kReadableDescriptor) != std::byte{0}) {
      throw_damaged(
          name, fmt::format("its seek table has the descriptor {:#04x}, which is not read", static_cast<unsigned>(footer[4])));
    }
    const std::uint64_t frames = load_u32(footer, 0);
    const std::uint64_t table_bytes = kHeadBytes + frames * kEntryBytes + kFooterBytes;
    if (table_bytes > packed.size()) {
      throw_damaged(name, fmt::format("a seek table of {} frames does not fit its {} bytes", frames, packed.size()));
    }
    const Bytes table = packed.last(table_bytes);
    if (load_u32(table, 0) != kTableMagic || load_u32(table, 4) != table_bytes - kHeadBytes) {
      throw_damaged(name, fmt::format("its seek table of {} frames does not begin where it should", frames));
    }
    entries_ = table.subspan(kHeadBytes, frames * kEntryBytes);
    check(name, bytes, packed.size() - table_bytes);
  }

  template <class F>
  void for_each(F f) const {
    Frame frame;
    for (std::size_t at = 0; at < entries_.size(); at += kEntryBytes) {
      frame.packed_bytes = load_u32(entries_, at);
      frame.bytes = load_u32(entries_, at + 4);
      f(frame);
      ++frame.number;
      frame.packed_begin += frame.packed_bytes;
      frame.begin += frame.bytes;
    }
  }

 private:
  void check(std::string_view name, std::uint64_t bytes, std::uint64_t packed_bytes) const {
    std::uint64_t unpacked = 0, packed = 0;  // fewer than 2^32 entries of fewer than 2^32: no overflow
    for_each([&](const Frame& frame) {
      if (frame.bytes == 0) throw_damaged(name, fmt::format("frame {} of its seek table is empty", frame.number));
      unpacked += frame.bytes;
      packed += frame.packed_bytes;
    });
    if (packed != packed_bytes) {
      throw_damaged(name, fmt::format("its seek table tells of {} packed bytes, and {} are there", packed, packed_bytes));
    }
    if (unpacked != bytes) {
      throw_damaged(name, fmt::format("its seek table tells of {} bytes, and the tensor has {}", unpacked, bytes));
    }
    for_each([&](const Frame& frame) {
      if (frame.bytes > frame.packed_bytes * kMostPerByte) {
        throw_damaged(name, fmt::format("frame {} of its seek table says that {} bytes unpack to {}: no frame can",
                                        frame.number, frame.packed_bytes, frame.bytes));
      }
    });
  }

  Bytes entries_;
};

}  // namespace

std::optional<Tensor> encode_zstd(const Tensor& tensor) {
  const std::uint64_t bytes = tensor.bytes.size();
  const std::uint64_t frames = (bytes + kZstdFrameBytes - 1) / kZstdFrameBytes;
  const std::uint64_t table_bytes = kHeadBytes + frames * kEntryBytes + kFooterBytes;
  if (frames > kMaxFrames || table_bytes >= bytes) return std::nullopt;
  auto [packed, out] = Tensor::allocate(DType::kUInt8, {static_cast<std::int64_t>(bytes)});
  std::vector<std::byte> table(table_bytes);
  store_u32(table, 0, kTableMagic);
  store_u32(table, 4, table_bytes - kHeadBytes);
  const Compressor compressor;
  const std::uint64_t room = bytes - table_bytes;
  std::uint64_t used = 0;
  for (std::uint64_t frame = 0; frame < frames; ++frame) {
    const Bytes in = tensor.bytes.subspan(frame * kZstdFrameBytes, std::min(kZstdFrameBytes, bytes - frame * kZstdFrameBytes));
    const std::size_t result = ::ZSTD_compress2(compressor.context, out.data() + used, room - used, in.data(), in.size());
    if (::ZSTD_isError(result) != 0) {
      if (::ZSTD_getErrorCode(result) == ZSTD_error_dstSize_tooSmall) return std::nullopt;
      throw_no_memory("pack");
    }
    store_u32(table, kHeadBytes + frame * kEntryBytes, result);
    store_u32(table, kHeadBytes + frame * kEntryBytes + 4, in.size());
    used += result;
  }
  store_u32(table, table_bytes - kFooterBytes, frames);
  store_u32(table, table_bytes - 4, kFooterMagic);
  if (used + table_bytes >= bytes) return std::nullopt;
  std::memcpy(out.data() + used, table.data(), table_bytes);
  packed.shape = {static_cast<std::int64_t>(used + table_bytes)};
  packed.bytes = packed.bytes.first(used + table_bytes);
  return std::move(packed);
}

void check_seek_table(std::string_view name, std::uint64_t bytes, Bytes packed) {
  SeekTable(name, bytes, packed);
}

void decode_zstd(std::string_view name, std::uint64_t bytes, Bytes packed, std::uint64_t begin, std::span<std::byte> out) {
  const SeekTable table(name, bytes, packed);
  const Decompressor decompressor;
  const std::uint64_t end = begin + out.size();
  std::vector<std::byte> whole;  // of a frame that is only touched: no larger than the tensor
  table.for_each([&](const Frame& frame) {
    const std::uint64_t from = std::max(begin, frame.begin), to = std::min(end, frame.begin + frame.bytes);
    if (from >= to) return;
    const Bytes in = packed.subspan(frame.packed_begin, frame.packed_bytes);
    const std::span<std::byte> target = out.subspan(from - begin, to - from);
    if (target.size() == frame.bytes) {
      decompressor.unpack(name, frame.number, in, target);
      return;
    }
    whole.resize(frame.bytes);
    decompressor.unpack(name, frame.number, in, whole);
    std::memcpy(target.data(), whole.data() + (from - frame.begin), target.size());
  });
}

}  // namespace draftflow::formats
