// SPDX-License-Identifier: Apache-2.0
#include "cli/supervisor.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "cli/stop.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

using testing::HasSubstr;

// A run whose processes are played by cli_stand_in; the script says how each behaves.
class SupervisorTest : public testing::Test {
 protected:
  SupervisorTest() {
    make_folders(folder_.path() / "target");
    replace_file(folder_.path() / "prompts.jsonl", "{}\n");
    replace_file(folder_.path() / "held.jsonl", "{}\n");
    config_ = parse_run_config(
        "run: t\ntarget: target\nprompts: prompts.jsonl\nheld_out: held.jsonl\nout: out\nrestarts: 0\n"
        "capture: {workers: 2}\n",
        folder_.path() / "run.yaml");
    script({});
    ::setenv("STAND_IN_SCRIPT", (folder_.path() / "script.json").c_str(), 1);
    ::setenv("STAND_IN_STARTS", starts().c_str(), 1);
    options_.executable = std::filesystem::path(DRAFTFLOW_BINARY_DIR) / "bin" / "cli_stand_in";
    options_.grace_seconds = 20;
    options_.lock_wait = std::chrono::milliseconds(0);
  }
  ~SupervisorTest() override { stop_flag() = false; }

  void script(const std::map<std::string, std::string>& behaviours) {
    replace_file(folder_.path() / "script.json", nlohmann::json(behaviours).dump());
  }
  std::filesystem::path starts() const { return folder_.path() / "starts"; }
  std::filesystem::path out() const { return folder_.path() / "out"; }

  int run() {
    out_.str("");
    err_.str("");
    return Supervisor(config_, options_, {out_, err_, false}).run();
  }

