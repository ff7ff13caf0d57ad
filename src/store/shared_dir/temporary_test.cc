// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/temporary.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

TEST(Temporary, GoesWithItsOwnerUnlessPublished) {
  const testing_support::TempFolder temp;
  const Folder folder = Folder::open(temp.path());
  { const Temporary file(folder); }
  EXPECT_TRUE(temp.list().empty());
  {
    Temporary file(folder);
    EXPECT_EQ(file.publish(folder, "name"), Published::kDone);
  }
  EXPECT_EQ(temp.list(), std::vector<std::string>{"name"});
}

TEST(Temporary, OfALiveWriterIsLeftAlone) {
  const testing_support::TempFolder temp;
  const Folder folder = Folder::open(temp.path());
  const Temporary file(folder);
  EXPECT_EQ(clear_orphans(folder).files, 0u);
  EXPECT_EQ(temp.list().size(), 1u);
}

TEST(Temporary, OfAKilledWriterIsCleared) {
  const testing_support::TempFolder temp;
  const Folder folder = Folder::open(temp.path());
  const pid_t child = store_testing::fork_child([&] {
    const Temporary file(folder);
    write_all(file.fd(), std::vector<std::byte>(10), file.path());
    ::raise(SIGKILL);
  });
  store_testing::wait_for(child);
  ASSERT_EQ(temp.list().size(), 1u);
  const Cleared cleared = clear_orphans(folder);
  EXPECT_EQ(cleared.files, 1u);
  EXPECT_EQ(cleared.bytes, 10u);
  EXPECT_TRUE(temp.list().empty());
}

TEST(Temporary, ClearingTouchesNothingElse) {
  const testing_support::TempFolder temp;
  const Folder folder = Folder::open(temp.path());
  const std::string name(32, 'a');
  std::filesystem::create_symlink("/etc/passwd", temp.path() / (name + ".tmp"));
  folder.open_file("notes.tmp", O_CREAT | O_WRONLY);
  ASSERT_EQ(::mkfifo((temp.path() / (std::string(32, 'b') + ".tmp")).c_str(), 0600), 0);
  EXPECT_EQ(clear_orphans(folder).files, 0u);
  EXPECT_EQ(temp.list().size(), 3u);
}

}  // namespace
}  // namespace draftflow::store
