// SPDX-License-Identifier: Apache-2.0
//
// The chaos run: the promise that each committed sample is trained exactly once, in each pass and each queue, whoever dies and
// whenever. Real processes,
// real signals, a real server, a disk that is really full. Prints its seed; DRAFTFLOW_SEED repeats the choices of what happens,
// not the moment at which it does. DRAFTFLOW_CHAOS_SECONDS says for how long. This program also plays the roles of the run.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <map>

#include "chaos/roles.h"
#include "chaos/supervisor.h"

namespace draftflow::chaos {
namespace {

constexpr double kSeconds = 15;        // of chaos, unless DRAFTFLOW_CHAOS_SECONDS says otherwise
constexpr double kPassesPart = 0.5;    // of that, for the groups of several passes
constexpr double kPlantedSeconds = 5;  // the same, with a planted bug
constexpr int kSeedsForABug = 20;

std::uint64_t test_seed() {
  const char* given = std::getenv("DRAFTFLOW_SEED");
  return given != nullptr ? std::stoull(given) : std::stoull(random_hex128().substr(0, 15), nullptr, 16);
}

double chaos_seconds() {
  const char* given = std::getenv("DRAFTFLOW_CHAOS_SECONDS");
  return given != nullptr ? std::stod(given) : kSeconds;
}

std::string all_of(const ChaosResult& result) {
  std::string text;
  for (const std::string& violation : result.violations) text += "  " + violation + "\n";
  return text;
}

void expect_the_promise(ChaosOptions options) {
  options.seed = test_seed();
  options.seconds = chaos_seconds() * (options.scenario == Scenario::kPasses ? kPassesPart : 1);
  fmt::print("seed {} (DRAFTFLOW_SEED={} repeats its choices)\n", options.seed, options.seed);
  const ChaosResult result = run_chaos(options);
  fmt::print("{}\n", result.summary);
  EXPECT_TRUE(result.violations.empty()) << "seed " << options.seed << ", broken promises:\n"
                                         << all_of(result) << "what had happened:\n"
                                         << result.events;
  if (result.violations.empty()) {
    EXPECT_GE(result.kills, 5) << "too few kills to prove anything";
    EXPECT_GE(result.steps, 20) << "too few steps to prove anything";
    if (options.scenario == Scenario::kStream) {
      EXPECT_GE(result.acks, 20) << "too few acks to prove anything";
    }
  }
}

TEST(Chaos, EverySampleIsTrainedOnceOnSqlite) {
  expect_the_promise({});
}

TEST(Chaos, EverySampleIsTrainedOnceOnPostgres) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  expect_the_promise({.server = &server});
}

TEST(Chaos, EveryPassTrainsEverySampleOnSqlite) {
  expect_the_promise({.scenario = Scenario::kPasses});
}

TEST(Chaos, EveryPassTrainsEverySampleOnPostgres) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  expect_the_promise({.scenario = Scenario::kPasses, .server = &server});
}

// Where a bug can be made, and little else that would find it first.
ChaosOptions planted(Bug bug) {
  ChaosOptions options{.scenario = Scenario::kWindows, .seconds = kPlantedSeconds, .bug = bug};
  if (bug == Bug::kFreeAfterPass || bug == Bug::kOnePass) options.scenario = Scenario::kPasses;
  constexpr Bug kOfQueues[] = {Bug::kAckBeforeReading, Bug::kLostAckIsDone, Bug::kFreeAtLease, Bug::kClosedAckIsDone,
                               Bug::kNoteBeforeJoining};
  if (std::find(std::begin(kOfQueues), std::end(kOfQueues), bug) == std::end(kOfQueues)) return options;
  options.scenario = Scenario::kQueue;
  options.seconds /= 2;
  return options;
}

// A check that cannot fail proves nothing.
TEST(PlantedBugs, EachPlantedBugIsFound) {
  const std::uint64_t seed = test_seed();
  fmt::print("seed {} (DRAFTFLOW_SEED={} repeats its choices)\n", seed, seed);
  for (int number = 1; number < static_cast<int>(Bug::kEnd); ++number) {
    const Bug bug = static_cast<Bug>(number);
    ChaosOptions options = planted(bug);
    int runs = 0;
    ChaosResult result;
    do {
      options.seed = seed + static_cast<std::uint64_t>(runs);
      result = run_chaos(options);
    } while (++runs < kSeedsForABug && result.violations.empty());
    fmt::print("{}: {} after {} runs, the last of {:.1f} s: {}\n", bug_name(bug),
               result.violations.empty() ? "MISSED" : "found", runs, result.seconds,
               result.violations.empty() ? result.summary : result.violations[0].substr(0, 160));
    EXPECT_FALSE(result.violations.empty()) << "the run does not see " << bug_name(bug) << ", from seed " << seed << " on";
  }
}

// --- the roles

int play(const std::map<std::string, std::string>& arguments) {
  const auto number = [&](const char* name) { return std::stoi(arguments.at(name)); };
  const std::string& role = arguments.at("role");
  Stage stage(arguments.at("folder"), std::stoull(arguments.at("ordinal")));
  if (role == "producer") return run_producer(stage);
  if (role == "ingester") return run_ingester(stage);
  if (role == "taker") return run_taker(stage, static_cast<std::size_t>(number("group")));
  if (role == "joiner") return run_joiner(stage, static_cast<std::size_t>(number("group")));
  if (role == "closer") return run_closer(stage, static_cast<std::size_t>(number("group")));
  if (role == "collector") return run_collector(stage);
  if (role == "sweeper") return run_sweeper(stage);
  RankOptions options{.group = static_cast<std::size_t>(number("group")), .rank = number("rank"), .width = number("width")};
  options.launch = arguments.at("launch");
  if (const auto found = arguments.find("checkpoint"); found != arguments.end()) options.checkpoint = found->second;
  options.accept_loss = arguments.contains("accept-loss");
  return run_rank(stage, options);
}

}  // namespace
}  // namespace draftflow::chaos

int main(int argc, char** argv) {
  std::map<std::string, std::string> arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (!argument.starts_with("--")) continue;
    const std::size_t end = argument.find('=');
    arguments[argument.substr(2, end - 2)] = end == std::string::npos ? "" : argument.substr(end + 1);
  }
  if (!arguments.contains("role")) {
    ::testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
  }
  try {
    return draftflow::chaos::play(arguments);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return draftflow::chaos::kBroken;
  }
}
