// SPDX-License-Identifier: Apache-2.0
//
// Leases between processes: seen by all, dropped when the holder dies, never by anybody else.
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <atomic>
#include <fstream>
#include <string>
#include <thread>

#include "draftflow/base/interrupt.h"
#include "store/shared_dir/shared_dir_store.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using store_testing::expect_same;
using store_testing::files_below;
using store_testing::generation_files;
using store_testing::message_of;
using store_testing::run_metadata;
using store_testing::small_tensors;
using ::testing::HasSubstr;

constexpr std::uint64_t kSmallBytes = 16 * 8 + 16 * 8 * 2;

class LeasesBetweenProcesses : public ::testing::Test {
 protected:
  std::unique_ptr<FeatureStore> attach(SharedDirOptions options = {.kind = StoreKind::kConsumeOnce}) {
    return create_shared_dir_store(temp_.path(), StoreId("st"), options);
  }
  std::filesystem::path root() const { return temp_.path() / "st"; }
  static SampleRef put(FeatureStore& store, const std::string& id = "a", std::uint64_t seed = 1) {
    return store.put(small_tensors(seed), SampleId(id), run_metadata());
  }

  // A process that attaches, does `body`, says so, and lives until it is killed.
  pid_t living_child(const std::function<void(FeatureStore&)>& body,
                     SharedDirOptions options = {.kind = StoreKind::kConsumeOnce}) {
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    const pid_t child = store_testing::fork_child([&] {
      ::close(ends[0]);
      const auto store = attach(options);
      body(*store);
      if (::write(ends[1], "x", 1) != 1) return;
      for (;;) ::pause();
    });
    ::close(ends[1]);
    char said = 0;
    EXPECT_EQ(::read(ends[0], &said, 1), 1);
    ::close(ends[0]);
    return child;
  }
  static void kill(pid_t child) {
    ::kill(child, SIGKILL);
    store_testing::wait_for(child);
  }

  testing_support::TempFolder temp_;
};

TEST_F(LeasesBetweenProcesses, OnesReleaseDoesNotTakeTheDataFromUnderTheOther) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  const pid_t other = living_child([&](FeatureStore& theirs) { theirs.get(ref); });
  EXPECT_EQ(store->health().live_leases, 1u);
  store->release(store->get(ref).handle);
  expect_same(store->read(ref), small_tensors());
  EXPECT_EQ(store->gc().leases_dropped, 0u);
  expect_same(store->read(ref), small_tensors());
  // It dies: what we consumed is freed, though its own lease consumed nothing.
  kill(other);
  const GcReport report = store->gc();
  EXPECT_EQ(report.leases_dropped, 1u);
  EXPECT_THROW(store->read(ref), NotFound);
  EXPECT_EQ(store->health().live_leases, 0u);
  EXPECT_EQ(store->health().resident_bytes, 0u);
  EXPECT_TRUE(generation_files(root()).empty());
}

TEST_F(LeasesBetweenProcesses, AHolderThatDiesIsAsIfItHadNeverLeased) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  kill(living_child([&](FeatureStore& theirs) {
    theirs.get(ref);
    theirs.get(ref);
  }));
  EXPECT_EQ(store->health().live_leases, 2u);
  const GcReport report = store->gc();
  EXPECT_EQ(report.leases_dropped, 2u);
  EXPECT_EQ(report.generations_removed, 0u);
  EXPECT_EQ(store->health().live_leases, 0u);
  expect_same(store->read(ref), small_tensors());
  EXPECT_EQ(files_below(root() / "leases").size(), 1u) << "our own holder alone";
  store->release(store->get(ref).handle);
  EXPECT_THROW(store->read(ref), NotFound);
}

TEST_F(LeasesBetweenProcesses, ARetainingLeaseIsTheLastAndTheGenerationWasConsumed) {
  const auto store = attach();
  const auto kept = attach({.kind = StoreKind::kConsumeOnce, .retain_on_release = true});
  const SampleRef ref = put(*store);
  const Fetched ours = store->get(ref), theirs = kept->get(ref);
  store->release(ours.handle);
  expect_same(kept->read(ref), small_tensors());
  kept->release(theirs.handle);
  EXPECT_THROW(kept->read(ref), NotFound);
  for (const auto& fan_out : std::filesystem::directory_iterator(root() / "samples")) {
    EXPECT_TRUE(std::filesystem::is_empty(fan_out)) << "the mark is gone too";
  }
}

