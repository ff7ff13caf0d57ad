// SPDX-License-Identifier: Apache-2.0
#include "formats/codec_zstd.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zstd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/formats/codec.h"

namespace draftflow {
namespace {

using testing::HasSubstr;
using Bytes = std::vector<std::uint8_t>;

// A frame of one run-length block, small enough to write by hand: `count` times `value`.
Bytes run_frame(std::uint8_t count, std::uint8_t value) {
  const unsigned block = count << 3U | 3U;
  return {0x28, 0xB5, 0x2F, 0xFD, 0x20, count, static_cast<std::uint8_t>(block), static_cast<std::uint8_t>(block >> 8),
          0,    value};
}

void append(Bytes& to, const Bytes& more) {
  to.insert(to.end(), more.begin(), more.end());
}

void append_u32(Bytes& to, std::uint32_t value) {
  for (int i = 0; i < 4; ++i) to.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}

Bytes seek_table(const std::vector<std::pair<std::uint32_t, std::uint32_t>>& entries, std::uint8_t descriptor = 0) {
  Bytes table{0x5E, 0x2A, 0x4D, 0x18};
  append_u32(table, static_cast<std::uint32_t>(entries.size() * 8 + 9));
  for (const auto& [packed, bytes] : entries) append_u32(table, packed), append_u32(table, bytes);
  append_u32(table, static_cast<std::uint32_t>(entries.size()));
  table.push_back(descriptor);
  append(table, {0xB1, 0xEA, 0x92, 0x8F});
  return table;
}

Bytes joined(std::initializer_list<Bytes> pieces) {
  Bytes all;
  for (const Bytes& piece : pieces) append(all, piece);
  return all;
}

Tensor as_tensor(const Bytes& bytes) {
  return Tensor::copy_of(DType::kUInt8, {static_cast<std::int64_t>(bytes.size())}, std::as_bytes(std::span(bytes)));
}

Bytes decoded(const Bytes& packed, std::int64_t bytes) {
  const Tensor tensor = decode(Codec::kZstd, "x", DType::kUInt8, {bytes}, {{"x", as_tensor(packed)}});
  const auto out = tensor.as<std::uint8_t>();
  return {out.begin(), out.end()};
}

std::string corrupt(const Bytes& packed, std::int64_t bytes) {
  try {
    decoded(packed, bytes);
  } catch (const Corrupt& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

// Three frames and a bit of bytes that pack to about half.
Tensor sample() {
  auto [tensor, out] = Tensor::allocate(DType::kInt16, {2, 1'700'000});
  Random random(7);
  for (std::byte& byte : out) byte = static_cast<std::byte>(random.below(16));
  return tensor;
}

bool equal(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

TEST(CodecZstd, ComesBackBitForBit) {
  const Tensor tensor = sample();
  const EncodedTensor packed = encode(Codec::kZstd, "x", tensor);
  ASSERT_EQ(packed.codec, Codec::kZstd);
  ASSERT_EQ(packed.parts.size(), 1u);
  EXPECT_EQ(packed.parts[0].second.dtype, DType::kUInt8);
  EXPECT_LT(packed_bytes(packed), tensor.bytes.size() * 6 / 10);
  const Tensor again = decode(Codec::kZstd, "x", tensor.dtype, tensor.shape, packed.parts);
  EXPECT_EQ(again.dtype, tensor.dtype);
  EXPECT_EQ(again.shape, tensor.shape);
  EXPECT_TRUE(equal(again.bytes, tensor.bytes));
}

TEST(CodecZstd, NaNAndNegativeZeroSurvive) {
  std::vector<std::uint32_t> bits(100, 0x7FC01234);
  bits[3] = 0x80000000, bits[4] = 0xFF800000;
  const Tensor tensor = Tensor::copy_of(DType::kFloat32, {100}, std::as_bytes(std::span(bits)));
  const EncodedTensor packed = encode(Codec::kZstd, "x", tensor);
  ASSERT_EQ(packed.codec, Codec::kZstd);
  EXPECT_TRUE(equal(decode(Codec::kZstd, "x", DType::kFloat32, {100}, packed.parts).bytes, tensor.bytes));
}

// zstd itself skips the seek table: the part is also a plain .zst file.
TEST(CodecZstd, AnyZstdReaderUnpacksThePart) {
  const Tensor tensor = sample();
  const Tensor packed = encode(Codec::kZstd, "x", tensor).parts[0].second;
  std::vector<std::byte> out(tensor.bytes.size() + 1);
  EXPECT_EQ(::ZSTD_decompress(out.data(), out.size(), packed.bytes.data(), packed.bytes.size()), tensor.bytes.size());
  EXPECT_TRUE(equal(std::span(out).first(tensor.bytes.size()), tensor.bytes));
}

TEST(CodecZstd, FramesHaveAFixedSizeAndTheTableSaysWhere) {
  const Tensor tensor = sample();
  const Tensor part = encode(Codec::kZstd, "x", tensor).parts[0].second;
  const auto packed = part.as<std::uint8_t>();
  std::vector<std::pair<std::uint32_t, std::uint32_t>> entries;
  std::size_t at = 0;
  for (std::size_t left = tensor.bytes.size(); left > 0;) {
    const std::size_t bytes = std::min(left, formats::kZstdFrameBytes);
    const std::size_t frame = ::ZSTD_findFrameCompressedSize(packed.data() + at, packed.size() - at);
    ASSERT_EQ(::ZSTD_getFrameContentSize(packed.data() + at, packed.size() - at), bytes);
    entries.emplace_back(frame, bytes);
    at += frame, left -= bytes;
  }
  EXPECT_EQ(entries.size(), 7u);
  EXPECT_EQ(Bytes(packed.begin() + static_cast<std::ptrdiff_t>(at), packed.end()), seek_table(entries));
}

TEST(CodecZstd, APartIsReadWithoutTheFramesAround) {
  const Tensor tensor = sample();
  const EncodedTensor whole = encode(Codec::kZstd, "x", tensor);
  const auto allocated = Tensor::allocate(DType::kUInt8, whole.parts[0].second.shape);
  const Tensor& packed = allocated.first;
  const std::span<std::byte> bytes = allocated.second;
  std::copy(whole.parts[0].second.bytes.begin(), whole.parts[0].second.bytes.end(), bytes.begin());
  const std::uint64_t size = tensor.bytes.size(), frame = formats::kZstdFrameBytes;
  bytes[20] = ~bytes[20];  // in the first frame, which no part below touches
  std::vector<std::byte> out;
  const auto expect_part = [&](std::uint64_t begin, std::uint64_t count) {
    out.assign(count, std::byte{0xEE});
    decode_zstd_part("x", size, packed, begin, out);
    EXPECT_TRUE(equal(out, tensor.bytes.subspan(begin, count))) << begin << " " << count;
  };
  for (const std::uint64_t begin : {frame, frame + 1, 2 * frame - 1, size - 1, size}) {
    for (const std::uint64_t count : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{2}, frame, 3 * frame + 5}) {
      expect_part(begin, std::min(count, size - begin));
    }
  }
  out.resize(1);
  EXPECT_THROW(decode_zstd_part("x", size, packed, frame - 1, out), Corrupt);
  EXPECT_THROW(decode_zstd_part("x", size, packed, size, out), InvalidArgument);
  EXPECT_THROW(decode_zstd_part("x", size, packed, UINT64_MAX, out), InvalidArgument);
}

TEST(CodecZstd, WhatDoesNotShrinkStaysRaw) {
  auto [noise, out] = Tensor::allocate(DType::kUInt8, {3'000'000});
  Random random(3);
  for (std::byte& byte : out) byte = static_cast<std::byte>(random.next());
  const EncodedTensor packed = encode(Codec::kZstd, "x", noise);
  EXPECT_EQ(packed.codec, Codec::kRaw);
  EXPECT_EQ(packed.parts[0].second.bytes.data(), noise.bytes.data());
  for (const std::int64_t bytes : {0, 1, 24, 25, 26, 30, 40}) {  // about the size of a seek table
    const Tensor zeros = as_tensor(Bytes(static_cast<std::size_t>(bytes)));
    const EncodedTensor small = encode(Codec::kZstd, "x", zeros);
    EXPECT_LE(packed_bytes(small), zeros.bytes.size());
    EXPECT_TRUE(equal(decode(small.codec, "x", DType::kUInt8, zeros.shape, small.parts).bytes, zeros.bytes)) << bytes;
  }
}

// The worked example of docs/formats/codecs.md.
TEST(CodecZstd, BytesArePinned) {
  const Bytes packed{0x28, 0xB5, 0x2F, 0xFD, 0x20, 0x40, 0x03, 0x02, 0x00, 0x07, 0x5E, 0x2A, 0x4D, 0x18, 0x11, 0x00, 0x00, 0x00,
                     0x0A, 0x00, 0x00, 0x00, 0x40, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0xB1, 0xEA, 0x92, 0x8F};
  EXPECT_EQ(joined({run_frame(64, 7), seek_table({{10, 64}})}), packed);
  EXPECT_EQ(decoded(packed, 64), Bytes(64, 7));
  EXPECT_EQ(decoded(joined({run_frame(3, 1), run_frame(2, 9), seek_table({{10, 3}, {10, 2}}, 0x03)}), 5),
            (Bytes{1, 1, 1, 9, 9}));
}

TEST(CodecZstd, DamageIsCorrupt) {
  const Bytes frame = run_frame(64, 7), table = seek_table({{10, 64}});
  EXPECT_EQ(corrupt({}, 64), "tensor 'x', packed by zstd: its 0 bytes do not end in a seek table; the file is damaged");
  EXPECT_THAT(corrupt(frame, 64), HasSubstr("do not end in a seek table"));
  EXPECT_THAT(corrupt(joined({frame, table, {0}}), 64), HasSubstr("do not end in a seek table"));
  EXPECT_THAT(corrupt(Bytes(table.end() - 9, table.end()), 64), HasSubstr("do not end in a seek table"));
  for (const std::uint8_t descriptor : {0x80, 0x40, 0x04}) {
    EXPECT_THAT(corrupt(joined({frame, seek_table({{10, 64}}, descriptor)}), 64), HasSubstr("has the descriptor 0x"));
  }
  Bytes many = joined({frame, table});
  std::fill(many.end() - 9, many.end() - 5, 0xFF);
  EXPECT_THAT(corrupt(many, 64), HasSubstr("a seek table of 4294967295 frames does not fit its 35 bytes"));
  for (const std::size_t at : {10u, 14u}) {
    Bytes moved = joined({frame, table});
    moved[at] ^= 1;
    EXPECT_THAT(corrupt(moved, 64), HasSubstr("does not begin where it should"));
  }
  EXPECT_THAT(corrupt(joined({frame, table}), 65), HasSubstr("tells of 64 bytes, and the tensor has 65"));
  EXPECT_THAT(corrupt(joined({frame, seek_table({{10, 0xFFFFFFFF}})}), 64), HasSubstr("tells of 4294967295 bytes"));
  EXPECT_THAT(corrupt(joined({frame, seek_table({{9, 64}})}), 64), HasSubstr("tells of 9 packed bytes, and 10 are there"));
  EXPECT_THAT(corrupt(joined({frame, seek_table({{10, 64}, {0, 0}})}), 64), HasSubstr("frame 1 of its seek table is empty"));
  EXPECT_THAT(corrupt(seek_table({}), 64), HasSubstr("tells of 0 bytes"));
}

TEST(CodecZstd, FramesThatLieAreCorrupt) {
  const Bytes frame = run_frame(64, 7);
  // More and less than the table says, in a tensor as large as the table says.
  EXPECT_THAT(corrupt(joined({frame, seek_table({{10, 65}})}), 65),
              HasSubstr("unpacks to 64 bytes, where the seek table says 65"));
  EXPECT_THAT(corrupt(joined({frame, seek_table({{10, 63}})}), 63), HasSubstr("frame 0 does not unpack to 63 bytes"));
  // Two frames under one entry, one frame over two, a skippable frame, none at all.
  const Bytes skippable{0x50, 0x2A, 0x4D, 0x18, 0x02, 0, 0, 0, 1, 2};
  EXPECT_THAT(corrupt(joined({frame, frame, seek_table({{20, 128}})}), 128), HasSubstr("is not one zstd frame of 20 bytes"));
  EXPECT_THAT(corrupt(joined({frame, seek_table({{4, 32}, {6, 32}})}), 64), HasSubstr("frame 0 is not one zstd frame of 4"));
  EXPECT_THAT(corrupt(joined({skippable, seek_table({{10, 64}})}), 64), HasSubstr("frame 0 is not one"));
  EXPECT_THAT(corrupt(seek_table({{0, 64}}), 64),
              HasSubstr("frame 0 of its seek table says that 0 bytes unpack to 64: no frame can"));
}

TEST(CodecZstd, EveryFlippedBitIsSeen) {
  const Tensor tensor = as_tensor(joined({Bytes(200, 5), Bytes(100, 6), {1, 2, 3, 4, 5, 6, 7, 8}}));
  const Tensor part = encode(Codec::kZstd, "x", tensor).parts[0].second;
  const auto packed = part.as<std::uint8_t>();
  const Bytes whole = decoded({packed.begin(), packed.end()}, 308);
  std::size_t unseen = 0;
  for (std::size_t bit = 0; bit < packed.size() * 8; ++bit) {
    Bytes damaged(packed.begin(), packed.end());
    damaged[bit / 8] ^= static_cast<std::uint8_t>(1U << bit % 8);
    try {
      EXPECT_EQ(decoded(damaged, 308), whole) << "bit " << bit;
      ++unseen;
    } catch (const Corrupt&) {
    }
  }
  EXPECT_LE(unseen, 8u);  // bits that zstd and the table leave unused: the tensor is whole
}

TEST(CodecZstd, APartOfAnotherKindIsCorrupt) {
  for (const Tensor& part : {Tensor::allocate(DType::kInt8, {40}).first, Tensor::allocate(DType::kUInt8, {5, 8}).first}) {
    try {
      decode(Codec::kZstd, "x", DType::kFloat32, {16}, {{"x", part}});
      FAIL();
    } catch (const Corrupt& error) {
      EXPECT_THAT(error.what(), HasSubstr("uint8 of one dimension was expected"));
    }
  }
}

}  // namespace
}  // namespace draftflow
