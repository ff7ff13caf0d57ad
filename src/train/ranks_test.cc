// SPDX-License-Identifier: Apache-2.0
#include "train/ranks.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <thread>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/interrupt.h"
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

// Two hosts: on each, its own name is the loopback's, as on many real ones.
class TwoHosts {
 public:
  TwoHosts() {
    made_ = run("ip netns add {0}a && ip netns add {0}b && ip link add {0}a netns {0}a type veth peer name {0}b netns {0}b") &&
            run("ip -n {0}a addr add 10.97.0.1/24 dev {0}a && ip -n {0}b addr add 10.97.0.2/24 dev {0}b") &&
            run("for n in a b; do ip -n {0}$n link set lo up && ip -n {0}$n link set {0}$n up || exit 1; done");
  }
  ~TwoHosts() { run("ip netns del {0}a; ip netns del {0}b"); }
  bool made() const { return made_; }

  // A process on host a or b: 0 if the work is done.
  pid_t on(char host, const std::function<void()>& work) const {
    const pid_t child = ::fork();
    if (child != 0) return child;
    ::alarm(60);
    const UniqueFd name(::open(fmt::format("/var/run/netns/{}{}", name_, host).c_str(), O_RDONLY | O_CLOEXEC));
    if (name.get() < 0 || ::setns(name.get(), CLONE_NEWNET) != 0) ::_exit(3);
    try {
      work();
      ::_exit(0);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "host %c: %s\n", host, error.what());
      ::_exit(1);
    }
  }

 private:
  bool run(const std::string& script) const {
    std::string text = script;
    for (std::size_t at = 0; (at = text.find("{0}")) != std::string::npos;) text.replace(at, 3, name_);
    return std::system(("(" + text + ") > /dev/null 2>&1").c_str()) == 0;
  }
  const std::string name_ = fmt::format("dfr{}", ::getpid());
  bool made_ = false;
};

TEST_F(RanksTest, RanksOfTwoHostsMeetOverTcp) {
  const TwoHosts hosts;
  if (!hosts.made()) GTEST_SKIP() << "no network namespaces here (root and iproute2 make them)";
  const auto work = [&](int rank) {
    return [this, rank] {
      RanksOptions mine = options(rank, 2);
      mine.rendezvous = "tcp://10.97.0.1:29517";
      Ranks ranks(mine);
      std::array<double, 1> value{rank + 1.0};
      ranks.sum(value);
      ranks.barrier();
      if (value[0] != 3) throw std::runtime_error("a wrong sum");
    };
  };
  const pid_t first = hosts.on('a', work(0)), second = hosts.on('b', work(1));
  for (const pid_t child : {second, first}) {
    int status = -1;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
}

std::atomic<bool> g_stop{false};

// A port that nobody listens on: it was given to a socket that is gone.
int free_port() {
  const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  EXPECT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  return ntohs(address.sin_port);
}

// A real process and a real SIGTERM; SIGALRM ends it if it is deaf.
int status_of_a_rank_told_to_stop(const RanksOptions& options) {
  std::array<int, 2> ready{};
  EXPECT_EQ(::pipe(ready.data()), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    ::signal(SIGTERM, [](int) { g_stop = true; });
    const bool told = ::write(ready[1], "", 1) == 1;
    try {
      const bool met = complete_unless(g_stop, [&] { const Ranks ranks(options); });
      ::_exit(told && !met ? 0 : 1);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      ::_exit(2);
    }
  }
  char byte = 0;
  EXPECT_EQ(::read(ready[0], &byte, 1), 1);
  ::usleep(300'000);  // so that it waits
  ::kill(child, SIGTERM);
  int status = -1;
  ::waitpid(child, &status, 0);
  for (const int end : ready) ::close(end);
  return status;
}

TEST_F(RanksTest, ARankThatWaitsForTheOthersHearsASignal) {
  const std::string tcp = fmt::format("tcp://127.0.0.1:{}", free_port());
  for (const int rank : {0, 1}) {
    for (const std::string& place : {options(0, 2).rendezvous + std::to_string(rank), tcp}) {
      EXPECT_EQ(status_of_a_rank_told_to_stop({.rank = rank, .width = 2, .rendezvous = place}), 0) << place << " " << rank;
    }
  }
}

TEST_F(RanksTest, ARankThatDoesNotComeIsNamed) {
  const std::string tcp = fmt::format("tcp://127.0.0.1:{}", free_port());
  const auto refusal = [](const RanksOptions& options) {
    try {
      const Ranks ranks(options);
      return std::string("met");
    } catch (const Unavailable& error) {
      return std::string(error.what());
    }
  };
  const std::string see = "; see the log of the rank that is missing", file = options(0, 2).rendezvous;
  EXPECT_EQ(refusal({.rank = 0, .width = 3, .rendezvous = file, .timeout_ms = 100}),
            "rank 0 did not find the other 2 ranks at " + file + ": rank 1 has not come" + see);
  EXPECT_EQ(refusal({.rank = 0, .width = 2, .rendezvous = tcp, .timeout_ms = 2000}),
            "rank 0 did not find the other 1 ranks at " + tcp + ": rank 1 has not come" + see);
  EXPECT_EQ(refusal({.rank = 1, .width = 2, .rendezvous = tcp, .timeout_ms = 100}),
            "rank 1 did not find the other 1 ranks at " + tcp + ": rank 0 does not listen there" + see);
  EXPECT_THROW(Ranks({.rank = 0, .width = 2, .rendezvous = file + "/absent/meet"}), NotFound);
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
