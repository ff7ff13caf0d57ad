// SPDX-License-Identifier: Apache-2.0
//
// WriteTurn: lets the writers of one SQLite file take turns, over threads and processes. SQLite's own busy handler polls, so
// a writer in a loop starves the others. Here a writer first takes the gate, then the turn, then opens the gate: whoever
// comes back from his turn finds the gate held by the next in line. The locks are open-file-description locks on two bytes
// of `<ledger>.lock`; the kernel drops them when their holder dies, whoever it has forked. They give fairness only: correctness
// stays with BEGIN IMMEDIATE, so a lock file that somebody deletes does no harm. A wait can be interrupted (base/interrupt.h).
// One object belongs to one thread.
#pragma once

#include <filesystem>
#include <optional>
#include <utility>

#include "ledger/sqlite/forks.h"

namespace draftflow::sqlite {

class WriteTurn {
 public:
  explicit WriteTurn(const std::filesystem::path& lock_file);
  static std::optional<WriteTurn> to_look(const std::filesystem::path& lock_file);  // none where there is no such file

  void take();      // waits for as long as the holder lives
  void give();      // does nothing if the turn is not held
  bool is_taken();  // whether another has it; no, where that cannot be told

 private:
  WriteTurn(std::filesystem::path lock_file, UnsharedFd fd) : path_(std::move(lock_file)), fd_(std::move(fd)) {}
  int try_lock(short type, int byte, int command);  // 0, or errno
  void set_lock(short type, int byte, int command);
  void wait_for(int byte);
  int wait_interruptibly(int byte);

  std::filesystem::path path_;
  UnsharedFd fd_;
  bool held_ = false;
};

}  // namespace draftflow::sqlite