TEST_F(LeasesBetweenProcesses, BytesThatOnlyADeadHolderKeptAreFreedByGc) {
  const auto store = attach({});
  const SampleRef ref = put(*store);
  const pid_t other = living_child([&](FeatureStore& theirs) { theirs.get(ref); }, {});
  store->remove(ref);
  EXPECT_EQ(store->health().resident_bytes, kSmallBytes);
  store->gc();
  EXPECT_EQ(store->health().resident_bytes, kSmallBytes);
  kill(other);
  EXPECT_EQ(store->gc().bytes_removed, kSmallBytes);
  EXPECT_EQ(store->health().resident_bytes, 0u);
  EXPECT_EQ(store->health().freed_total, 1u);
}

TEST_F(LeasesBetweenProcesses, ADestroyedAttachEndsItsLeasesAndLeavesNoHolder) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  {
    const auto other = attach();
    other->get(ref);
  }
  EXPECT_EQ(store->health().live_leases, 0u);
  EXPECT_EQ(files_below(root() / "leases").size(), 1u);
  expect_same(store->read(ref), small_tensors());
}

TEST_F(LeasesBetweenProcesses, AForkedChildHoldsNothingOfItsParents) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  const Fetched ours = store->get(ref);
  const pid_t child = store_testing::fork_child([&] {
    store->release(ours.handle);  // the parent's: does nothing
    const Fetched mine = store->get(ref);
    store->release(mine.handle);
  });
  EXPECT_EQ(store_testing::wait_for(child), 0);
  EXPECT_EQ(store->gc().leases_dropped, 0u);
  expect_same(store->read(ref), small_tensors());
  EXPECT_EQ(store->health().live_leases, 1u);
  store->release(ours.handle);
  EXPECT_THROW(store->read(ref), NotFound) << "the child consumed it, and ours was the last lease";
}

TEST_F(LeasesBetweenProcesses, AChildThatLivesOnDoesNotKeepItsDeadParentsLeases) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  int grandchild[2];
  ASSERT_EQ(::pipe(grandchild), 0);
  const pid_t parent = living_child([&](FeatureStore& theirs) {
    theirs.get(ref);
    const pid_t forked = ::fork();
    if (forked != 0) return;
    ::alarm(60);                    // it outlives its parent, but not for ever
    const pid_t self = ::getpid();  // told by itself, when it has let go of what it inherited
    if (::write(grandchild[1], &self, sizeof self) != sizeof self) ::_exit(1);
    for (;;) ::pause();
  });
  pid_t living = 0;
  ASSERT_EQ(::read(grandchild[0], &living, sizeof living), static_cast<ssize_t>(sizeof living));
  kill(parent);
  EXPECT_EQ(store->gc().leases_dropped, 1u);
  ::kill(living, SIGKILL);
  ::close(grandchild[0]);
  ::close(grandchild[1]);
}

// A release that frees holds the inode's lock between its look at the leases and taking the name away. A get that has
// opened the file by then must not slip its lease in between: it would hold what was freed.
TEST_F(LeasesBetweenProcesses, AGetWaitsForAReleaseThatIsFreeing) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  const auto path = generation_files(root()).at(0);
  const UniqueFd releaser = open_file(path, O_RDONLY);
  ASSERT_EQ(::flock(releaser.get(), LOCK_EX), 0);
  bool found = false;
  std::atomic<bool> done = false;
  std::thread getter([&] {
    try {
      store->get(ref);
      found = true;
    } catch (const NotFound&) {
    }
    done = true;
  });
  const auto times_open = [&] {
    int times = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code gone;
      times += std::filesystem::read_symlink(entry.path(), gone) == path ? 1 : 0;
    }
    return times;
  };
  while (times_open() < 2 && !done) std::this_thread::yield();
  ::usleep(50'000);  // time enough for a get that does not wait
  std::filesystem::remove(path);
  ::flock(releaser.get(), LOCK_UN);
  getter.join();
  EXPECT_FALSE(found);
  EXPECT_EQ(store->health().live_leases, 0u);
}

