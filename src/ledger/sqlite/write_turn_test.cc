// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/write_turn.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "draftflow/base/interrupt.h"
#include "testing/temp_folder.h"

namespace draftflow::sqlite {
namespace {

TEST(WriteTurn, OneAtATime) {
  const testing_support::TempFolder folder;
  std::atomic<int> inside{0}, together{0};
  const auto work = [&] {
    WriteTurn turn(folder.path() / "lock");
    for (int i = 0; i < 300; ++i) {
      turn.take();
      if (inside.fetch_add(1) != 0) ++together;
      inside.fetch_sub(1);
      turn.give();
      turn.give();  // not held: nothing happens
    }
  };
  std::thread a(work), b(work), c(work);
  a.join();
  b.join();
  c.join();
  EXPECT_EQ(together, 0);
}

TEST(WriteTurn, AKilledHolderGivesItBack) {
  const testing_support::TempFolder folder;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    WriteTurn turn(folder.path() / "lock");
    turn.take();
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  WriteTurn turn(folder.path() / "lock");
  ::kill(child, SIGKILL);
  turn.take();
  turn.give();
  ::waitpid(child, nullptr, 0);
  ::close(ready[0]);
  ::close(ready[1]);
}

// Called away while another has the turn, and while a third waits at the gate; neither keeps anything.
TEST(WriteTurn, AWaitIsInterruptedAndGivesUpItsPlace) {
  const testing_support::TempFolder folder;
  struct CalledAway {};
  WriteTurn held(folder.path() / "lock"), waiting(folder.path() / "lock"), third(folder.path() / "lock");
  held.take();
  std::thread behind([&] {
    third.take();
    third.give();
  });
  for (int i = 0; i < 4; ++i) {
    int checks = 0;
    const InterruptScope scope([&] {
      if (++checks > 2) throw CalledAway();
    });
    EXPECT_THROW(waiting.take(), CalledAway);
  }
  EXPECT_TRUE(waiting.is_taken());
  held.give();
  behind.join();
  held.take();
  held.give();
  EXPECT_FALSE(waiting.is_taken());
  waiting.take();
  EXPECT_FALSE(waiting.is_taken());  // by another
  EXPECT_TRUE(held.is_taken());
  waiting.give();
}

// Those that can be interrupted stand in the same line.
TEST(WriteTurn, WhoCanBeInterruptedIsNotOvertakenForEver) {
  const testing_support::TempFolder folder;
  std::atomic<bool> stop{false};
  const auto hog = [&] {
    WriteTurn turn(folder.path() / "lock");
    while (!stop) {
      turn.take();
      ::usleep(200);
      turn.give();
    }
  };
  std::thread a(hog), b(hog), c(hog);
  const InterruptScope scope([] {});
  WriteTurn turn(folder.path() / "lock");
  for (int i = 0; i < 50; ++i) {
    turn.take();
    turn.give();
  }
  stop = true;
  a.join();
  b.join();
  c.join();
}

TEST(WriteTurn, WithoutALockFileThereIsNothingToLookAt) {
  const testing_support::TempFolder folder;
  EXPECT_FALSE(WriteTurn::to_look(folder.path() / "lock"));
  WriteTurn turn(folder.path() / "lock");
  auto looks = WriteTurn::to_look(folder.path() / "lock");
  ASSERT_TRUE(looks);
  EXPECT_FALSE(looks->is_taken());
  turn.take();
  EXPECT_TRUE(looks->is_taken());
  turn.give();
}

}  // namespace
}  // namespace draftflow::sqlite
