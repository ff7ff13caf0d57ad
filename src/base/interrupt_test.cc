// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/interrupt.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace draftflow {
namespace {

struct CalledAway : std::runtime_error {
  CalledAway() : std::runtime_error("called away") {}
};

TEST(Interrupt, AThreadWithoutACheckGoesOn) {
  check_interrupt();
  EXPECT_FALSE(may_be_interrupted());
  sleep_interruptibly(std::chrono::milliseconds(1));
}

TEST(Interrupt, TheInnermostCheckCountsAndScopesNest) {
  std::vector<std::string> made;
  {
    const InterruptScope outer([&] { made.emplace_back("outer"); });
    check_interrupt();
    {
      const InterruptScope inner([&] { made.emplace_back("inner"); });
      check_interrupt();
    }
    check_interrupt();
    EXPECT_TRUE(may_be_interrupted());
  }
  check_interrupt();
  EXPECT_EQ(made, (std::vector<std::string>{"outer", "inner", "outer"}));
  EXPECT_FALSE(may_be_interrupted());
}

TEST(Interrupt, WhatTheCheckThrowsComesOutAndTheScopeEndsWithIt) {
  const auto interrupted = [] {
    const InterruptScope scope([] { throw CalledAway(); });
    check_interrupt();
  };
  EXPECT_THROW(interrupted(), CalledAway);
  check_interrupt();
}

TEST(Interrupt, ACheckIsOfItsThreadOnly) {
  int made = 0;
  const InterruptScope scope([&] { ++made; });
  std::thread other([] {
    EXPECT_FALSE(may_be_interrupted());
    check_interrupt();
  });
  other.join();
  EXPECT_EQ(made, 0);
}

TEST(Interrupt, ASleepMakesTheCheckAgainAndAgain) {
  int made = 0;
  const InterruptScope scope([&] {
    if (++made == 3) throw CalledAway();
  });
  EXPECT_THROW(sleep_interruptibly(std::chrono::hours(1)), CalledAway);  // else the test hangs for an hour
}

TEST(Interrupt, ACallIsCompletedUnlessItWaitsWhenAskedToStop) {
  std::atomic<bool> stop{false};
  int made = 0;
  EXPECT_TRUE(complete_unless(stop, [&] { sleep_interruptibly(std::chrono::milliseconds(1)); }));
  EXPECT_FALSE(complete_unless(stop, [&] {
    ++made;
    stop = true;
    sleep_interruptibly(std::chrono::hours(1));  // else the test hangs for an hour
    ++made;
  }));
  EXPECT_EQ(made, 1);
  EXPECT_TRUE(complete_unless(stop, [] {})) << "it did not wait";
  EXPECT_THROW(complete_unless(stop, [] { throw CalledAway(); }), CalledAway);
  EXPECT_FALSE(may_be_interrupted());
}

TEST(Interrupt, AScopeWithoutACheckIsRefused) {
  EXPECT_THROW(InterruptScope(std::function<void()>()), std::logic_error);
}

}  // namespace
}  // namespace draftflow
