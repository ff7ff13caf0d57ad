// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/interrupt.h"

#include <algorithm>
#include <stdexcept>
#include <thread>
#include <utility>

namespace draftflow {

thread_local InterruptScope* InterruptScope::innermost_ = nullptr;

InterruptScope::InterruptScope(std::function<void()> check) : check_(std::move(check)), outer_(innermost_) {
  if (!check_) throw std::logic_error("an InterruptScope needs a check");
  innermost_ = this;
}

InterruptScope::~InterruptScope() {
  innermost_ = outer_;
}

void check_interrupt() {
  if (InterruptScope::innermost_ != nullptr) InterruptScope::innermost_->check_();
}

bool may_be_interrupted() {
  return InterruptScope::innermost_ != nullptr;
}

std::chrono::milliseconds until_next_check(std::chrono::steady_clock::time_point end) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
  return std::clamp(left, std::chrono::milliseconds(0), kInterruptEvery);
}

void sleep_interruptibly(std::chrono::milliseconds duration) {
  const auto end = std::chrono::steady_clock::now() + duration;
  for (;;) {
    check_interrupt();
    const auto part = until_next_check(end);
    if (part.count() == 0) return;
    std::this_thread::sleep_for(part);
  }
}

bool complete_unless(const std::atomic<bool>& stop, const std::function<void()>& call) {
  struct Stopped {};
  const InterruptScope scope([&stop] {
    if (stop.load()) throw Stopped();
  });
  try {
    call();
    return true;
  } catch (const Stopped&) {
    return false;
  }
}

}  // namespace draftflow
