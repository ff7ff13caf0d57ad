// SPDX-License-Identifier: Apache-2.0
//
// Interrupts: how a thread that waits in here can be called away, as a Python program's main thread is by Ctrl-C. It installs
// a check for a scope; whatever may wait longer than 100 ms in that scope makes the check at least every 100 ms, and the check
// throws what shall end the wait. What was begun is then undone as after any other error: a transaction is rolled back, locks
// are given up, and the object can be used again. A check belongs to its thread; other threads never make it. What undoes
// things and must not be called away itself has a scope with a check that does nothing.
//
//   const InterruptScope scope([] { if (ctrl_c_was_pressed()) throw KeyboardInterrupt(); });
//   ledger->lease_refs(request);                                             // KeyboardInterrupt comes out of it
#pragma once

#include <atomic>
#include <chrono>
#include <functional>

namespace draftflow {

// The longest that a wait goes on without a check.
constexpr std::chrono::milliseconds kInterruptEvery{100};

class InterruptScope {
 public:
  explicit InterruptScope(std::function<void()> check);  // std::logic_error for an empty one
  ~InterruptScope();                                     // the check of the scope around it counts again
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  friend void check_interrupt();
  friend bool may_be_interrupted();
  static thread_local InterruptScope* innermost_;

  const std::function<void()> check_;
  InterruptScope* const outer_;
};

void check_interrupt();     // makes the check of the innermost scope; does nothing in a thread without one
bool may_be_interrupted();  // whether this thread has a check

// What is left until `end`, in parts that a wait may last without a check: 0 at the end, never less.
std::chrono::milliseconds until_next_check(std::chrono::steady_clock::time_point end);

void sleep_interruptibly(std::chrono::milliseconds duration);

// Makes the call, whose waits end when `stop` is set; false if one did.
bool complete_unless(const std::atomic<bool>& stop, const std::function<void()>& call);

}  // namespace draftflow
