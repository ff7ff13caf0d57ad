// SPDX-License-Identifier: Apache-2.0
//
// Real processes, real SIGKILL, a really full file system: after each, the books balance.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/random.h"
#include "ledger/ledger_story.h"
#include "ledger/sql/recount.h"

namespace draftflow {
namespace {

using testing_support::make_ref;
using testing_support::make_task;

pid_t start(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  try {
    work();
    ::_exit(0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "child: %s\n", error.what());
    ::_exit(1);
  }
}

std::unique_ptr<SqlLedger> open_here(const std::filesystem::path& path) {
  return testing_support::as_sql(open_sqlite_ledger(path));
}

// A producer and a trainer in one: everything the ledger can be killed in.
void work_for_ever(const std::filesystem::path& path, int life) {
  const auto ledger = open_here(path);
  const GroupId group("train");
  const HolderId me(fmt::format("life {}", life));
  const GroupId queue("queue");
  ledger->declare_group({.group = group, .window = 4, .resumable_checkpoints = 1});
  ledger->declare_group({.group = queue, .kind = GroupKind::kQueue});
  const GroupStatus before = ledger->status().of(group);
  std::optional<CheckpointMark> resume;
  if (before.durable_step > 0) resume = CheckpointMark{ledger->id(), group, before.timeline, before.durable_step};
  const TimelineInfo timeline = ledger->open_timeline({.group = group, .resume = resume});
  std::int64_t step = timeline.first_step, next = timeline.first_window;
  for (int i = 0;; ++i) {
    ledger->ingest_prompts({make_task(fmt::format("{}:{}", life, i)), make_task(fmt::format("{}:{}b", life, i))}, {});
    for (const PromptLease& lease : ledger->lease_prompts(me, 2, 1).leases) {
      ledger->commit_sample(make_ref(lease.task.task_id.str()), lease);
    }
    const QueueAnswer work =
        ledger->lease_refs({.group = queue, .holder = me, .max_refs = 3, .partition = Partition{i % 2, 2}});
    if (i % 8 < 4) ledger->ack_refs(queue, work.leases);
    if (i % 8 >= 4) ledger->fail_refs(queue, work.leases, "told to", i % 3 != 0);
    const WindowAnswer answer = ledger->read_window(group, timeline.number, next, {});
    if (!answer.window) continue;
    ++next;
    ledger->trained(group, timeline.number, answer.window->number, ++step, {});
    if (step % 3 != 0) continue;
    ledger->checkpointed(group, timeline.number, step);
    std::vector<SampleId> gone;
    for (const SampleRef& ref : ledger->freeable(8)) gone.push_back(ref.sample_id);
    ledger->freed(gone);
  }
}

TEST(LedgerCrash, AKilledProcessLeavesTheBooksRight) {
  const testing_support::TempFolder folder;
  const auto path = folder.path() / "l.sqlite3";
  const std::uint64_t seed = 20240607;
  Random random(seed);
  SCOPED_TRACE(fmt::format("seed {}", seed));
  constexpr int kLives = 20, kMostLives = 200;
  std::int64_t trained = 0;
  // A slow disk needs longer lives before anything is trained at all.
  for (int life = 0; life < kLives || (trained == 0 && life < kMostLives); ++life) {
    const pid_t child = start([&] { work_for_ever(path, life); });
    ::usleep(static_cast<useconds_t>((20'000 + random.below(60'000)) * (1 + static_cast<std::uint64_t>(life) / kLives)));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself";
    const auto ledger = open_here(path);
    testing_support::expect_books_balance(*ledger);
    testing_support::expect_prompts_match_samples(*ledger);
    sql::Query integrity = ledger->database().query("PRAGMA integrity_check");
    ASSERT_TRUE(integrity.step());
    EXPECT_EQ(integrity.text(0), "ok");
    trained = ledger->status().of(GroupId("train")).trained_step;
    ASSERT_FALSE(HasFailure()) << "life " << life;
  }
  EXPECT_GT(trained, 0) << "no child lived long enough to train";
}

// With SQLite's own waiting, one of two writers in a loop gets everything.
TEST(LedgerCrash, WritersTakeTurns) {
  constexpr int kWriters = 3, kEach = 200;
  const testing_support::TempFolder folder;
  const auto path = folder.path() / "l.sqlite3";
  open_here(path);
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  std::vector<pid_t> children;
  for (int writer = 0; writer < kWriters; ++writer) {
    children.push_back(start([&, writer] {
      const auto ledger = open_here(path);
      char byte = 0;
      if (::read(go[0], &byte, 1) != 1) throw Unavailable("no start signal");
      for (int i = 0; i < kEach; ++i) {
        SampleRef ref = make_ref(fmt::format("{}:{}", writer, i));
        ledger->commit_samples({ref}, {});
      }
    }));
  }
  ASSERT_EQ(::write(go[1], "xxx", kWriters), kWriters);
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  ::close(go[0]);
  ::close(go[1]);
  const auto ledger = open_here(path);
  const std::vector<std::string> order = ledger->all_committed_ids();
  ASSERT_EQ(order.size(), static_cast<std::size_t>(kWriters * kEach));
  // While all of them write, nobody gets a long run for himself.
  std::map<char, int> done;
  int run = 0, longest = 0;
  char last = 0;
  for (const std::string& id : order) {
    run = id[0] == last ? run + 1 : 1;
    last = id[0];
    longest = std::max(longest, run);
    if (++done[id[0]] == kEach) break;  // the first one is through: from here on fewer compete
  }
  EXPECT_EQ(done.size(), static_cast<std::size_t>(kWriters));
  for (const auto& [writer, count] : done) EXPECT_GE(count, kEach / 4) << "writer " << writer << " starved";
  EXPECT_LE(longest, kEach / 4);
}

// Unmounts whatever happens.
class SmallFileSystem {
 public:
  explicit SmallFileSystem(const std::filesystem::path& at) : at_(at) {
    std::filesystem::create_directories(at);
    mounted_ = ::mount("tmpfs", at.c_str(), "tmpfs", 0, "size=1m") == 0;
  }
  SmallFileSystem(const SmallFileSystem&) = delete;
  SmallFileSystem& operator=(const SmallFileSystem&) = delete;
  ~SmallFileSystem() {
    if (mounted_) ::umount2(at_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }

 private:
  std::filesystem::path at_;
  bool mounted_ = false;
};

TEST(LedgerCrash, AFullDiskIsExhaustedAndLosesNothing) {
  const testing_support::TempFolder folder;
  const SmallFileSystem small(folder.path() / "small");
  if (!small.mounted()) GTEST_SKIP() << "mounting a tmpfs is not permitted: " << std::strerror(errno);
  const auto path = folder.path() / "small" / "l.sqlite3";
  const auto filler = folder.path() / "small" / "filler";
  replace_file(filler, std::string(400'000, 'x'));
  auto ledger = open_here(path);
  std::int64_t committed = 0;
  bool full = false;
  for (int i = 0; i < 5000 && !full; ++i) {
    try {
      ledger->ingest_prompts({make_task(fmt::format("p{}", i))}, {});
      const PromptAnswer answer = ledger->lease_prompts(HolderId("w"), 1, 100'000);
      ledger->commit_sample(make_ref(answer.leases.at(0).task.task_id.str()), answer.leases.at(0));
      ++committed;
    } catch (const Exhausted& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(path.string()));
      full = true;
    }
  }
  ASSERT_TRUE(full);
  EXPECT_GT(committed, 0);
  EXPECT_EQ(ledger->status().committed, committed);
  testing_support::expect_books_balance(*ledger);
  std::filesystem::remove(filler);
  ledger->ingest_prompts({make_task("after")}, {});
  ledger = open_here(path);
  EXPECT_EQ(ledger->status().committed, committed);
  testing_support::expect_books_balance(*ledger);
  testing_support::expect_prompts_match_samples(*ledger);
}

TEST(LedgerCrash, AFullDiskFromTheStartLeavesNoHalfLedger) {
  const testing_support::TempFolder folder;
  const SmallFileSystem small(folder.path() / "small");
  if (!small.mounted()) GTEST_SKIP() << "mounting a tmpfs is not permitted: " << std::strerror(errno);
  const auto path = folder.path() / "small" / "l.sqlite3";
  const auto filler = folder.path() / "small" / "filler";
  replace_file(filler, std::string(1'000'000, 'x'));
  EXPECT_THROW(open_here(path), Exhausted);
  std::filesystem::remove(filler);
  EXPECT_EQ(open_here(path)->status().prompts, 0);
}

// A trainer has the ledger open twice. If opening it lost the process's locks, the next process to close the ledger would
// remove the log that the trainer still writes to, and a SIGKILL would lose what it committed since.
TEST(SqliteCrash, AnotherProcessThatComesAndGoesTakesNothingFromOneThatHasTheLedgerOpenTwice) {
  const testing_support::TempFolder folder;
  const auto path = folder.path() / "ledger.sqlite3";
  int told[2], go[2];
  ASSERT_EQ(::pipe(told), 0);
  ASSERT_EQ(::pipe(go), 0);
  char byte = 0;
  const pid_t twice = start([&] {
    const auto first = open_here(path), second = open_here(path);
    first->declare("before", "1");
    if (::write(told[1], "x", 1) != 1 || ::read(go[0], &byte, 1) != 1) ::_exit(2);
    second->declare("after", "2");
    if (::write(told[1], "x", 1) != 1) ::_exit(2);
    ::pause();
  });
  ASSERT_EQ(::read(told[0], &byte, 1), 1);
  const pid_t visitor = start([&] { open_here(path)->declared("before"); });
  int status = 0;
  ASSERT_EQ(::waitpid(visitor, &status, 0), visitor);
  ASSERT_EQ(status, 0);
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  ASSERT_EQ(::read(told[0], &byte, 1), 1);
  ASSERT_EQ(::kill(twice, SIGKILL), 0);
  ASSERT_EQ(::waitpid(twice, &status, 0), twice);
  const auto again = open_here(path);
  EXPECT_EQ(again->declared("before"), "1");
  EXPECT_EQ(again->declared("after"), "2");
  for (const int fd : {told[0], told[1], go[0], go[1]}) ::close(fd);
}

}  // namespace
}  // namespace draftflow
