// SPDX-License-Identifier: Apache-2.0
//
// First that each habit of the file system is really there, by plain system calls; then the store on a file system with each.
#include "store/testing_remote_fs.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <functional>

#include "draftflow/base/file.h"
#include "store/store_testing.h"

namespace draftflow::store_testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::uint32_t kLong = 60'000, kShort = 50;  // ms; no test waits for kLong

// Two hosts that mount one folder, and the folder as the server sees it.
class RemoteFsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!here_.mounted()) GTEST_SKIP() << here_.why_not();
    if (!there_.mounted()) GTEST_SKIP() << there_.why_not();
  }

  std::filesystem::path backing() const { return temp_.path() / "disk"; }
  std::filesystem::path here(const std::string& name) const { return here_.path() / name; }
  std::filesystem::path there(const std::string& name) const { return there_.path() / name; }
  void set(const RemoteModel& model) {
    here_.set(model);
    there_.set(model);
  }

  testing_support::TempFolder temp_;
  RemoteFs here_{temp_.path() / "disk"}, there_{temp_.path() / "disk"};
};

UniqueFd make(const std::filesystem::path& path, std::string_view text = "text") {
  UniqueFd fd = open_file(path, O_RDWR | O_CREAT | O_EXCL);
  write_all(fd.get(), std::as_bytes(std::span(text)), path);
  return fd;
}

struct stat status_of(const std::filesystem::path& path) {
  struct stat status {};
  EXPECT_EQ(::stat(path.c_str(), &status), 0) << path << ": " << std::strerror(errno);
  return status;
}

struct statx in_earnest(const std::filesystem::path& path) {
  struct statx status {};
  EXPECT_EQ(::statx(AT_FDCWD, path.c_str(), AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &status), 0) << std::strerror(errno);
  return status;
}

// 0 or the errno.
int error_of(int result) {
  return result == 0 ? 0 : errno;
}

TEST_F(RemoteFsTest, PassesAllThroughAndSharesItAtOnce) {
  make(here("file"), "hello");
  std::filesystem::create_directory(here("folder"));
  EXPECT_EQ(read_text_file(there("file")), "hello");
  EXPECT_EQ(read_text_file(backing() / "file"), "hello");
  std::filesystem::rename(there("file"), there("folder") / "moved");
  std::filesystem::create_hard_link(here("folder") / "moved", here("again"));
  EXPECT_EQ(status_of(there("again")).st_nlink, 2u);
  std::filesystem::create_symlink("again", here("link"));
  EXPECT_EQ(std::filesystem::read_symlink(there("link")), "again");
  std::filesystem::resize_file(there("again"), 2);
  EXPECT_EQ(read_text_file(here("folder") / "moved"), "he");
  EXPECT_EQ(files_below(there_.path()), (std::vector<std::string>{"again", "folder/moved", "link"}));
  EXPECT_EQ(error_of(::renameat2(AT_FDCWD, here("again").c_str(), AT_FDCWD, here("link").c_str(), RENAME_NOREPLACE)), EEXIST);
  EXPECT_GT(std::filesystem::space(here_.path()).available, 0u);
  EXPECT_EQ(std::filesystem::remove_all(here("folder")), 2u);
  EXPECT_FALSE(std::filesystem::exists(there("folder")));
}

TEST_F(RemoteFsTest, LinkCountsAndTimesAreStaleUnlessAskedInEarnest) {
  set({.attribute_cache_ms = kLong, .name_cache_ms = kLong});
  make(here("file"));
  EXPECT_EQ(status_of(here("file")).st_nlink, 1u);
  const time_t mtime = status_of(here("file")).st_mtime;
  std::filesystem::create_hard_link(there("file"), there("second"));
  const timespec old[] = {{1, 0}, {1, 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, there("file").c_str(), old, 0), 0);
  EXPECT_EQ(status_of(here("file")).st_nlink, 1u);
  EXPECT_EQ(status_of(here("file")).st_mtime, mtime);
  EXPECT_EQ(in_earnest(here("file")).stx_nlink, 2u);
  EXPECT_EQ(in_earnest(here("file")).stx_mtime.tv_sec, 1);
}

