// SPDX-License-Identifier: Apache-2.0
//
// How waiters on a SQLite file sleep: what wakes them, and how little they ask.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <set>
#include <thread>

#include "draftflow/base/interrupt.h"
#include "ledger/ledger_story.h"
#include "ledger/sql/recount.h"
#include "ledger/sqlite/database.h"
#include "ledger/sqlite/file_watch.h"

namespace draftflow::sqlite {
namespace {

using testing_support::as_sql;
using testing_support::make_task;

constexpr std::int64_t kLongMs = 30'000;

class SqliteWait : public ::testing::Test {
 protected:
  std::unique_ptr<SqlLedger> open() const { return as_sql(open_sqlite_ledger(path_)); }
  static Database& database(SqlLedger& ledger) { return dynamic_cast<Database&>(ledger.database()); }
  static void settle(Ledger& ledger) {
    while (ledger.wait(250)) {
    }
  }

  const testing_support::TempFolder folder_;
  const std::filesystem::path path_ = folder_.path() / "ledger.sqlite3";
};

TEST_F(SqliteWait, AnIdleWaiterAsksNothing) {
  const auto waiter = open(), other = open();
  settle(*waiter);
  const std::int64_t looks = database(*waiter).looks();
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(waiter->wait(50));
  EXPECT_EQ(database(*waiter).looks(), looks);
  std::ofstream(folder_.path() / "train.log") << "another file of the folder\n";
  EXPECT_FALSE(waiter->wait(50));
  EXPECT_EQ(database(*waiter).looks(), looks);
  other->ingest_prompts({make_task("a")}, {});
  EXPECT_TRUE(waiter->wait(kLongMs));
}

// A commit is written to the log before it can be seen: until its writer has given up the turn, looking goes on.
TEST_F(SqliteWait, AWriteThatIsNotCommittedYetIsLookedForUntilTheTurnEnds) {
  const auto waiter = open(), other = open();
  settle(*waiter);
  {
    sql::Transaction writing(database(*other));
    std::ofstream(path_.string() + "-journal") << "x";  // watched as the log is
    EXPECT_FALSE(waiter->wait(300));
    std::filesystem::remove(path_.string() + "-journal");
    const std::int64_t looks = database(*waiter).looks();
    EXPECT_FALSE(waiter->wait(300));
    EXPECT_GT(database(*waiter).looks(), looks);
  }
  settle(*waiter);
  const std::int64_t looks = database(*waiter).looks();
  EXPECT_FALSE(waiter->wait(300));
  EXPECT_EQ(database(*waiter).looks(), looks);
}

TEST_F(SqliteWait, AnotherProcessWakes) {
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  const pid_t child = ::fork();  // before this process has the file open
  if (child == 0) {
    char byte = 0;
    if (::read(go[0], &byte, 1) != 1) ::_exit(1);
    open_sqlite_ledger(path_)->ingest_prompts({make_task("a")}, {});
    ::_exit(0);
  }
  const auto waiter = open();
  settle(*waiter);
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  while (waiter->status().prompts == 0) ASSERT_TRUE(waiter->wait(kLongMs));
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  ::close(go[0]);
  ::close(go[1]);
}

TEST_F(SqliteWait, WithoutInotifyItIsLookedAtAgainAndAgain) {
  const auto waiter = open(), other = open();
  waiter->status();
  const int next = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ::close(next);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none_more{.rlim_cur = static_cast<rlim_t>(next), .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none_more), 0);
  EXPECT_FALSE(FileWatch(path_).works());
  EXPECT_TRUE(waiter->wait(0));
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  settle(*waiter);
  const std::int64_t looks = database(*waiter).looks();
  EXPECT_FALSE(waiter->wait(200));
  EXPECT_GT(database(*waiter).looks(), looks + 1);
  std::thread committer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    other->ingest_prompts({make_task("a")}, {});
  });
  EXPECT_TRUE(waiter->wait(kLongMs));
  committer.join();
}

TEST_F(SqliteWait, WhoMayOnlyReadIsWokenToo) {
  const auto writer = open();
  const auto reader = open_sqlite_ledger_read_only(path_);
  settle(*reader);
  writer->ingest_prompts({make_task("a")}, {});
  EXPECT_TRUE(reader->wait(kLongMs));
  EXPECT_EQ(reader->status().prompts, 1);
}

