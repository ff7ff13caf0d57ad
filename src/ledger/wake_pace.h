// SPDX-License-Identifier: Apache-2.0
//
// WakePace: keeps the wake-ups of one Ledger::wait() apart, so that a waiter on a busy ledger asks it some 200 times a second
// and not once for each commit. Used by one thread. Private to this room.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <thread>

namespace draftflow {

using WaitClock = std::chrono::steady_clock;

inline WaitClock::time_point wait_end(std::int64_t timeout_ms) {
  constexpr std::int64_t kMostMs = 24LL * 3600 * 1000;  // far from the end of the clock
  return WaitClock::now() + std::chrono::milliseconds(std::clamp<std::int64_t>(timeout_ms, 0, kMostMs));
}

class WakePace {
 public:
  // Sleeps until the next wake-up may be told. False: `end` comes before that, and nothing must be told.
  bool may_wake(WaitClock::time_point end) {
    constexpr std::chrono::milliseconds kApart{5};
    const auto first = std::min(next_, end);
    if (WaitClock::now() < first) std::this_thread::sleep_until(first);
    if (end < next_) return false;
    next_ = WaitClock::now() + kApart;
    return true;
  }

 private:
  WaitClock::time_point next_{};
};

}  // namespace draftflow
