// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/forks.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <functional>
#include <memory>
#include <thread>

#include "draftflow/base/file.h"
#include "draftflow/base/interrupt.h"
#include "ledger/ledger_story.h"
#include "ledger/sqlite/write_turn.h"

namespace draftflow::sqlite {
namespace {

using testing_support::make_ref;

// A child that ends by itself within half a minute, whatever it waits for.
pid_t in_child(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::alarm(30);
  try {
    work();
    ::_exit(0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "child: %s\n", error.what());
    ::_exit(1);
  }
}

int status_of(pid_t child) {
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
}

class Pipe {
 public:
  Pipe() {
    std::array<int, 2> ends{};
    if (::pipe(ends.data()) != 0) throw std::runtime_error("no pipe");
    reader_ = UniqueFd(ends[0]);
    writer_ = UniqueFd(ends[1]);
  }
  void say() const { EXPECT_EQ(::write(writer_.get(), "x", 1), 1); }
  void hear() const {
    char said = 0;
    EXPECT_EQ(::read(reader_.get(), &said, 1), 1);
  }

 private:
  UniqueFd reader_, writer_;
};

TEST(SqliteForks, WhatAChildCommitsStaysWhenItsParentClosesTheLedger) {
  const testing_support::TempFolder folder;
  const auto path = folder.path() / "ledger.sqlite3";
  auto ledger = open_sqlite_ledger(path);
  ledger->commit_samples({make_ref("parent")}, {{}});
  const Pipe opened, closed;
  const pid_t child = in_child([&] {
    const auto mine = open_sqlite_ledger(path);
    mine->commit_samples({make_ref("child")}, {{}});
    opened.say();
    closed.hear();
    mine->commit_samples({make_ref("late")}, {{}});
  });
  opened.hear();
  ledger.reset();
  EXPECT_EQ(status_of(in_child([&] { open_sqlite_ledger(path)->all_committed_ids(); })), 0);
  closed.say();
  EXPECT_EQ(status_of(child), 0);
  ledger = open_sqlite_ledger(path);
  EXPECT_EQ(ledger->all_committed_ids(), (std::vector<std::string>{"parent", "child", "late"}));
  EXPECT_EQ(ledger->check(), std::vector<std::string>{});
}

TEST(SqliteForks, AGrandchildLocksAnewToo) {
  const testing_support::TempFolder folder;
  const auto path = folder.path() / "ledger.sqlite3";
  auto ledger = open_sqlite_ledger(path);
  const Pipe opened, left, closed;
  const pid_t child = in_child([&] {
    auto mine = open_sqlite_ledger(path);
    mine->commit_samples({make_ref("child")}, {{}});
    const pid_t grandchild = in_child([&] {
      const auto theirs = open_sqlite_ledger(path);
      theirs->commit_samples({make_ref("grandchild")}, {{}});
      opened.say();
      closed.hear();
      theirs->commit_samples({make_ref("late")}, {{}});
    });
    opened.hear();
    mine.reset();
    left.say();
    if (status_of(grandchild) != 0) throw std::runtime_error("the grandchild failed");
  });
  left.hear();
  ledger.reset();
  open_sqlite_ledger(path)->all_committed_ids();
  closed.say();
  EXPECT_EQ(status_of(child), 0);
  EXPECT_EQ(open_sqlite_ledger(path)->all_committed_ids(), (std::vector<std::string>{"child", "grandchild", "late"}));
}

// A child that lives on, as a worker of a DataLoader does, and a parent that is killed in its turn or in the line for it.
TEST(SqliteForks, TheWriteTurnEndsWithItsHolderWhoeverItHasForked) {
  const testing_support::TempFolder folder;
  const auto path = folder.path() / "ledger.sqlite3.lock";
  for (const bool in_turn : {true, false}) {
    SCOPED_TRACE(in_turn);
    const Pipe forked, over;
    auto turn = std::make_unique<WriteTurn>(path);
    if (!in_turn) turn->take();
    const pid_t holder = in_child([&] {
      WriteTurn theirs(path);
      if (in_turn) theirs.take();
      std::thread waits;
      if (!in_turn) {
        waits = std::thread([&] {
          const InterruptScope scope([] {});  // so that a thread of its own waits
          theirs.take();
        });
        WriteTurn look(path);
        while (!look.is_taken()) ::usleep(1000);
        ::usleep(50'000);  // it has the gate, and waits
      }
      in_child([&] {
        forked.say();
        over.hear();
      });
      for (;;) ::pause();
    });
    forked.hear();
    ::kill(holder, SIGKILL);
    status_of(holder);
    turn->give();
    EXPECT_EQ(status_of(in_child([&] {
                WriteTurn next(path);
                next.take();
              })),
              0)
        << "SIGALRM: nobody gets it any more";
    over.say();
  }
}

TEST(SqliteForks, AThreadInsideOfSqliteDoesNotHangAChild) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP()
      << "the address sanitizer's own allocator stays locked in a child that is forked beside another thread: plain builds";
#endif
  const testing_support::TempFolder folder;
  const auto path = folder.path() / "ledger.sqlite3";
  const auto ledger = open_sqlite_ledger(path);
  std::atomic<bool> stop{false};
  std::array<std::thread, 2> busy;
  for (std::thread& thread : busy) {
    thread = std::thread([&] {
      while (!stop) sqlite3_free(sqlite3_malloc(16));  // the mutex that everything takes
    });
  }
  for (int i = 0; i < 50; ++i) {
    const pid_t child = in_child([&] { open_sqlite_ledger(path)->commit_samples({make_ref(std::to_string(i))}, {{}}); });
    EXPECT_EQ(status_of(child), 0) << "child " << i;
    if (::testing::Test::HasFailure()) break;
  }
  stop = true;
  for (std::thread& thread : busy) thread.join();
  EXPECT_EQ(ledger->check(), std::vector<std::string>{});
}

}  // namespace
}  // namespace draftflow::sqlite
