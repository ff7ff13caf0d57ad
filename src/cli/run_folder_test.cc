// SPDX-License-Identifier: Apache-2.0
#include "cli/run_folder.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include "draftflow/base/error.h"
#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

using testing::HasSubstr;

const auto kSilent = [](const std::string&) {};
constexpr std::chrono::milliseconds kNoWait{0};

template <class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return std::string(error_kind_name(error.kind())) + ": " + error.what();
  }
  return "accepted";
}

TEST(RunFolder, ASecondRunIsRefusedAndTheFirstIsNamed) {
  const testing_support::TempFolder folder;
  const RunFolder first(folder.path() / "run", kNoWait, kSilent);
  const std::string text = refusal([&] { RunFolder(folder.path() / "run", kNoWait, kSilent); });
  EXPECT_THAT(text, HasSubstr("Unavailable: another draftflow run works in "));
  EXPECT_THAT(text, HasSubstr("process " + std::to_string(::getpid())));
}

TEST(RunFolder, TheFolderIsFreeAgainAfterwards) {
  const testing_support::TempFolder folder;
  { const RunFolder first(folder.path(), kNoWait, kSilent); }
  EXPECT_NO_THROW(RunFolder(folder.path(), kNoWait, kSilent));
}

TEST(RunFolder, ProcessesOfAnEarlierRunAreWaitedFor) {
  const testing_support::TempFolder folder;
  const UniqueFd left_over = open_file(folder.path() / "children.lock", O_RDWR | O_CREAT);
  ASSERT_EQ(::flock(left_over.get(), LOCK_EX), 0);
  std::string said;
  const std::string text =
      refusal([&] { RunFolder(folder.path(), std::chrono::milliseconds(80), [&](const std::string& line) { said = line; }); });
  EXPECT_THAT(text, HasSubstr("Unavailable: processes of an earlier run still work in"));
  EXPECT_THAT(said, HasSubstr("waiting"));
}

TEST(RunFolder, AnotherConfigurationIsRefusedWithTheKeys) {
  const testing_support::TempFolder folder;
  RunFolder run(folder.path(), kNoWait, kSilent);
  RunConfig config;
  config.target = config.prompts = config.held_out = "/x";
  run.adopt(config);
  EXPECT_NO_THROW(run.adopt(config));
  config.train.window = 4;
  EXPECT_THAT(refusal([&] { run.adopt(config); }), HasSubstr("train.window is '16' there and '4' here; give --fresh"));
}

TEST(RunFolder, AFolderWithSomebodyElsesFilesIsNotTaken) {
  const testing_support::TempFolder folder;
  replace_file(folder.path() / "ledger.sqlite3", "precious");
  RunFolder run(folder.path(), kNoWait, kSilent);
  run.remove_own_files();  // not a run's folder: touches nothing
  EXPECT_EQ(read_text_file(folder.path() / "ledger.sqlite3"), "precious");
  EXPECT_THAT(refusal([&] { run.adopt({}); }), HasSubstr("InvalidArgument"));
}

TEST(RunFolder, FreshRemovesWhatARunMadeAndNothingElse) {
  const testing_support::TempFolder folder;
  const testing_support::TempFolder elsewhere;
  const auto& root = folder.path();
  RunFolder run(root, kNoWait, kSilent);
  run.adopt({});
  for (const char* sub : {"store/features/a", "train/checkpoints/step-1", "logs", "metrics"}) make_folders(root / sub);
  std::filesystem::create_directory_symlink(elsewhere.path(), root / "eval");
  replace_file(elsewhere.path() / "kept.json", "x");
  for (const char* file :
       {"ledger.sqlite3", "ledger.sqlite3.lock", "summary.json", "logs/train.log", "logs/notes.txt", "metrics/train.jsonl",
        "train/mine.txt", "my notes.md", "store/features/a/b", "train/checkpoints/step-1/c"}) {
    replace_file(root / file, "x");
  }
  run.remove_own_files();
  EXPECT_THAT(folder.list(), testing::ElementsAre("children.lock", "eval", "logs", "my notes.md", "run.lock", "train"));
  EXPECT_TRUE(std::filesystem::exists(root / "logs" / "notes.txt"));
  EXPECT_FALSE(std::filesystem::exists(root / "logs" / "train.log"));
  EXPECT_TRUE(std::filesystem::exists(root / "train" / "mine.txt"));
  EXPECT_EQ(elsewhere.list(), std::vector<std::string>{"kept.json"});
}

TEST(RunFolder, StateIsKeptAndADamagedOneIsCorrupt) {
  const testing_support::TempFolder folder;
  const RunFolder run(folder.path(), kNoWait, kSilent);
  EXPECT_TRUE(run.load_state().done.empty());
  run.save_state({{"ingest"}, {{"ingest", 1.5}}});
  EXPECT_TRUE(run.load_state().done.contains("ingest"));
  EXPECT_EQ(run.load_state().seconds.at("ingest"), 1.5);
  replace_file(folder.path() / "state.json", "{}");
  EXPECT_THROW(run.load_state(), Corrupt);
}

}  // namespace
}  // namespace draftflow::cli
