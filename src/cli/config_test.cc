// SPDX-License-Identifier: Apache-2.0
#include "cli/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

using testing::HasSubstr;

constexpr const char* kGood = R"(run: demo
target: target
prompts: prompts.jsonl
held_out: held.jsonl
out: ../out/demo
capture:
  workers: 2
  ahead_samples: 64
  layers: [1, 3, 4]
  high_watermark: 256MiB
  low_watermark: 128MiB
train:
  window: 8
  batch: 4
  learning_rate: 3e-4
eval:
  new_tokens: 32
)";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  return text.replace(text.find(from), from.size(), to);
}

std::string refusal(const std::string& text) {
  try {
    parse_run_config(text, "/c/run.yaml");
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(RunConfig, ReadsSectionsAndResolvesPathsAgainstTheFile) {
  const RunConfig config = parse_run_config(kGood, "/c/d/run.yaml");
  EXPECT_EQ(config.workers, 2);
  EXPECT_EQ(config.train.ahead_samples, 64);
  EXPECT_EQ(config.capture.layers, (std::vector<int>{1, 3, 4}));
  EXPECT_EQ(config.capture.high_watermark_bytes, 256ULL << 20);
  EXPECT_EQ(config.train.learning_rate, 3e-4);
  EXPECT_EQ(config.eval.new_tokens, 32);
  EXPECT_EQ(config.out, "/c/out/demo");
  EXPECT_EQ(config.eval.prompts, "/c/d/held.jsonl");
  EXPECT_EQ(config.capture.target, "/c/d/target");
}

TEST(RunConfig, ASwitchThatIsOnByDefaultCanBeTurnedOff) {
  EXPECT_TRUE(parse_run_config(kGood, "/c/run.yaml").train.checkpoint_on_pressure);
  const RunConfig off =
      parse_run_config(replaced(kGood, "window: 8", "window: 8\n  checkpoint_on_pressure: false"), "/c/r.yaml");
  EXPECT_FALSE(off.train.checkpoint_on_pressure);
  EXPECT_FALSE(parse_run_config(to_yaml(off), "/c/r.yaml").train.checkpoint_on_pressure);
  EXPECT_THAT(refusal(replaced(kGood, "window: 8", "checkpoint_on_pressure: never")),
              HasSubstr("'never' is not true or false"));
}

TEST(RunConfig, RefusalsNameLineKeyAndWhatIsAllowed) {
  EXPECT_EQ(refusal(replaced(kGood, "window: 8", "windw: 8")).substr(0, 91),
            "/c/run.yaml line 13: train.windw: unknown key; allowed are ranks, window, batch, ttt_length");
  EXPECT_THAT(refusal(replaced(kGood, "run: demo", "rum: demo")),
              HasSubstr("line 1: rum: unknown key; allowed are run, target"));
  EXPECT_EQ(refusal(replaced(kGood, "workers: 2", "workers: many")),
            "/c/run.yaml line 7: capture.workers: 'many' is not a whole number of 1 or more");
  EXPECT_EQ(refusal(replaced(kGood, "workers: 2", "workers: [1, 2]")),
            "/c/run.yaml line 7: capture.workers: has a list where a whole number of 1 or more is expected");
  EXPECT_EQ(refusal(replaced(kGood, "workers: 2", "workers:")),
            "/c/run.yaml line 7: capture.workers: has nothing where a whole number of 1 or more is expected");
  EXPECT_THAT(refusal(replaced(kGood, "batch: 4", "window: 4")), HasSubstr("line 14: train.window: is there twice"));
  EXPECT_THAT(refusal(replaced(kGood, "[1, 3, 4]", "[1, [3]]")), HasSubstr("capture.layers: an item is not a number"));
  EXPECT_THAT(refusal(replaced(kGood, "eval:\n  new_tokens: 32", "eval: fast")), HasSubstr("line 16: eval: keys and values"));
}

TEST(RunConfig, RefusesWhatIsNoConfiguration) {
  EXPECT_EQ(refusal(replaced(kGood, "target: target\n", "")), "/c/run.yaml: 'target' is missing");
  EXPECT_THAT(refusal(""), HasSubstr("'target' is missing"));
  EXPECT_THAT(refusal("just text"), HasSubstr("keys and values are expected"));
  EXPECT_THAT(refusal("a: [1"), HasSubstr("not YAML"));
  EXPECT_THAT(refusal("run: \xFF"), HasSubstr("is not UTF-8 at byte 5"));
  EXPECT_THAT(refusal("[]: 1"), HasSubstr("unknown key"));
}

TEST(RunConfig, YamlRoundTripKeepsEveryValue) {
  RunConfig config = parse_run_config(kGood, "/c/d/run.yaml");
  config.run = "a \"quoted\": name # not a comment";
  const RunConfig again = parse_run_config(to_yaml(config), "/elsewhere/run.yaml");
  EXPECT_EQ(flatten(again), flatten(config));
}

TEST(RunConfig, DifferencesNameKeysAndBothValuesButNotTheFolder) {
  const RunConfig there = parse_run_config(kGood, "/c/run.yaml");
  RunConfig here = there;
  here.out = "/moved";
  EXPECT_EQ(differences(there, here), "");
  here.train.window = 16;
  EXPECT_EQ(differences(there, here), "train.window is '8' there and '16' here");
}

TEST(RunConfig, TheDocumentNamesEveryKey) {
  const std::string document = read_text_file(std::filesystem::path(DRAFTFLOW_SOURCE_DIR) / "docs" / "configuration.md");
  for (const auto& [key, value] : flatten(RunConfig{})) {
    EXPECT_THAT(document, HasSubstr("`" + key.substr(key.find('.') + 1) + "`")) << key;
  }
}

TEST(RunConfig, TheDemosConfigurationIsOne) {
  const RunConfig config = load_run_config(std::filesystem::path(DRAFTFLOW_SOURCE_DIR) / "examples" / "demo.yaml");
  EXPECT_EQ(config.run, "demo");
  EXPECT_EQ(config.train.window % config.train.batch, 0);
}

class CheckRunConfig : public testing::Test {
 protected:
  CheckRunConfig() {
    std::filesystem::create_directory(folder_.path() / "target");
    replace_file(folder_.path() / "target" / "config.json", R"({"hidden_size": 128, "max_position_embeddings": 256})");
    replace_file(folder_.path() / "prompts.jsonl", "{}\n");
    replace_file(folder_.path() / "held.jsonl", "{}\n");
    config_ = parse_run_config(kGood, folder_.path() / "run.yaml");
  }
  std::string refusal() {
    try {
      check_run_config(config_);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }
  testing_support::TempFolder folder_;
  RunConfig config_;
};

TEST_F(CheckRunConfig, SampleBytesFollowTheTarget) {
  EXPECT_EQ(sample_bytes(config_, 100), 100u * (4 * 128 * 2 + 16));
  EXPECT_EQ(sample_bytes(config_, 0), 256u * (4 * 128 * 2 + 16));
  EXPECT_EQ(sample_bytes(config_, 9999), 256u * (4 * 128 * 2 + 16));
}

TEST_F(CheckRunConfig, ACapInTokensNeedsTheSchedulesLength) {
  config_.train.max_window_tokens = 4096;
  EXPECT_THAT(refusal(), HasSubstr("train.max_window_tokens is 4096"));
  EXPECT_THAT(refusal(), HasSubstr("give train.total_steps"));
  config_.train.total_steps = 100;
  EXPECT_EQ(refusal(), "accepted");
}

TEST_F(CheckRunConfig, AcceptsAndRefuses) {
  EXPECT_EQ(refusal(), "accepted");
  config_.train.batch = 3;
  EXPECT_THAT(refusal(), HasSubstr("train.batch 3 does not divide train.window 8"));
  config_.train.batch = 4;
  config_.capture.low_watermark_bytes = config_.capture.high_watermark_bytes + 1;
  EXPECT_THAT(refusal(), HasSubstr("0 < low <= high"));
  config_.capture.low_watermark_bytes = 1;
  config_.train.ahead_samples = 1'000'000;
  EXPECT_THAT(refusal(), HasSubstr("capture.ahead_samples 1000000 x the largest sample"));
  config_.train.ahead_samples = 0;
  config_.capture.high_watermark_bytes = 1 << 20;
  EXPECT_NE(refusal(), "accepted");  // flow/backpressure.h has the arithmetic
  config_.held_out = folder_.path() / "missing";
  EXPECT_THAT(refusal(), HasSubstr("held_out: "));
}

}  // namespace
}  // namespace draftflow::cli
