// SPDX-License-Identifier: Apache-2.0
#include "cli/records.h"

#include <gtest/gtest.h>

#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

TEST(RunRecords, AStepDoneAgainAfterAKillCountsOnceAndTheLastCounts) {
  RunRecords records;
  records.add_train({{{"step", 1}, {"process", "a"}, {"loss_total", 9}},
                     {{"step", 2}, {"process", "a"}, {"loss_total", 8}},
                     {{"step", 2}, {"process", "b"}, {"loss_total", 7}},
                     {{"nonsense", true}}});
  EXPECT_EQ(records.train.size(), 2u);
  EXPECT_EQ(records.train.at(2)["loss_total"], 7);
  EXPECT_EQ(records.trainers.size(), 2u);
}

TEST(RunRecords, AnEvaluationThatIsNoneReadsAsMissing) {
  const testing_support::TempFolder folder;
  EXPECT_TRUE(load_eval(folder.path() / "missing.json").is_null());
  for (const char* text : {"", "[]", "{\"acceptance_length\": 1}", "{\"acc"}) {
    replace_file(folder.path() / "e.json", text);
    EXPECT_TRUE(load_eval(folder.path() / "e.json").is_null()) << text;
  }
  replace_file(folder.path() / "e.json", R"({"acceptance_length": 1.5, "lossless": true})");
  EXPECT_EQ(load_eval(folder.path() / "e.json")["acceptance_length"], 1.5);
}

TEST(ActiveClock, CutsThePauseBetweenTwoStartsOut) {
  const ActiveClock clock({{{"time", 100}}, {{"time", 101}}, {{"time", 102}}, {{"time", 9000}}, {{"time", 9001}}});
  EXPECT_DOUBLE_EQ(clock.seconds(101.5), 1.5);
  EXPECT_DOUBLE_EQ(clock.seconds(9000), 3);
  EXPECT_DOUBLE_EQ(clock.total(), 4);
  EXPECT_DOUBLE_EQ(clock.seconds(50), 0);
  EXPECT_DOUBLE_EQ(clock.seconds(99999), 4);
  EXPECT_DOUBLE_EQ(ActiveClock({}).seconds(5), 0);
}

}  // namespace
}  // namespace draftflow::cli
