// SPDX-License-Identifier: Apache-2.0
//
// The promise of `draftflow run`: SIGKILL any process of a run at any time, run again, and the same samples have been
// trained, each once. Real processes, a real target (tiny), real signals. Prints its seed; DRAFTFLOW_SEED repeats it.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <functional>
#include <set>
#include <thread>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/random.h"
#include "draftflow/ledger/ledger.h"
#include "ledger/postgres/testing_server.h"
#include "testing/temp_folder.h"
#include "train/testing.h"

namespace draftflow {
namespace {

constexpr int kPrompts = 64, kWindow = 4;
constexpr auto kTick = std::chrono::milliseconds(5);

std::uint64_t test_seed() {
  const char* given = std::getenv("DRAFTFLOW_SEED");
  const std::uint64_t seed = given != nullptr ? std::stoull(given) : std::stoull(random_hex128().substr(0, 15), nullptr, 16);
  fmt::print("seed {} (DRAFTFLOW_SEED={} repeats this run)\n", seed, seed);
  return seed;
}

class RunKill : public ::testing::Test {
 protected:
  RunKill() {
    testing_support::write_target(folder_.path() / "target");
    std::filesystem::copy(std::filesystem::path(DRAFTFLOW_SOURCE_DIR) / "examples/target/tokenizer.model",
                          folder_.path() / "target/tokenizer.model");
    std::string prompts;
    Random random(11);
    for (int i = 0; i < kPrompts; ++i) {
      std::string ids = "1";
      for (std::uint64_t n = 12 + random.below(20); n > 0; --n) ids += fmt::format(",{}", 3 + random.below(37));
      prompts += fmt::format("{{\"input_ids\":[{}]}}\n", ids);
    }
    replace_file(folder_.path() / "prompts.jsonl", prompts);
    replace_file(folder_.path() / "held_out.jsonl", prompts.substr(0, prompts.find('\n') + 1));
  }

  std::filesystem::path write_config(const std::string& out, int ahead, int restarts = 0, int ranks = 1,
                                     const std::string& ledger = "") {
    const auto file = folder_.path() / (out + ".yaml");
    replace_file(
        file, fmt::format("run: kill\ntarget: target\nprompts: prompts.jsonl\nheld_out: held_out.jsonl\nout: {}\n"
                          "restarts: {}\ncapture: {{workers: 2, ahead_samples: {}, lease_ms: 700, lease_tasks: 3}}\n"
                          "train: {{ranks: {}, window: {}, batch: 2, ttt_length: 3, learning_rate: 1e-3, checkpoint_every: 3, "
                          "draft_vocab: 24}}\neval: {{new_tokens: 8, depth: 2}}\n",
                          out, restarts, ahead, ranks, kWindow));
    if (!ledger.empty()) replace_file(file, "ledger: " + ledger + "\n" + read_text_file(file));
    return file;
  }

  pid_t start(const std::filesystem::path& config) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int log = ::open((folder_.path() / "run.log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      ::dup2(log, STDOUT_FILENO);
      ::dup2(log, STDERR_FILENO);
      const std::string program = std::string(DRAFTFLOW_BINARY_DIR) + "/bin/draftflow";
      ::execl(program.c_str(), program.c_str(), "run", config.c_str(), nullptr);
      ::_exit(127);
    }
    return pid;
  }

  static int wait_for(pid_t pid) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  // A child of the supervisor whose command is `command`, or the supervisor itself.
  static pid_t find(pid_t supervisor, const std::string& command) {
    if (command == "run") return supervisor;
    std::ifstream children(fmt::format("/proc/{}/task/{}/children", supervisor, supervisor));
    for (pid_t child = 0; children >> child;) {
      std::ifstream file(fmt::format("/proc/{}/cmdline", child));
      std::string program, first;
      std::getline(std::getline(file, program, '\0'), first, '\0');
      if (first == command) return child;
    }
    return 0;
  }

  // Runs until it is finished; the first time, `when` says at what point the victim is killed. True if it was.
  bool run_with_kill(const std::filesystem::path& config, const std::string& victim,
                     const std::function<bool(const LedgerStatus&)>& when) {
    const pid_t pid = start(config);
    bool killed = false;
    const auto ledger_file = folder_.path() / config.stem() / "ledger.sqlite3";
    while (!killed && ::kill(pid, 0) == 0 && ::waitpid(pid, nullptr, WNOHANG) == 0) {
      std::this_thread::sleep_for(kTick);
      try {
        if (!std::filesystem::exists(ledger_file) || !when(open_sqlite_ledger_read_only(ledger_file)->status())) continue;
      } catch (const Error&) {
        continue;  // it is just being made
      }
      const pid_t target = find(pid, victim);
      killed = target != 0 && ::kill(target, SIGKILL) == 0;
    }
    if (killed) wait_for(pid);
    return killed;
  }

