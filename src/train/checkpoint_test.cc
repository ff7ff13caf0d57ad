// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "draftflow/base/error.h"
#include "testing/temp_folder.h"
#include "train/testing.h"

namespace draftflow {
namespace {

struct Case {
  testing_support::TempFolder folder;
  Eagle3Draft draft = testing_support::make_draft(at::kFloat);
  Optimizer optimizer{draft.parameters(), {.total_steps = 100}};
  TrainerState at_step(std::int64_t step) {
    TrainerState state;
    state.mark = {.ledger_id = "abc", .group = GroupId("train"), .timeline = 3, .step = step};
    state.windows = step;
    state.total_steps = 100;
    state.options = {{"window", "8"}, {"seed", "1"}};
    return state;
  }
};

TEST(Checkpoint, FindsTheNewestAndReadsItsStateBack) {
  Case c;
  const CheckpointFolder folder(c.folder.path());
  EXPECT_FALSE(folder.newest());
  for (const std::int64_t step : {5, 12, 100}) folder.save(c.at_step(step), c.draft, c.optimizer);
  const auto newest = folder.newest();
  ASSERT_TRUE(newest);
  EXPECT_EQ(newest->state.mark.step, 100);
  EXPECT_EQ(newest->state.mark.ledger_id, "abc");
  EXPECT_EQ(newest->state.mark.timeline, 3);
  EXPECT_EQ(newest->state.options.at("window"), "8");
  folder.restore(*newest, c.optimizer);
  EXPECT_EQ(c.optimizer.steps_done(), 100);
}

TEST(Checkpoint, PruneKeepsTheNewest) {
  Case c;
  const CheckpointFolder folder(c.folder.path());
  for (const std::int64_t step : {5, 12, 100}) folder.save(c.at_step(step), c.draft, c.optimizer);
  folder.prune(2);
  EXPECT_EQ(c.folder.list(), (std::vector<std::string>{"step-0000000012", "step-0000000100"}));
}

TEST(Checkpoint, AHalfWrittenOneIsNeverSeenAndIsClearedByItsWriterAlone) {
  Case c;
  const CheckpointFolder first(c.folder.path());
  first.save(c.at_step(5), c.draft, c.optimizer);
  std::filesystem::create_directories(c.folder.path() / ".tmp-0000000006" / "draft");  // what a kill leaves
  const CheckpointFolder second(c.folder.path());  // as the other ranks of a launch do, all at the same time
  EXPECT_EQ(second.newest()->state.mark.step, 5);
  EXPECT_EQ(c.folder.list().size(), 2u);
  second.clear_unfinished();
  EXPECT_EQ(c.folder.list(), std::vector<std::string>{"step-0000000005"});
}

TEST(Checkpoint, DamageIsNamed) {
  Case c;
  const CheckpointFolder folder(c.folder.path());
  const auto path = folder.save(c.at_step(5), c.draft, c.optimizer);
  replace_file(path / "state.json", "{\"state_version\": 1}");
  EXPECT_THROW(folder.newest(), Corrupt);
  replace_file(path / "state.json", "{\"state_version\": 9}");
  EXPECT_THROW(folder.newest(), InvalidArgument);
  std::filesystem::resize_file(path / "optimizer.safetensors", 100);
  EXPECT_THROW(folder.restore({path, c.at_step(5)}, c.optimizer), Corrupt);
}

TEST(Checkpoint, OtherOptionsAreRefusedWithBothValues) {
  Case c;
  try {
    check_same_options(c.at_step(5), {{"window", "16"}, {"seed", "1"}}, "step-5");
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("(window: 8 then, 16 now)"), std::string::npos) << error.what();
  }
  EXPECT_NO_THROW(check_same_options(c.at_step(5), {{"window", "8"}, {"seed", "1"}}, "step-5"));
}

}  // namespace
}  // namespace draftflow
