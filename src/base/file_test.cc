// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <array>
#include <fstream>

#include "draftflow/base/error.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

TEST(File, ReplaceWritesWholeAndLeavesNoTemporary) {
  const testing_support::TempFolder folder;
  replace_file(folder.path() / "a", "first");
  replace_file(folder.path() / "a", "second");
  EXPECT_EQ(read_text_file(folder.path() / "a"), "second");
  EXPECT_EQ(folder.list(), std::vector<std::string>{"a"});
}

TEST(File, ReplaceThatFailsKeepsTheOldFile) {
  const testing_support::TempFolder folder;
  std::filesystem::create_directory(folder.path() / "a");  // a folder cannot be replaced by a file
  EXPECT_THROW(replace_file(folder.path() / "a", "text"), Error);
  EXPECT_EQ(folder.list(), std::vector<std::string>{"a"});
}

TEST(File, MissingFileIsNotFoundAndNamed) {
  try {
    read_text_file("/nonexistent/file");
    FAIL();
  } catch (const NotFound& error) {
    EXPECT_STREQ(error.what(), "opening /nonexistent/file: No such file or directory");
  }
}

TEST(File, ReadingPastTheEndIsCorrupt) {
  const testing_support::TempFolder folder;
  replace_file(folder.path() / "a", "1234");
  const UniqueFd fd = open_file(folder.path() / "a", O_RDONLY);
  std::array<std::byte, 8> buffer{};
  EXPECT_THROW(read_exact(fd.get(), buffer, 0, folder.path() / "a"), Corrupt);
}

TEST(File, TextOverTheLimitIsRefused) {
  const testing_support::TempFolder folder;
  replace_file(folder.path() / "a", "12345");
  EXPECT_THROW(read_text_file(folder.path() / "a", 4), InvalidArgument);
}

TEST(File, FullDiskIsExhausted) {
  const UniqueFd fd = open_file("/dev/full", O_WRONLY);
  const std::array<std::byte, 8> data{};
  EXPECT_THROW(write_all(fd.get(), data, "/dev/full"), Exhausted);
}

}  // namespace
}  // namespace draftflow