// A thread that is called away while another process has a generation's lock: nothing of what it had begun stays.
TEST_F(LeasesBetweenProcesses, AnInterruptEndsAWaitForAnothersLock) {
  struct CalledAway {};
  const auto store = attach();
  const SampleRef ref = put(*store);
  const UniqueFd other = open_file(generation_files(root()).at(0), O_RDONLY);
  ASSERT_EQ(::flock(other.get(), LOCK_EX), 0);
  {
    const InterruptScope scope([] { throw CalledAway(); });
    EXPECT_THROW(store->get(ref), CalledAway);
  }
  ::flock(other.get(), LOCK_UN);
  EXPECT_EQ(store->health().live_leases, 0u);
  const Fetched fetched = store->get(ref);

  ASSERT_EQ(::flock(other.get(), LOCK_EX), 0);
  {
    const InterruptScope scope([] { throw CalledAway(); });
    EXPECT_THROW(put(*store, "a", 2), CalledAway);  // which has to retire the one before
    EXPECT_THROW(store->release(fetched.handle), CalledAway);
  }
  ::flock(other.get(), LOCK_UN);
  EXPECT_EQ(generation_files(root()).size(), 1u);
  EXPECT_EQ(store->health().resident_bytes, kSmallBytes);
  expect_same(store->read(ref), small_tensors(1));
  store->release(fetched.handle);
  EXPECT_TRUE(generation_files(root()).empty());
}

TEST_F(LeasesBetweenProcesses, AnInterruptEndsAWalk) {
  struct CalledAway {};
  const auto store = attach({});
  for (int i = 0; i < 20; ++i) put(*store, "s" + std::to_string(i));
  int visited = 0;
  {
    const InterruptScope scope([&] {
      if (visited == 3) throw CalledAway();
    });
    const auto walk = [&] {
      store->for_each(
          [&](const ResidentSample&) {
            ++visited;
            return true;
          },
          [](const std::filesystem::path&, const std::string&) {});
    };
    EXPECT_THROW(walk(), CalledAway);
    EXPECT_THROW(store->gc(), CalledAway);
  }
  EXPECT_EQ(visited, 3);
  store->gc();
  EXPECT_EQ(store->health().resident_samples, 20u);
}

TEST_F(LeasesBetweenProcesses, TheBudgetIsOneForAllProcesses) {
  const SharedDirOptions capped{.max_resident_bytes = 2 * kSmallBytes};
  const auto store = attach(capped);
  put(*store, "a");
  kill(living_child([&](FeatureStore& theirs) { put(theirs, "b"); }, capped));
  EXPECT_EQ(store->health().resident_bytes, 2 * kSmallBytes);
  EXPECT_THROW(put(*store, "c"), Exhausted);
  EXPECT_THROW(attach({.max_resident_bytes = 5}), InvalidArgument);
  EXPECT_THROW(attach({}), InvalidArgument);
  EXPECT_THROW(open_shared_dir_store(temp_.path(), StoreId("st"), {})->put(small_tensors(), SampleId("c"), run_metadata()),
               Exhausted);
}

TEST_F(LeasesBetweenProcesses, GcFreesWhatNobodyTookAndNothingThatIsLeased) {
  const SharedDirOptions holding{.kind = StoreKind::kConsumeOnce, .max_hold_age_ms = 60'000};
  const auto store = attach(holding);
  const SampleRef fresh = put(*store, "fresh");
  std::vector<SampleRef> old{put(*store, "old"), put(*store, "leased")};
  for (const auto& file : generation_files(root())) {
    if (file.filename().string().starts_with("fresh")) continue;
    const timespec times[2] = {{::time(nullptr) - 100, 0}, {::time(nullptr) - 100, 0}};
    ASSERT_EQ(::utimensat(AT_FDCWD, file.c_str(), times, 0), 0);
  }
  const Fetched leased = store->get(old[1]);
  const GcReport report = store->gc();
  EXPECT_EQ(report.force_freed, 1u);
  EXPECT_EQ(report.bytes_removed, kSmallBytes);
  EXPECT_THROW(store->read(old[0]), NotFound);
  expect_same(store->read(old[1]), small_tensors());
  expect_same(store->read(fresh), small_tensors());
  EXPECT_THROW(create_shared_dir_store(temp_.path(), StoreId("other"), {.max_hold_age_ms = 1}), InvalidArgument);
}

TEST_F(LeasesBetweenProcesses, GcRecountsWhatADeathLeftTooHigh) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  {
    Account account(Folder::open(root() / "accounts"), Folder::open(root() / "tmp"));
    account.add(7, 1000, ::time(nullptr) - 1000);  // as a writer killed just before its rename
    account.add(sample_place(ref.sample_id).fan_out_index(), 500, ::time(nullptr) - 500);
  }
  EXPECT_EQ(store->health().resident_samples, 3u);
  std::filesystem::create_directory(root() / "samples" / "07");
  store->gc();
  EXPECT_EQ(store->health().resident_samples, 1u);
  EXPECT_EQ(store->health().resident_bytes, kSmallBytes);
  EXPECT_LE(store->health().oldest_age_s, 200);
}

