// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/interrupt.h"

#include <gtest/gtest.h>

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

TEST(Interrupt, AScopeWithoutACheckIsRefused) {
  EXPECT_THROW(InterruptScope(std::function<void()>()), std::logic_error);
}

}  // namespace
}  // namespace draftflow
