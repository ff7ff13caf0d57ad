// SPDX-License-Identifier: Apache-2.0
#include "formats/zip.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "draftflow/base/error.h"
#include "formats/zip_builder.h"

namespace draftflow::formats {
namespace {

using testing::HasSubstr;
using testing_support::ZipBuilder;

std::vector<ZipEntry> read(const std::string& zip) {
  return read_stored_zip(std::as_bytes(std::span(zip)), "f");
}

template <class E>
std::string error_of(const std::string& zip) {
  try {
    read(zip);
  } catch (const E& error) {
    return error.what();
  } catch (const Error& error) {
    return std::string("another kind: ") + error_kind_name(error.kind()) + ": " + error.what();
  }
  return "no error";
}

ZipBuilder two_entries() {
  return ZipBuilder().add("a/x", "first").add("a/y", "second");
}

std::string replaced(std::string text, std::size_t at, const std::string& by) {
  return text.replace(at, by.size(), by);
}

void expect_two(const std::string& zip) {
  const auto entries = read(zip);
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].name, "a/x");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(entries[1].data.data()), entries[1].data.size()), "second");
}

TEST(Zip, ReadsStoredEntries) {
  ZipBuilder builder = two_entries();
  expect_two(builder.finish());
  builder.zip64 = false;
  expect_two(builder.finish());
}

TEST(Zip, ReadsSizesFromZip64FieldsAndThoseThatFollow) {
  ZipBuilder builder = two_entries();
  builder.entries[1].extra = ZipBuilder::u16(1) + ZipBuilder::u16(24) + ZipBuilder::u64(6) + ZipBuilder::u64(6) +
                             ZipBuilder::u64(builder.entries[1].local);
  builder.entries[1].size = builder.entries[1].packed_size = builder.entries[1].local = 0xffffffff;
  expect_two(builder.finish());

  ZipBuilder later;
  later.add("a/x", "first").add(ZipBuilder::Entry{.name = "a/y", .data = "second", .flags = 0x0808});
  later.file.replace(later.entries[1].local + 14, 12, std::string(12, '\0'));
  later.file += "PK\x07\x08" + std::string(12, '\0');
  expect_two(later.finish());
}

TEST(Zip, RefusesAFileWithoutAnEnd) {
  EXPECT_THAT(error_of<Corrupt>("PK"), HasSubstr("f: the zip has 2 bytes, too few"));
  EXPECT_THAT(error_of<Corrupt>(std::string(100, 'x')), HasSubstr("does not end with an end record"));
  EXPECT_THAT(error_of<Corrupt>(two_entries().finish() + "x"), HasSubstr("does not end with an end record"));
}

TEST(Zip, RefusesADirectoryElsewhere) {
  ZipBuilder builder = two_entries();
  const std::string good = builder.finish();
  const std::size_t record = good.size() - 98;
  EXPECT_THAT(error_of<Corrupt>(replaced(good, record + 48, ZipBuilder::u64(~0ULL))), HasSubstr("directory outside the file"));
  EXPECT_THAT(error_of<Corrupt>(replaced(good, record + 40, ZipBuilder::u64(~0ULL))), HasSubstr("directory outside the file"));
  EXPECT_THAT(error_of<Corrupt>(replaced(good, record + 40, ZipBuilder::u64(1))), HasSubstr("a gap after its directory"));
  EXPECT_THAT(error_of<Corrupt>(replaced(good, record + 24, ZipBuilder::u64(1))), HasSubstr("split over disks"));
  EXPECT_THAT(error_of<Corrupt>(replaced(good, record + 4, ZipBuilder::u64(7))), HasSubstr("wrong size"));
  EXPECT_THAT(error_of<Corrupt>(replaced(good, record, "XX")), HasSubstr("no zip64 end record"));
  EXPECT_THAT(error_of<Corrupt>(replaced(good, record + 56 + 8, ZipBuilder::u64(~0ULL))), HasSubstr("no zip64 end record"));
  EXPECT_THAT(error_of<Corrupt>(replaced(good, good.size() - 6, ZipBuilder::u32(5))), HasSubstr("end records that disagree"));
  builder.zip64 = false;
  const std::string small = builder.finish();
  EXPECT_THAT(error_of<Corrupt>(replaced(small, small.size() - 6, ZipBuilder::u32(5))), HasSubstr("directory at 5 to"));
  EXPECT_THAT(error_of<Corrupt>(replaced(small, small.size() - 14, ZipBuilder::u16(9))), HasSubstr("split over disks"));
}