// As a process leaves it that died while it buried another, or between the account and its own file.
TEST_F(LeasesBetweenProcesses, GcRecountsWhatHoldersReservedAndLeased) {
  const auto store = attach();
  const Fetched fetched = store->get(put(*store));
  {
    Account account(Folder::open(root() / "accounts"), Folder::open(root() / "tmp"));
    account.add_reserved(1'000'000);
    account.add_leases(7);
  }
  EXPECT_EQ(store->health().resident_bytes, kSmallBytes + 1'000'000);
  store->gc();
  EXPECT_EQ(store->health().resident_bytes, kSmallBytes);
  EXPECT_EQ(store->health().live_leases, 1u);
  store->release(fetched.handle);
  EXPECT_EQ(store->health().live_leases, 0u);
}

TEST_F(LeasesBetweenProcesses, AHandWithoutRightsIsToldWhatToDo) {
  if (::geteuid() != 0) GTEST_SKIP() << "another user can only be tried as root";
  std::ifstream protect("/proc/sys/fs/protected_hardlinks");
  int on = 0;
  protect >> on;
  if (on == 0) GTEST_SKIP() << "fs.protected_hardlinks is off here";
  const auto store = attach();
  const SampleRef ref = put(*store);
  ::chmod(temp_.path().c_str(), 0777);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(temp_.path())) {
    ::chmod(entry.path().c_str(), entry.is_directory() ? 0777 : 0666);
  }
  ::chmod(generation_files(root()).at(0).c_str(), 0644);
  const pid_t child = store_testing::fork_child([&] {
    if (::setgroups(0, nullptr) != 0 || ::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(2);
    const auto theirs = open_shared_dir_store(temp_.path(), StoreId("st"), {});
    expect_same(theirs->read(ref), small_tensors());
    try {
      theirs->get(ref);
      ::_exit(3);
    } catch (const PermissionDenied& error) {
      if (std::string(error.what()).find("umask 007") == std::string::npos) ::_exit(4);
    }
  });
  EXPECT_EQ(store_testing::wait_for(child), 0);
  EXPECT_EQ(store->health().live_leases, 0u);
}

// Said at the first put, before anything is there that nobody else can lease.
TEST_F(LeasesBetweenProcesses, AWriterWhoseUmaskLocksTheGroupOutIsRefused) {
  const mode_t before = ::umask(007);
  attach();
  ::umask(022);
  const auto store = attach();
  const std::string message = message_of<PermissionDenied>([&] { put(*store); });
  ::umask(007);
  EXPECT_THAT(message, HasSubstr("mode 0640): others in the group could not lease it; start with umask 007"));
  EXPECT_TRUE(generation_files(root()).empty());
  EXPECT_TRUE(std::filesystem::is_empty(root() / "tmp"));
  EXPECT_NO_THROW(put(*store)) << "asked again with another umask";
  ::umask(before);
}

TEST_F(LeasesBetweenProcesses, MoreLeasesThanTheFileSystemLinksAreUnavailable) {
  const auto store = attach({});
  const SampleRef ref = put(*store);
  constexpr int kMost = 70'000;  // ext4: 65,000 names a file
  std::string message;
  int taken = 0;
  for (; taken < kMost && message.empty(); ++taken) {
    try {
      store->get(ref, {.names = {"input_ids"}});
    } catch (const Unavailable& error) {
      message = error.what();
    }
  }
  if (message.empty()) GTEST_SKIP() << "this file system allows " << kMost << " links";
  EXPECT_THAT(message, HasSubstr("as many names (leases) as its file system allows"));
  EXPECT_EQ(store->health().live_leases, static_cast<std::uint64_t>(taken) - 1);
  expect_same(store->read(ref), small_tensors());
}

}  // namespace
}  // namespace draftflow::store