  // One command, whose workers and ranks are killed again and again.
  void run_and_kill(const std::filesystem::path& config, const std::function<LedgerStatus()>& look) {
    Random random(test_seed());
    const pid_t pid = start(config);
    int kills = 0, status = 0;
    std::int64_t next = 6;
    while (::waitpid(pid, &status, WNOHANG) == 0) {
      std::this_thread::sleep_for(kTick);
      try {
        const LedgerStatus now = look();
        if (kills >= 6 || now.committed + now.of(GroupId("train")).trained_step * kWindow < next) continue;
      } catch (const Error&) {
        continue;
      }
      const pid_t target = find(pid, random.below(3) == 0 ? "capture" : "train");
      if (target == 0 || ::kill(target, SIGKILL) != 0) continue;
      ++kills;
      next += 4 + static_cast<std::int64_t>(random.below(20));
    }
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << read_text_file(folder_.path() / "run.log");
    EXPECT_GE(kills, 3) << "too few kills to prove anything";
  }

  void finish(const std::filesystem::path& config) {
    const int code = wait_for(start(config));
    ASSERT_EQ(code, 0) << read_text_file(folder_.path() / "run.log");
  }

  void expect_all_trained_once(const std::string& out) {
    expect_all_trained_once(*open_sqlite_ledger_read_only(folder_.path() / out / "ledger.sqlite3"));
  }
  void expect_all_trained_once(Ledger& ledger) {
    const auto ids = ledger.trained_ids(GroupId("train"));
    const std::set<std::string> distinct(ids.begin(), ids.end());
    EXPECT_EQ(ids.size(), distinct.size());
    std::set<std::string> expected;
    for (int i = 0; i < kPrompts; ++i) expected.insert(fmt::format("kill:{:08}", i));
    EXPECT_EQ(distinct, expected);
    const LedgerStatus status = ledger.status();
    EXPECT_EQ(status.of(GroupId("train")).durable, kPrompts);
    EXPECT_EQ(status.freed, kPrompts);
    EXPECT_EQ(status.resident_bytes, 0u);
  }

  testing_support::TempFolder folder_;
};

TEST_F(RunKill, AnyProcessAtAnyTimeEndsWithTheSameSamples) {
  Random random(test_seed());
  int kills = 0, round = 0;
  for (const std::string victim : {"capture", "train", "run", "train", "capture", "run", "train"}) {
    SCOPED_TRACE(fmt::format("round {}: {}", round, victim));
    const auto config = write_config(fmt::format("out{}", round), 8, /*restarts=*/0, /*ranks=*/1 + round % 2);
    ++round;
    const auto at = static_cast<std::int64_t>(random.below(kPrompts));
    const bool by_step = victim != "capture";
    kills += run_with_kill(config, victim, [&](const LedgerStatus& status) {
      return by_step ? status.of(GroupId("train")).trained_step * kWindow >= at : status.committed >= at;
    });
    finish(config);
    expect_all_trained_once(config.stem());
    if (HasFailure()) return;
  }
  EXPECT_GE(kills, 5) << "too few rounds were killed in time to prove anything";
}

// One command, and nobody looks on: workers and ranks are killed again and again.
TEST_F(RunKill, ARunMendsItself) {
  const auto ledger_file = folder_.path() / "mends" / "ledger.sqlite3";
  run_and_kill(write_config("mends", 8, /*restarts=*/20, /*ranks=*/2), [&] {
    if (!std::filesystem::exists(ledger_file)) throw Unavailable("it is just being made");
    return open_sqlite_ledger_read_only(ledger_file)->status();
  });
  expect_all_trained_once("mends");
}

// The same over a server, which is restarted as well.
TEST_F(RunKill, ARunOnAServerMendsItself) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  int looks = 0;
  run_and_kill(write_config("server", 8, /*restarts=*/20, /*ranks=*/2, url), [&] {
    if (++looks == 300) server.restart(/*immediate=*/true);
    return open_ledger_read_only(url)->status();
  });
  EXPECT_GE(looks, 300) << "the run was over before the server was restarted";
  expect_all_trained_once(*open_ledger_read_only(url));
}
// With everything captured before the first step the order is fixed, so even the weights come out the same to the byte.
TEST_F(RunKill, AKilledTrainerGoesOnToTheSameWeights) {
  const auto weights = [&](const std::string& out) {
    return read_text_file(folder_.path() / out / "train/draft/model.safetensors");
  };
  const auto straight = write_config("straight", kPrompts);
  // One worker: two commit in an order of their own.
  replace_file(straight, read_text_file(straight).replace(read_text_file(straight).find("workers: 2"), 10, "workers: 1"));
  finish(straight);
  for (const std::string victim : {"train", "run"}) {
    const auto config = folder_.path() / (victim + "_killed.yaml");
    std::string text = read_text_file(straight);
    text.replace(text.find("out: straight"), 13, fmt::format("out: {}_killed", victim));
    replace_file(config, text);
    EXPECT_TRUE(run_with_kill(config, victim,
                              [](const LedgerStatus& status) { return status.of(GroupId("train")).trained_step >= 5; }));
    finish(config);
    expect_all_trained_once(config.stem());
    EXPECT_EQ(weights(config.stem()), weights("straight"));
  }
}

}  // namespace
}  // namespace draftflow
