// SPDX-License-Identifier: Apache-2.0
#include "train/ranks.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <thread>

#include "draftflow/base/error.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

class RanksTest : public ::testing::Test {
 protected:
  RanksOptions options(int rank, int width) const {
    return {.rank = rank, .width = width, .rendezvous = "file://" + (folder_.path() / "meet").string(), .timeout_ms = 20'000};
  }
  // One thread a rank.
  void each(int width, const std::function<void(Ranks&)>& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < width; ++rank) {
      threads.emplace_back([&, rank] {
        Ranks ranks(options(rank, width));
        body(ranks);
        ranks.barrier();
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  testing_support::TempFolder folder_;
};

TEST_F(RanksTest, SumsAreTheSameInEveryRank) {
  std::array<std::array<double, 2>, 3> seen{};
  each(3, [&](Ranks& ranks) {
    std::array<double, 2> values{ranks.rank() + 0.1, 1e9 * ranks.rank()};
    ranks.sum(values);
    seen[static_cast<std::size_t>(ranks.rank())] = values;
  });
  EXPECT_NEAR(seen[0][0], 3.3, 1e-12);
  EXPECT_EQ(seen[0][1], 3e9);
  EXPECT_EQ(seen[0], seen[1]);
  EXPECT_EQ(seen[0], seen[2]);
}

TEST_F(RanksTest, GradientsAddUpAndAMissingOneIsZero) {
  std::array<at::Tensor, 2> grads;
  each(2, [&](Ranks& ranks) {
    at::Tensor a = at::zeros({2, 3}).requires_grad_(true), b = at::zeros({4}).to(at::kBFloat16).requires_grad_(true);
    if (ranks.first()) a.mutable_grad() = at::full({2, 3}, 0.25);
    b.mutable_grad() = at::full({4}, ranks.rank() + 1.0).to(at::kBFloat16);
    ranks.sum_gradients({{"a", a}, {"b", b}});
    EXPECT_TRUE(at::equal(a.grad(), at::full({2, 3}, 0.25)));
    EXPECT_TRUE(at::equal(b.grad(), at::full({4}, 3.0).to(at::kBFloat16)));
  });
}

TEST_F(RanksTest, OneAloneNeedsNoOther) {
  Ranks ranks;
  std::array<double, 1> value{2};
  ranks.sum(value);
  ranks.barrier();
  EXPECT_EQ(value[0], 2);
  EXPECT_TRUE(ranks.first());
}

TEST_F(RanksTest, WhatCannotBeIsRefused) {
  EXPECT_THROW(Ranks(options(2, 2)), InvalidArgument);
  for (const char* const place :
       {"", "meet", "tcp://", "tcp://host", "tcp://:1", "tcp://host:0", "tcp://host:70000", "tcp://h:1x"}) {
    RanksOptions wrong = options(0, 2);
    wrong.rendezvous = place;
    EXPECT_THROW(Ranks{wrong}, InvalidArgument) << place;
  }
}

// A real process and a real SIGKILL; threads of one process would share its sockets' fate.
TEST_F(RanksTest, ARankThatIsKilledIsToldToTheOthers) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::alarm(60);
    try {
      Ranks ranks(options(1, 2));
      std::array<double, 1> value{1};
      ranks.sum(value);
      for (;;) ::pause();
    } catch (...) {
      ::_exit(1);
    }
  }
  Ranks ranks(options(0, 2));
  std::array<double, 1> value{1};
  ranks.sum(value);
  EXPECT_EQ(value[0], 2);
  ::kill(child, SIGKILL);
  try {
    for (int i = 0; i < 100; ++i) ranks.sum(value);
    ADD_FAILURE() << "nobody was missed";
  } catch (const Unavailable& error) {
    EXPECT_NE(std::string(error.what()).find("rank 0 of 2 lost the others"), std::string::npos) << error.what();
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
}

}  // namespace
}  // namespace draftflow