TEST(Zip, RefusesAWrongNumberOfEntries) {
  const std::string good = two_entries().finish();
  const std::size_t record = good.size() - 98;
  const auto claim = [&](std::uint64_t count) {
    std::string bad = replaced(good, record + 24, ZipBuilder::u64(count) + ZipBuilder::u64(count));
    return replaced(bad, bad.size() - 14, ZipBuilder::u16(0xffff) + ZipBuilder::u16(0xffff));
  };
  EXPECT_THAT(error_of<Corrupt>(claim(1)), HasSubstr("stray bytes after its directory"));
  EXPECT_THAT(error_of<Corrupt>(claim(3)), HasSubstr("fewer directory entries than it says"));
  EXPECT_THAT(error_of<Corrupt>(claim(~0ULL)), HasSubstr("fewer directory entries than it says"));
}

TEST(Zip, RefusesADuplicateName) {
  EXPECT_THAT(error_of<Corrupt>(ZipBuilder().add("a/x", "1").add("a/x", "2").finish()), HasSubstr("has two entries 'a/x'"));
}

TEST(Zip, RefusesEntriesThatOverlap) {
  ZipBuilder builder = two_entries();
  builder.file.replace(builder.entries[0].local + 18, 8, ZipBuilder::u32(60) + ZipBuilder::u32(60));
  builder.entries[0].size = builder.entries[0].packed_size = 60;  // into the second
  EXPECT_THAT(error_of<Corrupt>(builder.finish()), HasSubstr("overlapping entries 'a/x' and 'a/y'"));
}

TEST(Zip, RefusesEntriesOutsideTheFile) {
  ZipBuilder builder = two_entries();
  builder.entries[1].local = 1'000'000;
  EXPECT_THAT(error_of<Corrupt>(builder.finish()), HasSubstr("has no entry 'a/y' where its directory says"));
  builder = two_entries();
  builder.file.replace(builder.entries[1].local + 18, 8, ZipBuilder::u32(5000) + ZipBuilder::u32(5000));
  builder.entries[1].size = builder.entries[1].packed_size = 5000;
  EXPECT_THAT(error_of<Corrupt>(builder.finish()), HasSubstr("'a/y' of 5000 bytes, more than the file holds"));
  builder = two_entries();
  builder.file.replace(builder.entries[1].local + 28, 2, "\xff\xff");
  EXPECT_THAT(error_of<Corrupt>(builder.finish()), HasSubstr("'a/y' that leaves the file"));
}

TEST(Zip, RefusesHeadersThatDisagree) {
  ZipBuilder builder = two_entries();
  builder.entries[0].size = builder.entries[0].packed_size = 4;
  EXPECT_THAT(error_of<Corrupt>(builder.finish()), HasSubstr("'a/x' whose sizes disagree with the directory"));
  builder = two_entries();
  builder.entries[0].packed_size = 4;
  EXPECT_THAT(error_of<Corrupt>(builder.finish()), HasSubstr("a stored entry 'a/x' with two sizes"));
  ZipBuilder renamed;
  renamed.add(ZipBuilder::Entry{.name = "a/x", .data = "1", .local_name = "a/y"});
  EXPECT_THAT(error_of<Corrupt>(renamed.finish()), HasSubstr("'a/x' that its directory describes otherwise"));
}

TEST(Zip, RefusesAMissingOrShortZip64Field) {
  ZipBuilder builder = two_entries();
  builder.entries[0].size = 0xffffffff;
  EXPECT_THAT(error_of<Corrupt>(builder.finish()), HasSubstr("no zip64 field at entry 'a/x'"));
  builder.entries[0].extra = ZipBuilder::u16(1) + ZipBuilder::u16(4) + ZipBuilder::u32(5);
  EXPECT_THAT(error_of<Corrupt>(builder.finish()), HasSubstr("too short a zip64 field at entry 'a/x'"));
  builder.entries[0].extra = ZipBuilder::u16(1) + ZipBuilder::u16(400);
  EXPECT_THAT(error_of<Corrupt>(builder.finish()), HasSubstr("no zip64 field at entry 'a/x'"));
}

TEST(Zip, RefusesCompressedAndEncryptedEntriesByName) {
  const auto one = [](std::uint16_t flags, std::uint16_t method) {
    return ZipBuilder().add(ZipBuilder::Entry{.name = "a/x", .data = "1", .flags = flags, .method = method}).finish();
  };
  EXPECT_THAT(error_of<InvalidArgument>(one(0, 8)), HasSubstr("f: the zip entry 'a/x' is compressed: only stored"));
  EXPECT_THAT(error_of<InvalidArgument>(one(1, 0)), HasSubstr("is encrypted"));
  EXPECT_THAT(error_of<InvalidArgument>(one(32, 0)), HasSubstr("of a kind unknown here"));
}

TEST(Zip, RefusesBytesThatFailTheirCrc) {
  ZipBuilder builder = two_entries();
  builder.file.back() = 'D';
  EXPECT_THAT(error_of<Corrupt>(builder.finish()), HasSubstr("entry 'a/y' has CRC-32"));
}

}  // namespace
}  // namespace draftflow::formats
