// SPDX-License-Identifier: Apache-2.0
#include "cli/summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace draftflow::cli {
namespace {

RunRecords some_records() {
  RunRecords records;
  records.ledger = {{{"time", 100}, {"committed", 0}},
                    {{"time", 104}, {"committed", 40}, {"committed_tokens", 4000}},
                    {{"time", 108}, {"committed", 40}, {"committed_tokens", 4000}}};
  records.add_train(
      {{{"step", 1}, {"process", "a"}, {"samples", 8}, {"step_seconds", 50}},
       {{"step", 2}, {"process", "a"}, {"samples", 16}, {"step_seconds", 2}, {"total_wait_seconds", 0.1}, {"total_seconds", 2}},
       {{"step", 3},
        {"process", "b"},
        {"samples", 24},
        {"step_seconds", 2},
        {"total_wait_seconds", 0.3},
        {"total_seconds", 6},
        {"loss_total", 1.25}}});
  records.untrained = {{"acceptance_length", 1.1}, {"lossless", true}, {"prompts", 4}, {"acceptance", {0.1}}};
  records.trained = {
      {"acceptance_length", 2.2}, {"lossless", true}, {"prompts", 4}, {"acceptance", {0.8, 0.4}}, {"libtorch", "1.13"}};
  records.processes = {{{"time", 1}, {"pid", 10}}, {{"time", 2}, {"pid", 11}}, {{"time", 9}, {"pid", 10}}};
  return records;
}

TEST(Summary, HasTheKeysAndTheArithmetic) {
  const Json s = make_summary({}, some_records(), {{}, {{"eval", 3.0}}}, 24, 3);
  EXPECT_EQ(s["acceptance_length_untrained"], 1.1);
  EXPECT_EQ(s["acceptance_length_trained"], 2.2);
  EXPECT_EQ(s["lossless"], true);
  EXPECT_EQ(s["samples"], 24);
  EXPECT_EQ(s["optimizer_steps"], 3);
  EXPECT_DOUBLE_EQ(s["data_wait_fraction"].get<double>(), 0.4 / 8);  // over both trainer processes
  EXPECT_EQ(s["processes"], 3);                                      // a pid used again is another process
  EXPECT_DOUBLE_EQ(s["rates"]["capture_samples_per_second"].get<double>(), 10);
  EXPECT_DOUBLE_EQ(s["rates"]["train_samples_per_second"].get<double>(), 4);  // the first step left out
  EXPECT_EQ(s["seconds"]["eval"], 3.0);
  EXPECT_EQ(s["versions"]["libtorch"], "1.13");
}

TEST(Summary, LosslessNeedsBothEvaluationsAndAPrompt) {
  RunRecords records = some_records();
  records.untrained["lossless"] = false;
  EXPECT_EQ(make_summary({}, records, {}, 0, 0)["lossless"], false);
  records = some_records();
  records.trained["prompts"] = 0;
  EXPECT_EQ(make_summary({}, records, {}, 0, 0)["lossless"], false);
  records.trained = nullptr;
  EXPECT_EQ(make_summary({}, records, {}, 0, 0)["lossless"], false);
}

TEST(Summary, NothingTrainedIsNoDivisionByZero) {
  EXPECT_EQ(data_wait_fraction({}), 0);
  EXPECT_EQ(make_summary({}, {}, {}, 0, 0)["rates"]["train_steps_per_second"], 0.0);
}

TEST(Summary, TableShowsTheComparison) {
  const std::string table = summary_table(make_summary({}, some_records(), {}, 24, 3), "/r/report.html");
  EXPECT_THAT(table, testing::HasSubstr("1.100        2.200   2.00 x"));
  EXPECT_THAT(table, testing::HasSubstr("accepted at position 2                -       40.0 %"));
  EXPECT_THAT(table, testing::HasSubstr("5.00 % of the trainer's time"));
  EXPECT_THAT(table, testing::HasSubstr("/r/report.html"));
}

TEST(Summary, TableOfADamagedSummaryDoesNotCrash) {
  EXPECT_THAT(summary_table(Json::object(), "r"), testing::HasSubstr("NO"));
}

}  // namespace
}  // namespace draftflow::cli