  // How often each command was started.
  std::map<std::string, int> count_starts() const {
    std::map<std::string, int> counts;
    if (!std::filesystem::exists(starts())) return counts;
    std::istringstream lines(read_text_file(starts()));
    for (std::string line; std::getline(lines, line);) ++counts[line.substr(0, line.find(' '))];
    return counts;
  }
  void wait_for_start(const std::string& command) const {
    for (int i = 0; i < 2000; ++i) {
      if (count_starts().contains(command)) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    FAIL() << command << " was never started";
  }
  // No process that was started is left.
  void expect_no_process_left() const {
    std::istringstream lines(read_text_file(starts()));
    for (std::string line, command, pid; std::getline(lines, line);) {
      std::istringstream(line) >> command >> pid;
      EXPECT_NE(::kill(std::stoi(pid), 0), 0) << command << " " << pid;
    }
  }

  testing_support::TempFolder folder_;
  RunConfig config_;
  SupervisorOptions options_;
  std::ostringstream out_, err_;
};

using Counts = std::map<std::string, int>;

TEST_F(SupervisorTest, RunsEveryStageInProcessesOfTheirOwn) {
  ASSERT_EQ(run(), 0) << err_.str();
  EXPECT_EQ(count_starts(), (Counts{{"ingest", 1}, {"capture", 2}, {"train", 1}, {"eval", 2}}));
  const auto summary = nlohmann::json::parse(read_text_file(out() / "summary.json"));
  EXPECT_EQ(summary["acceptance_length_untrained"], 1.0);
  EXPECT_EQ(summary["acceptance_length_trained"], 2.5);
  EXPECT_EQ(summary["lossless"], true);
  EXPECT_EQ(summary["processes"], 7);  // the supervisor too
  EXPECT_DOUBLE_EQ(summary["data_wait_fraction"].get<double>(), 0.01);
  EXPECT_THAT(read_text_file(out() / "report.html"), HasSubstr("&lt;script&gt;"));
  EXPECT_THAT(out_.str(), HasSubstr("2.50 x"));
}

TEST_F(SupervisorTest, AFinishedRunShowsItsResultAndStartsNothing) {
  ASSERT_EQ(run(), 0);
  const Counts before = count_starts();
  options_.json = true;
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(count_starts(), before);
  EXPECT_EQ(out_.str(), read_text_file(out() / "summary.json"));
}

TEST_F(SupervisorTest, AFailureStopsTheOthersAndTellsTheEndOfTheLog) {
  script({{"capture", "hang"}, {"train", "exit:7"}});
  EXPECT_EQ(run(), 7);
  EXPECT_THAT(err_.str(), HasSubstr("the process 'train'"));
  EXPECT_THAT(err_.str(), HasSubstr("exit code 7 (Corrupt)"));
  EXPECT_THAT(err_.str(), HasSubstr("train says: exit:7"));
  EXPECT_THAT(err_.str(), HasSubstr("again to go on"));
  expect_no_process_left();
  EXPECT_FALSE(std::filesystem::exists(out() / "summary.json"));
}

TEST_F(SupervisorTest, RunAgainItGoesOnWhereItWas) {
  script({{"train", "exit:8"}});
  EXPECT_EQ(run(), 8);
  script({{"eval", "exit:5"}});
  EXPECT_EQ(run(), 5);
  script({});
  EXPECT_EQ(run(), 0) << err_.str();
  const Counts counts = count_starts();
  EXPECT_EQ(counts.at("ingest"), 1);
  EXPECT_EQ(counts.at("train"), 2);
}

TEST_F(SupervisorTest, AMissingEvaluationAloneIsDoneAgain) {
  ASSERT_EQ(run(), 0);
  std::filesystem::remove(out() / "eval" / "trained.json");
  std::filesystem::remove(out() / "summary.json");
  ASSERT_EQ(run(), 0) << err_.str();
  EXPECT_EQ(count_starts(), (Counts{{"ingest", 1}, {"capture", 2}, {"train", 1}, {"eval", 3}}));
}

TEST_F(SupervisorTest, AKilledProcessIsNamedWithItsSignal) {
  script({{"train", "kill"}});
  EXPECT_EQ(run(), exit_code(ErrorKind::kUnavailable));
  EXPECT_THAT(err_.str(), HasSubstr("was killed by signal 9"));
}

TEST_F(SupervisorTest, AWorkerThatIsKilledIsStartedAgainAlone) {
  config_.restarts = 1;
  script({{"capture", "kill:1"}});
  EXPECT_EQ(run(), 0) << err_.str();
  const Counts counts = count_starts();
  EXPECT_EQ(counts.at("capture"), 3);
  EXPECT_EQ(counts.at("train"), 1);
  EXPECT_THAT(err_.str(), HasSubstr("was killed by signal 9 (Killed): starting capture-"));
}

TEST_F(SupervisorTest, TheRanksOfALaunchEndAndStartTogether) {
  config_.restarts = 1;
  config_.train.ranks = 2;
  script({{"train", "kill:1"}});
  EXPECT_EQ(run(), 0) << err_.str();
  std::istringstream lines(read_text_file(starts()));
  std::map<std::string, int> launches;
  std::string last;
  for (std::string line, command, pid, launch; std::getline(lines, line);) {
    std::istringstream(line) >> command >> pid >> launch;
    if (command != "train") continue;
    ++launches[launch];
    last = launch;
  }
  ASSERT_EQ(launches.size(), 2u) << "another launch has another name";
  EXPECT_EQ(launches[last], 2) << "both, though one was not killed";
}

TEST_F(SupervisorTest, TheRankThatFailedIsNamedNotTheOneThatLostIt) {
  config_.train.ranks = 2;
  for (const int restarts : {0, 3}) {
    config_.restarts = restarts;
    script({{"train", "lost"}, {"train-1", "exit:6"}});
    EXPECT_EQ(run(), 6);
    EXPECT_THAT(err_.str(), HasSubstr("the process 'train-1'"));
  }
}

TEST_F(SupervisorTest, StartingAgainHasABound) {
  config_.restarts = 2;
  script({{"capture", "hang"}, {"train", "kill"}});
  EXPECT_EQ(run(), exit_code(ErrorKind::kUnavailable));
  EXPECT_EQ(count_starts().at("train"), 3);
  EXPECT_THAT(err_.str(), HasSubstr("'train' was started again 2 times without progress"));
  EXPECT_THAT(err_.str(), HasSubstr("again to go on"));
  expect_no_process_left();
}

TEST_F(SupervisorTest, WhatWouldFailAgainIsNotStartedAgain) {
  config_.restarts = 3;
  for (const int code : {1, 2, 6, 7}) {
    script({{"capture", "hang"}, {"train", fmt::format("exit:{}", code)}});
    EXPECT_EQ(run(), code);
  }
  EXPECT_EQ(count_starts().at("train"), 4);
}

TEST_F(SupervisorTest, AnotherNumberOfRanksIsTheSameRun) {
  script({{"train", "exit:7"}});
  EXPECT_EQ(run(), 7);
  config_.train.ranks = 4;
  config_.restarts = 5;
  script({});
  EXPECT_EQ(run(), 0) << err_.str();
}

TEST_F(SupervisorTest, AStopEndsEverythingCleanly) {
  script({{"capture", "hang"}, {"train", "hang"}});
  std::thread presser([&] {
    wait_for_start("train");
    stop_flag() = true;
  });
  EXPECT_EQ(run(), kInterruptedExitCode);
  presser.join();
  expect_no_process_left();
  EXPECT_THAT(err_.str(), HasSubstr("again to go on"));
}

TEST_F(SupervisorTest, OneThatDoesNotStopIsKilled) {
  options_.grace_seconds = 0.1;
  script({{"capture", "stuck"}, {"train", "exit:1"}});
  EXPECT_EQ(run(), 1);
  expect_no_process_left();
}

TEST_F(SupervisorTest, AnotherConfigurationIsRefusedAndFreshStartsOver) {
  ASSERT_EQ(run(), 0);
  config_.train.window = 32;
  EXPECT_THROW(run(), InvalidArgument);
  options_.fresh = true;
  EXPECT_EQ(run(), 0) << err_.str();
  EXPECT_EQ(count_starts().at("ingest"), 2);
}

TEST_F(SupervisorTest, AnEvaluationThatIsNoneIsCorrupt) {
  script({{"eval", "exit:0"}});
  EXPECT_THROW(run(), Corrupt);
  expect_no_process_left();
}

}  // namespace
}  // namespace draftflow::cli
