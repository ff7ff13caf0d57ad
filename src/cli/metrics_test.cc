// SPDX-License-Identifier: Apache-2.0
#include "cli/metrics.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cmath>

#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

void append_raw(const std::filesystem::path& path, const std::string& text) {
  const UniqueFd fd = open_file(path, O_WRONLY | O_CREAT | O_APPEND);
  write_all(fd.get(), std::as_bytes(std::span(text)), path);
}

TEST(Metrics, LinesCarryTimeAndProcess) {
  const testing_support::TempFolder folder;
  MetricsWriter writer(folder.path() / "deep" / "m.jsonl");
  TrainProgress progress;
  progress.step = 3;
  progress.loss = {1.5, 2.5};
  writer.append(to_json(progress));
  const auto records = read_metrics(folder.path() / "deep" / "m.jsonl");
  ASSERT_EQ(records.size(), 1u);
  EXPECT_GT(number_or(records[0], "time", 0), 1.6e9);
  EXPECT_EQ(records[0]["process"].get<std::string>().size(), 16u);
  EXPECT_EQ(records[0]["step"], 3);
  EXPECT_EQ(records[0]["loss"], (std::vector<double>{1.5, 2.5}));
}

TEST(Metrics, ATornLineIsSkippedAndTheNextWriterStartsANewOne) {
  const testing_support::TempFolder folder;
  const auto path = folder.path() / "m.jsonl";
  append_raw(path, "{\"step\": 1}\n{\"step\": 2, \"lo");
  EXPECT_EQ(read_metrics(path).size(), 1u);
  MetricsWriter(path).append({{"step", 3}});
  const auto records = read_metrics(path);
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1]["step"], 3);
}

TEST(Metrics, ReaderGivesOnlyWhatIsNewAndWhole) {
  const testing_support::TempFolder folder;
  const auto path = folder.path() / "m.jsonl";
  MetricsReader reader(path);
  EXPECT_TRUE(reader.read_new().empty());  // not there yet
  append_raw(path, "{\"a\":1}\n{\"a\":");
  EXPECT_EQ(reader.read_new().size(), 1u);
  EXPECT_TRUE(reader.read_new().empty());
  append_raw(path, "2}\n");
  const auto rest = reader.read_new();
  ASSERT_EQ(rest.size(), 1u);
  EXPECT_EQ(rest[0]["a"], 2);
}

TEST(Metrics, NotANumberIsNullAndReadsAsTheFallback) {
  const testing_support::TempFolder folder;
  MetricsWriter(folder.path() / "m").append({{"loss", std::nan("")}});
  EXPECT_EQ(number_or(read_metrics(folder.path() / "m").at(0), "loss", -1), -1);
}

TEST(Metrics, TextThatIsNotUtf8IsEscaped) {
  EXPECT_EQ(json_text("gr\xC3\xBC\n"), "gr\xC3\xBC\n");
  EXPECT_EQ(json_text("a\xFF"), "a\\xff");
  EXPECT_NO_THROW((void)to_json(EvalReport{.example_text = "\xFF\xFE"}).dump());
}

}  // namespace
}  // namespace draftflow::cli