TEST_F(RemoteFsTest, StaleAttributesHealWithTime) {
  set({.attribute_cache_ms = kShort, .name_cache_ms = kShort});
  make(here("file"));
  std::filesystem::create_hard_link(there("file"), there("second"));
  for (int i = 0; i < 1000 && status_of(here("file")).st_nlink != 2; ++i) ::usleep(10'000);
  EXPECT_EQ(status_of(here("file")).st_nlink, 2u);
}

TEST_F(RemoteFsTest, AMissingNameStaysMissing) {
  set({.missing_name_cache_ms = kLong});
  EXPECT_FALSE(std::filesystem::exists(here("file")));
  make(there("file"));
  EXPECT_FALSE(std::filesystem::exists(here("file")));
  EXPECT_THAT(files_below(here_.path()), ElementsAre("file")) << "a listing knows better";
  EXPECT_EQ(::open(here("file").c_str(), O_CREAT | O_EXCL | O_WRONLY, 0600), -1);
  EXPECT_EQ(errno, EEXIST) << "so does making it";
}

TEST_F(RemoteFsTest, ARemovedNameStillLeadsToItsFile) {
  set({.name_cache_ms = kLong});
  make(here("file"));
  std::filesystem::remove(there("file"));
  EXPECT_EQ(read_text_file(here("file")), "text");
  EXPECT_NE(error_of(::link(here("file").c_str(), here("second").c_str())), 0) << "the server has nothing left to link";
}

TEST_F(RemoteFsTest, AFileIsLinkedByHandleAfterItsNameWasRemoved) {
  set({.name_cache_ms = kLong, .link_by_handle = true});
  const UniqueFd fd = make(here("file"));
  std::filesystem::remove(there("file"));
  EXPECT_THAT(files_below(backing()), IsEmpty());
  EXPECT_EQ(error_of(::link(here("file").c_str(), here("second").c_str())), 0);
  EXPECT_THAT(files_below(backing()), ElementsAre("second"));
  EXPECT_EQ(read_text_file(there("second")), "text");
  EXPECT_EQ(in_earnest(there("second")).stx_nlink, 1u) << "what the server keeps does not count";
}

TEST_F(RemoteFsTest, AnOpenFileGoesStaleWithItsName) {
  set({.stale_when_removed = true});
  const UniqueFd fd = make(here("file"));
  std::filesystem::remove(there("file"));
  char byte = 'x';
  EXPECT_EQ(::pwrite(fd.get(), &byte, 1, 0), -1);
  EXPECT_EQ(errno, ESTALE);
  struct stat status {};
  EXPECT_EQ(::fstat(fd.get(), &status), -1);
  EXPECT_EQ(errno, ESTALE);
}

TEST_F(RemoteFsTest, AFolderGoesStaleToo) {
  set({.stale_when_removed = true});
  std::filesystem::create_directory(here("folder"));
  const UniqueFd fd = open_file(here("folder"), O_RDONLY | O_DIRECTORY);
  std::filesystem::remove(there("folder"));
  EXPECT_EQ(::openat(fd.get(), "file", O_CREAT | O_WRONLY, 0600), -1);
  EXPECT_EQ(errno, ESTALE);
}

TEST_F(RemoteFsTest, AnOpenFileThatIsRemovedLingersUntilItIsClosed) {
  set({.silly_rename = true});
  std::filesystem::create_directory(here("folder"));
  UniqueFd fd = make(here("folder") / "file");
  std::filesystem::remove(here("folder") / "file");
  ASSERT_EQ(files_below(there_.path()).size(), 1u);
  EXPECT_TRUE(files_below(there_.path())[0].starts_with("folder/.nfs"));
  EXPECT_EQ(error_of(::rmdir(here("folder").c_str())), ENOTEMPTY);
  fd.reset();
  for (int i = 0; i < 1000 && !files_below(backing()).empty(); ++i) ::usleep(10'000);  // release comes after close
  EXPECT_THAT(files_below(backing()), IsEmpty());
}

TEST_F(RemoteFsTest, OnesOwnSuccessLooksLikeAFailure) {
  make(here("file"));
  set({.replies_lost = true});
  EXPECT_EQ(error_of(::link(here("file").c_str(), here("second").c_str())), EEXIST);
  EXPECT_EQ(error_of(::rename(here("second").c_str(), here("third").c_str())), ENOENT);
  EXPECT_EQ(error_of(::mkdir(here("folder").c_str(), 0700)), EEXIST);
  EXPECT_EQ(error_of(::unlink(here("file").c_str())), ENOENT);
  EXPECT_TRUE(std::filesystem::is_directory(backing() / "folder"));
  EXPECT_EQ(error_of(::rmdir(here("folder").c_str())), ENOENT);
  EXPECT_THAT(files_below(backing()), ElementsAre("third"));
}

TEST_F(RemoteFsTest, RenameCannotRefuseToReplace) {
  set({.no_rename_noreplace = true});
  make(here("file"));
  EXPECT_EQ(error_of(::renameat2(AT_FDCWD, here("file").c_str(), AT_FDCWD, here("new").c_str(), RENAME_NOREPLACE)), EINVAL);
  EXPECT_EQ(error_of(::rename(here("file").c_str(), here("new").c_str())), 0);
}

TEST_F(RemoteFsTest, EveryLinkCountIsOne) {
  set({.link_count_is_one = true});
  make(here("file"));
  std::filesystem::create_hard_link(here("file"), here("second"));
  EXPECT_EQ(status_of(here("second")).st_nlink, 1u);
  EXPECT_EQ(in_earnest(here("file")).stx_nlink, 1u);
  EXPECT_EQ(status_of(backing() / "file").st_nlink, 2u);
}

TEST_F(RemoteFsTest, TheServerHasAClockOfItsOwn) {
  set({.clock_ahead_s = 7200});
  make(here("file"));
  EXPECT_EQ(status_of(here("file")).st_mtime, status_of(backing() / "file").st_mtime + 7200);
}

// The kernel hides an error of the look-up that only asks whether a name still holds, and asks again.
TEST_F(RemoteFsTest, TheRequestOfThatNumberFails) {
  make(here("file"));
  here_.set({});
  EXPECT_EQ(read_text_file(here("file")), "text");
  const std::uint64_t requests = here_.requests();
  std::uint64_t failures = 0;
  for (std::uint64_t at = 1; at <= requests; ++at) {
    here_.set({.fail_at = at, .fail_error = EIO});
    try {
      EXPECT_EQ(read_text_file(here("file")), "text");
    } catch (const Unavailable&) {
      ++failures;
    }
    here_.set({});
    EXPECT_EQ(read_text_file(here("file")), "text") << "only that one";
  }
  EXPECT_GT(failures, 0u);
  here_.set({.fail_at = requests + 100});
  EXPECT_EQ(read_text_file(here("file")), "text");
}

TEST_F(RemoteFsTest, ALockOfAnotherHostIsNotSeen) {
  make(here("file"));
  const UniqueFd ours = open_file(here("file"), O_RDWR), also_ours = open_file(here("file"), O_RDWR);
  const UniqueFd theirs = open_file(there("file"), O_RDWR);
  EXPECT_EQ(error_of(::flock(ours.get(), LOCK_EX | LOCK_NB)), 0);
  EXPECT_EQ(error_of(::flock(also_ours.get(), LOCK_EX | LOCK_NB)), EWOULDBLOCK);
  EXPECT_EQ(error_of(::flock(theirs.get(), LOCK_EX | LOCK_NB)), 0);
}

std::string mounts() {
  std::ifstream file("/proc/self/mounts");
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(RemoteFsLife, IsUnmountedAndReapedAlsoWithAFileOpen) {
  const testing_support::TempFolder temp;
  UniqueFd open;
  std::string path;
  pid_t server = -1;
  {
    const RemoteFs fs(temp.path() / "disk");
    if (!fs.mounted()) GTEST_SKIP() << fs.why_not();
    path = fs.path();
    server = fs.server();
    open = make(fs.path() / "file");
    EXPECT_THAT(mounts(), ::testing::HasSubstr(path));
  }
  EXPECT_THAT(mounts(), ::testing::Not(::testing::HasSubstr(path)));
  EXPECT_EQ(error_of(::kill(server, 0)), ESRCH);
}

TEST(RemoteFsLife, IsUnmountedWhenTheTestIsKilled) {
  const testing_support::TempFolder temp;
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = fork_child([&] {
    const RemoteFs fs(temp.path() / "disk");
    const std::string said = fs.mounted() ? fs.path().string() : "!" + fs.why_not();
    if (::write(ends[1], said.data(), said.size()) < 0) ::_exit(1);
    ::raise(SIGKILL);
  });
  char said[512];
  const ssize_t length = ::read(ends[0], said, sizeof said);
  ASSERT_GT(length, 0);
  wait_for(child);
  ::close(ends[0]);
  ::close(ends[1]);
  const std::string path(said, static_cast<std::size_t>(length));
  if (path.starts_with("!")) GTEST_SKIP() << path.substr(1);
  for (int i = 0; i < 1000 && mounts().find(path) != std::string::npos; ++i) ::usleep(10'000);
  EXPECT_THAT(mounts(), ::testing::Not(::testing::HasSubstr(path)));
  std::filesystem::remove(path);
}

struct Habit {
  const char* name;
  RemoteModel model;
};

void PrintTo(const Habit& habit, std::ostream* out) {
  *out << habit.name;
}

const Habit kHabits[] = {
    {"None", {}},
    {"StaleAttributes", {.attribute_cache_ms = kLong, .name_cache_ms = kShort}},
    {"MissingNames", {.missing_name_cache_ms = kShort}},
    {"RemovedNames", {.name_cache_ms = kShort}},
    {"LinkByHandle", {.name_cache_ms = kShort, .link_by_handle = true, .no_rename_noreplace = true}},
    {"StaleWhenRemoved", {.stale_when_removed = true}},
    {"SillyRename", {.silly_rename = true}},
    {"NoRename", {.no_rename_noreplace = true}},
    {"RepliesLost", {.replies_lost = true}},
    {"RepliesLostByLink", {.no_rename_noreplace = true, .replies_lost = true}},
    {"ClockAhead", {.clock_ahead_s = 7200}},
    {"ClockBehind", {.clock_ahead_s = -7200}},
    {"LikeNfs",
     {.attribute_cache_ms = kShort,
      .name_cache_ms = kShort,
      .missing_name_cache_ms = kShort,
      .stale_when_removed = true,
      .silly_rename = true,
      .no_rename_noreplace = true}},
};

class StoreOnRemoteFs : public RemoteFsTest, public ::testing::WithParamInterface<std::tuple<Habit, StoreLayout>> {
 protected:
  void SetUp() override {
    RemoteFsTest::SetUp();
    if (!IsSkipped()) set(model());
  }
  const RemoteModel& model() const { return std::get<0>(GetParam()).model; }
  std::unique_ptr<FeatureStore> create(Durability durability = Durability::kNone) {
    return create_shared_dir_store(here_.path(), StoreId("st"), {.durability = durability, .layout = std::get<1>(GetParam())});
  }

  // What the caches of this host hide for a while, they show in the end.
  bool in_the_end(const std::function<bool()>& holds) {
    for (int i = 0; i < 1000 && !holds(); ++i) ::usleep(10'000);
    return holds();
  }

  std::vector<std::string> generations_on_disk() const {
    std::vector<std::string> names;
    for (const auto& path : generation_files(backing())) names.push_back(path.filename());
    return names;
  }
};

bool gettable(FeatureStore& store, const SampleRef& ref) {
  try {
    store.read(ref);
    return true;
  } catch (const NotFound&) {
    return false;
  }
}

// sshfs: leases could not work there.
TEST_F(RemoteFsTest, AStoreWhereEveryLinkCountIsOneIsRefusedByName) {
  set({.link_count_is_one = true});
  EXPECT_THAT(message_of<InvalidArgument>([&] { create_shared_dir_store(here_.path(), StoreId("st"), {}); }),
              ::testing::HasSubstr("is on fuse, where a file with two names says it has 1"));
}

// A host that looked before the name was given goes on to see none.
TEST_F(RemoteFsTest, GcTakesNoRememberedAbsenceOfAFlatNameForAFree) {
  const auto ours = create_shared_dir_store(here_.path(), StoreId("st"), {.layout = StoreLayout::kSpecforge});
  const auto theirs = open_shared_dir_store(there_.path(), StoreId("st"), {});
  const SampleRef first = ours->put(small_tensors(1), SampleId("a"), run_metadata());
  set({.missing_name_cache_ms = kLong});
  const std::string next = "st/a.g" + std::to_string(first.generation + 1) + ".ckpt";
  EXPECT_FALSE(std::filesystem::exists(there(next)));
  const SampleRef second = ours->put(small_tensors(2), SampleId("a"), run_metadata());
  EXPECT_EQ(second.generation, first.generation + 1);
  EXPECT_FALSE(std::filesystem::exists(there(next)));
  EXPECT_EQ(theirs->gc().generations_removed, 0u);
  expect_same(ours->read(second), small_tensors(2));
}

// The thread that keeps the holder alive is not in the child, which must not wait for it.
TEST_F(RemoteFsTest, AForkedChildLetsGoOfItsParentsHolderAtOnce) {
  auto store = create_shared_dir_store(here_.path(), StoreId("st"), {.lease_ms = 200});
  const SampleRef ref = store->put(small_tensors(1), SampleId("a"), run_metadata());
  const Fetched fetched = store->get(ref);
  ::usleep(100'000);  // the thread waits by now
  const pid_t child = fork_child([&] {
    ::alarm(20);
    const Fetched mine = store->get(ref);
    store->release(mine.handle);
    store.reset();
  });
  EXPECT_EQ(wait_for(child), 0);
  ::usleep(400'000);
  EXPECT_EQ(store->gc().leases_dropped, 0u) << "our heart still beats";
  store->release(fetched.handle);
  EXPECT_EQ(store->health().live_leases, 0u);
}

TEST_P(StoreOnRemoteFs, LeasesAreSeenByBothHostsAndEndWithTheirRelease) {
  const auto ours = create();
  const SampleRef ref = ours->put(small_tensors(1), SampleId("a"), run_metadata());
  const Fetched fetched = ours->get(ref);
  expect_same(fetched.tensors, small_tensors(1));
  EXPECT_THROW(ours->get(ref, {.zero_copy = true}), InvalidArgument);
  ours->remove(ref);
  EXPECT_THROW(ours->get(ref), NotFound);
  EXPECT_EQ(ours->gc().leases_dropped, 0u);
  ours->release(fetched.handle);
}

TEST_P(StoreOnRemoteFs, PutsGetsAndRemoves) {
  const auto store = create(Durability::kFull);
  const SampleRef first = store->put(small_tensors(1), SampleId("a"), run_metadata());
  expect_same(store->read(first), small_tensors(1));
  const SampleRef second = store->put(small_tensors(2), SampleId("a"), run_metadata());
  EXPECT_GT(second.generation, first.generation);
  expect_same(store->read(second), small_tensors(2));
  EXPECT_THROW(store->read(first), NotFound);
  EXPECT_EQ(generations_on_disk().size(), 1u);
  EXPECT_TRUE(std::filesystem::is_empty(backing() / "st" / "tmp"));
  store->remove(second);  // what it returns is in doubt where replies are lost
  EXPECT_THROW(store->read(second), NotFound);
  EXPECT_THAT(generations_on_disk(), IsEmpty());
  EXPECT_NO_THROW(store->gc());
  EXPECT_EQ(store->health().resident_samples, 0u);
}

TEST_P(StoreOnRemoteFs, TwoHostsAgreeInTheEnd) {
  const auto ours = create();
  const auto theirs = open_shared_dir_store(there_.path(), StoreId("st"), {});
  const SampleRef first = ours->put(small_tensors(1), SampleId("a"), run_metadata());
  EXPECT_TRUE(in_the_end([&] { return gettable(*theirs, first); }));
  const SampleRef second = theirs->put(small_tensors(2), SampleId("a"), run_metadata());
  EXPECT_GT(second.generation, first.generation);
  EXPECT_TRUE(in_the_end([&] { return gettable(*ours, second); }));
  expect_same(ours->read(second), small_tensors(2));
  EXPECT_TRUE(in_the_end([&] { return !gettable(*ours, first); }));
  EXPECT_EQ(generations_on_disk().size(), 1u);
  ours->remove(second);
  EXPECT_TRUE(in_the_end([&] { return !gettable(*theirs, second); }));
}

TEST_P(StoreOnRemoteFs, GcLeavesAnotherHostsWriterAloneAndTakesAnOldOrphan) {
  const auto ours = create();
  const auto theirs = open_shared_dir_store(there_.path(), StoreId("st"), {});
  const std::string young = std::string(32, 'a') + ".tmp", old = std::string(32, 'b') + ".tmp";
  make(there("st/tmp") / young);
  make(there("st/tmp") / old);
  const timespec long_ago[] = {{1, 0}, {1, 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, there("st/tmp/" + old).c_str(), long_ago, 0), 0);
  ours->gc();
  EXPECT_THAT(files_below(backing() / "st" / "tmp"), ElementsAre(young));
}

TEST_P(StoreOnRemoteFs, APutThatFailsAtAnyRequestHurtsNothing) {
  RemoteModel model = this->model();
  const auto store = create();
  SampleRef old = store->put(small_tensors(2), SampleId("a"), run_metadata());
  int failures = 0;
  for (model.fail_at = 1; model.fail_at < 500; ++model.fail_at) {
    here_.set(model);
    std::optional<SampleRef> made;
    try {
      made = store->put(small_tensors(2), SampleId("a"), run_metadata());
    } catch (const Error& error) {
      ++failures;
      const bool tells = std::string(error.what()).find("Input/output error") != std::string::npos;
      EXPECT_TRUE(tells) << "request " << model.fail_at << ": " << error.what();
    }
    const bool reached = here_.requests() >= model.fail_at;
    here_.set(this->model());
    expect_same(store->read(made ? *made : old), small_tensors(2));
    if (!made) made = store->put(small_tensors(2), SampleId("a"), run_metadata());
    EXPECT_GT(made->generation, old.generation);
    old = *made;
    if (!reached) break;
  }
  EXPECT_GT(failures, 10);
  EXPECT_LT(model.fail_at, 500u);
}

INSTANTIATE_TEST_SUITE_P(Habits, StoreOnRemoteFs,
                         ::testing::Combine(::testing::ValuesIn(kHabits),
                                            ::testing::Values(StoreLayout::kDraftflow, StoreLayout::kSpecforge)),
                         [](const auto& test) {
                           const bool flat = std::get<1>(test.param) == StoreLayout::kSpecforge;
                           return std::get<0>(test.param).name + std::string(flat ? "Flat" : "");
                         });

}  // namespace
}  // namespace draftflow::store_testing