TEST_F(SqliteWait, ByALinkTheFileItselfIsWatched) {
  std::filesystem::create_directory(folder_.path() / "real");
  const auto other = as_sql(open_sqlite_ledger(folder_.path() / "real" / "ledger.sqlite3"));
  std::filesystem::create_symlink(folder_.path() / "real" / "ledger.sqlite3", path_);
  const auto waiter = open();
  settle(*waiter);
  other->ingest_prompts({make_task("a")}, {});
  EXPECT_TRUE(waiter->wait(kLongMs));
}

// A reader in a long transaction keeps a writer from nothing, but a stranger that locks the whole file does.
TEST_F(SqliteWait, AnInterruptEndsAWaitForAStrangersLock) {
  const auto ledger = open();
  sqlite3* stranger = nullptr;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &stranger), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(stranger, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr), SQLITE_OK);
  struct CalledAway {};
  {
    int checks = 0;
    const InterruptScope scope([&] {
      if (++checks > 4) throw CalledAway();
    });
    EXPECT_THROW(ledger->ingest_prompts({make_task("a")}, {}), CalledAway);
  }
  sqlite3_exec(stranger, "ROLLBACK", nullptr, nullptr, nullptr);
  sqlite3_close(stranger);
  ledger->ingest_prompts({make_task("a")}, {});
  open()->ingest_prompts({make_task("b")}, {});
  EXPECT_EQ(ledger->status().prompts, 2);
}

TEST_F(SqliteWait, AnInterruptEndsALongStatement) {
  const auto ledger = open();
  struct CalledAway {};
  {
    int checks = 0;
    const InterruptScope scope([&] {
      if (++checks > 4) throw CalledAway();
    });
    EXPECT_THROW(database(*ledger).find("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000)"
                                        " SELECT COUNT(*) FROM n"),
                 CalledAway);
  }
  EXPECT_EQ(ledger->status().prompts, 0);
  ledger->ingest_prompts({make_task("a")}, {});
}

// --- FileWatch

class SqliteFileWatch : public ::testing::Test {
 protected:
  SqliteFileWatch() { write(database_); }
  static void write(const std::filesystem::path& path) { std::ofstream(path, std::ios::app) << "x" << std::flush; }
  std::filesystem::path beside(const char* ending) const { return database_.string() + ending; }

  const testing_support::TempFolder folder_;
  const std::filesystem::path inner_ = [this] {
    std::filesystem::create_directory(folder_.path() / "inner");
    return folder_.path() / "inner";
  }();
  const std::filesystem::path database_ = inner_ / "db";
};

TEST_F(SqliteFileWatch, TheLogMayBeMadeRemovedAndMadeAgain) {
  FileWatch watch(database_);
  ASSERT_TRUE(watch.works());
  EXPECT_FALSE(watch.take());
  for (int i = 0; i < 3; ++i) {
    write(beside("-wal"));
    EXPECT_TRUE(watch.take());
    EXPECT_FALSE(watch.take());
    std::filesystem::remove(beside("-wal"));
    watch.take();
  }
  write(database_);
  EXPECT_TRUE(watch.take());
}

TEST_F(SqliteFileWatch, OtherFilesAreNothing) {
  FileWatch watch(database_);
  for (const char* ending : {"-shm", ".lock", "-walk", "2"}) write(beside(ending));
  write(inner_ / "d");
  EXPECT_FALSE(watch.take());
}

TEST_F(SqliteFileWatch, AFolderThatGoesEndsItAndSaysSo) {
  FileWatch watch(database_);
  std::filesystem::rename(inner_, folder_.path() / "moved");
  EXPECT_TRUE(watch.take());
  EXPECT_FALSE(watch.works());
  watch.sleep(std::chrono::milliseconds(1));
  EXPECT_FALSE(watch.take());
}

TEST_F(SqliteFileWatch, SleepEndsWithAWrite) {
  FileWatch watch(database_);
  std::thread writer([this] { write(database_); });
  watch.sleep(std::chrono::milliseconds(kLongMs));
  EXPECT_TRUE(watch.take());
  writer.join();
}

TEST_F(SqliteFileWatch, ItsDescriptorIsClosedByExec) {
  std::set<int> before;
  const auto open_ones = [] {
    std::set<int> all;
    for (int fd = 0; fd < 1024; ++fd) {
      if (::fcntl(fd, F_GETFD) >= 0) all.insert(fd);
    }
    return all;
  };
  before = open_ones();
  const FileWatch watch(database_);
  int fresh = 0;
  for (const int fd : open_ones()) {
    if (before.contains(fd)) continue;
    ++fresh;
    EXPECT_NE(::fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
  }
  EXPECT_EQ(fresh, 1);
}

}  // namespace
}  // namespace draftflow::sqlite
