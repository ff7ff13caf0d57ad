// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/gather_writer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

std::string bytes_of(std::size_t count, int seed) {
  std::string text(count, '\0');
  for (std::size_t i = 0; i < count; ++i) text[i] = static_cast<char>('a' + (i * 7 + static_cast<std::size_t>(seed)) % 26);
  return text;
}

std::span<const std::byte> as_bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

class GatherWriterTest : public ::testing::Test {
 protected:
  std::string written() const { return read_text_file(path_); }
  testing_support::TempFolder folder_;
  std::filesystem::path path_ = folder_.path() / "gathered";
  UniqueFd fd_ = open_file(path_, O_RDWR | O_CREAT | O_TRUNC);
  GatherWriter out_{fd_.get(), path_};
};

TEST_F(GatherWriterTest, WritesNothingBeforeAWindowIsFull) {
  std::string header = bytes_of(100, 1);
  const std::string data = bytes_of(1000, 2);
  out_.add(as_bytes_of(header));
  out_.add(as_bytes_of(data));
  EXPECT_EQ(out_.written(), 0u);
  header[5] = '!';  // what waits is written as it is then
  out_.flush();
  EXPECT_EQ(out_.written(), 1100u);
  EXPECT_EQ(written(), header + data);
}

TEST_F(GatherWriterTest, CallsEndAtMultiplesOfAWindow) {
  const std::string header = bytes_of(2304, 1), data = bytes_of(3 * GatherWriter::kWindowBytes, 2);
  out_.add(as_bytes_of(header));
  out_.add(as_bytes_of(data));
  EXPECT_EQ(out_.written(), 3 * GatherWriter::kWindowBytes);
  out_.flush();
  EXPECT_EQ(written(), header + data);
}

TEST_F(GatherWriterTest, AlsoAfterAFlushWithinAWindow) {
  const std::string header = bytes_of(100, 1), data = bytes_of(2 * GatherWriter::kWindowBytes, 2);
  out_.add(as_bytes_of(header));
  out_.flush();
  out_.add(as_bytes_of(data));
  EXPECT_EQ(out_.written(), 2 * GatherWriter::kWindowBytes);
  out_.flush();
  EXPECT_EQ(written(), header + data);
}

TEST_F(GatherWriterTest, CopiesAndWhatLiesElsewhereKeepTheirOrder) {
  std::string expected;
  std::vector<std::string> kept;
  kept.reserve(6000);
  for (int i = 0; i < 6000; ++i) {  // through many blocks of copies and many windows
    const std::string copied = bytes_of(static_cast<std::size_t>(i * 13 % 700), i);
    out_.add_copy(as_bytes_of(copied));
    kept.push_back(bytes_of(static_cast<std::size_t>(i * 7 % 500), i + 1));
    if (i % 3 == 0) out_.add(as_bytes_of(kept.back()));
    expected += copied + (i % 3 == 0 ? kept.back() : "");
  }
  out_.flush();
  EXPECT_EQ(written(), expected);
}

TEST_F(GatherWriterTest, CopiesMayGoAtOnce) {
  std::string expected;
  for (int i = 0; i < 40; ++i) {
    std::string piece = bytes_of(100'000, i);
    expected += piece;
    out_.add_copy(as_bytes_of(piece));
    std::fill(piece.begin(), piece.end(), '?');
  }
  out_.flush();
  EXPECT_EQ(written(), expected);
}

TEST_F(GatherWriterTest, AnyNumberOfPieces) {
  std::vector<std::string> pieces;
  std::string expected;
  for (int i = 0; i < 5000; ++i) expected += pieces.emplace_back(bytes_of(static_cast<std::size_t>(i % 9), i));
  for (const std::string& piece : pieces) out_.add(as_bytes_of(piece));
  out_.flush();
  EXPECT_EQ(written(), expected);
}

TEST_F(GatherWriterTest, ThroughAPipe) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd from(ends[0]);
  UniqueFd to(ends[1]);
  const std::string data = bytes_of(700'001, 3);
  std::string got;
  std::thread reader([&] {
    char buffer[10'007];
    for (ssize_t count = 0; (count = ::read(from.get(), buffer, sizeof buffer)) > 0;)
      got.append(buffer, static_cast<std::size_t>(count));
  });
  GatherWriter out(to.get(), "pipe");
  for (std::size_t at = 0; at < data.size(); at += 1000) {
    out.add(as_bytes_of(data).subspan(at, std::min<std::size_t>(1000, data.size() - at)));
  }
  out.flush();
  to.reset();
  reader.join();
  EXPECT_EQ(got, data);
}

TEST(GatherWriter, AnErrorNamesTheFile) {
  const UniqueFd full = open_file("/dev/full", O_WRONLY);
  GatherWriter out(full.get(), "/dev/full");
  const std::string text = "text";
  out.add(as_bytes_of(text));
  try {
    out.flush();
    FAIL();
  } catch (const Exhausted& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("/dev/full"));
  }
}

}  // namespace
}  // namespace draftflow
