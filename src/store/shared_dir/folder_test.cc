// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/folder.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using store_testing::message_of;

TEST(Folder, FollowsNoLinkBelow) {
  const testing_support::TempFolder temp;
  const Folder folder = Folder::open(temp.path());
  std::filesystem::create_directory_symlink("/", temp.path() / "link");
  std::filesystem::create_symlink("/etc/passwd", temp.path() / "file");
  EXPECT_THAT(message_of<Corrupt>([&] { folder.find("link"); }), ::testing::HasSubstr("is not a folder"));
  EXPECT_THAT(message_of<Corrupt>([&] { folder.find_or_make("link"); }), ::testing::HasSubstr("is not a folder"));
  EXPECT_THAT(message_of<Corrupt>([&] { folder.find_file("file", O_RDONLY); }), ::testing::HasSubstr("symbolic link"));
}

TEST(Folder, MadeFoldersAndFilesAreForUserAndGroup) {
  const testing_support::TempFolder temp;
  const Folder folder = Folder::open(temp.path());
  const mode_t umask_before = ::umask(0);
  folder.make("inner");
  folder.open_file("file", O_CREAT | O_WRONLY);
  ::umask(umask_before);
  struct stat status {};
  ASSERT_EQ(::stat((temp.path() / "inner").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0770u);
  ASSERT_EQ(::stat((temp.path() / "file").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0660u);
}

TEST(Folder, StaysTheOneThatWasOpened) {
  const testing_support::TempFolder temp;
  std::filesystem::create_directory(temp.path() / "a");
  const Folder folder = Folder::open(temp.path() / "a");
  std::filesystem::remove(temp.path() / "a");
  std::filesystem::create_directory(temp.path() / "a");
  EXPECT_THROW(folder.open_file("file", O_CREAT | O_WRONLY), NotFound);
  EXPECT_TRUE(folder.list().empty());
  EXPECT_TRUE(std::filesystem::is_empty(temp.path() / "a"));
}

class Publish : public ::testing::Test {
 protected:
  UniqueFd write(const std::string& name, std::string_view text) {
    UniqueFd fd = from_.open_file(name, O_CREAT | O_RDWR);
    write_all(fd.get(), std::as_bytes(std::span(text)), name);
    return fd;
  }

  testing_support::TempFolder temp_;
  Folder from_ = Folder::open(temp_.path());
  Folder to_ = from_.find_or_make("to");
};

using Way = decltype(&publish);
constexpr Way kWays[] = {publish, publish_by_link};

TEST_F(Publish, NeverReplaces) {
  for (const Way way : kWays) {
    const UniqueFd first = write("1.tmp", "first"), second = write("2.tmp", "second");
    EXPECT_EQ(way(from_, "1.tmp", first.get(), to_, "name"), Published::kDone);
    EXPECT_EQ(way(from_, "2.tmp", second.get(), to_, "name"), Published::kExists);
    EXPECT_EQ(read_text_file(temp_.path() / "to" / "name"), "first");
    EXPECT_EQ(temp_.list(), (std::vector<std::string>{"2.tmp", "to"}));
    to_.unlink("name");
    from_.unlink("2.tmp");
  }
}

TEST_F(Publish, OnesOwnSuccessAskedAgainIsSuccess) {
  const UniqueFd fd = write("1.tmp", "first");
  std::filesystem::create_hard_link(temp_.path() / "1.tmp", temp_.path() / "to" / "name");
  EXPECT_EQ(publish_by_link(from_, "1.tmp", fd.get(), to_, "name"), Published::kDone);
  EXPECT_EQ(temp_.list(), std::vector<std::string>{"to"});
  EXPECT_EQ(publish(from_, "1.tmp", fd.get(), to_, "name"), Published::kDone);
}

TEST_F(Publish, TellsAFolderThatIsGoneFromATemporaryThatIs) {
  const UniqueFd fd = write("1.tmp", "first");
  std::filesystem::remove(temp_.path() / "to");
  for (const Way way : kWays) EXPECT_EQ(way(from_, "1.tmp", fd.get(), to_, "name"), Published::kFolderGone);
  from_.unlink("1.tmp");
  for (const Way way : kWays) EXPECT_THROW(way(from_, "1.tmp", fd.get(), to_, "name"), Unavailable);
}

}  // namespace
}  // namespace draftflow::store
