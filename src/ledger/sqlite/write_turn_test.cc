// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/write_turn.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

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

}  // namespace
}  // namespace draftflow::sqlite
