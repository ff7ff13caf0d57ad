// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/app.h"
#include "cli/inspect.h"
#include "draftflow/ledger/ledger.h"
#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

using testing::HasSubstr;

LedgerStatus with_group(std::int64_t available, std::int64_t trained = 0) {
  LedgerStatus status;
  GroupStatus group;
  group.group = "train";
  group.window = 4;
  group.available = available;
  group.trained = trained;
  status.groups.push_back(group);
  status.committed = available + trained;
  return status;
}

TEST(Top, RatesAreOfTheGroupThatIsBehind) {
  LedgerStatus before = with_group(10, 4), now = with_group(20, 8);
  GroupStatus slow;
  slow.group = "slow";
  slow.available = 28;
  now.groups.push_back(slow);
  before.groups.push_back(slow);
  const RunRates rates = rates_between(before, now, 2);
  EXPECT_EQ(rates.committed, 7);
  EXPECT_EQ(rates.trained, 0);
}

TEST(Top, OneSentenceSaysWhatLimits) {
  EXPECT_THAT(what_limits({}, {}), HasSubstr("no trainer has come yet"));
  EXPECT_THAT(what_limits(with_group(1), {5, 5}), HasSubstr("capture: group 'train' takes samples as they come"));
  EXPECT_THAT(what_limits(with_group(100), {5, 5}), HasSubstr("training: 100 samples wait for group 'train'"));
  EXPECT_THAT(what_limits(with_group(100), {0, 5}), HasSubstr("producers pause or are slow, 100 samples"));
  EXPECT_THAT(what_limits(with_group(100), {}), HasSubstr("nothing moves: 100 samples wait"));
  LedgerStatus prompts = with_group(1);
  prompts.prompts_pending = 9;
  EXPECT_THAT(what_limits(prompts, {}), HasSubstr("capture: 9 prompts wait and no worker takes them"));
  prompts.prompts_leased = 2;
  EXPECT_THAT(what_limits(prompts, {}), HasSubstr("capture: 2 prompts are leased and none is done"));
  LedgerStatus done = with_group(1, 8);
  done.prompts_closed = true;
  EXPECT_THAT(what_limits(done, {}), HasSubstr("nothing: everything is captured and trained"));
  LedgerStatus rest = with_group(50);
  rest.prompts_closed = true;
  EXPECT_THAT(what_limits(rest, {0, 3}), HasSubstr("training: everything is captured, 50 samples wait"));
}

TEST(Top, EachLookIsALineOfJson) {
  const testing_support::TempFolder folder;
  const std::string file = (folder.path() / "l.sqlite3").string();
  open_sqlite_ledger(file)->declare_group({.group = GroupId("train"), .window = 2});
  std::ostringstream out, err;
  const char* const words[] = {"draftflow", "top", "--ledger", file.c_str(), "--seconds", "0.05", "--count", "2", "--json"};
  EXPECT_EQ(run_cli(9, words, {out, err, false}), 0) << err.str();
  std::istringstream lines(out.str());
  int looks = 0;
  for (std::string line; std::getline(lines, line); ++looks) {
    const auto json = nlohmann::json::parse(line);
    EXPECT_EQ(json["committed_per_s"], 0);
    EXPECT_TRUE(json["limit"].is_string());
  }
  EXPECT_EQ(looks, 2);
}

}  // namespace
}  // namespace draftflow::cli
