// SPDX-License-Identifier: Apache-2.0
//
// Stories of training, over every backend: windows, timelines, checkpoints, resume, freeing, the end.
#include "ledger/ledger_story.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;
using testing_support::expect_error;
using testing_support::make_ref;
using testing_support::make_task;

class LedgerTraining : public testing_support::LedgerStory {
 protected:
  std::vector<std::string> window_ids(const WindowAnswer& answer) {
    std::vector<std::string> ids;
    if (answer.window) {
      for (const SampleRef& ref : answer.window->refs) ids.push_back(ref.sample_id.str());
    }
    return ids;
  }
};
INSTANTIATE_LEDGER_STORY(LedgerTraining);

TEST_P(LedgerTraining, GroupsAreDeclaredOnce) {
  expect_error<InvalidArgument>([&] { ledger_->open_timeline({.group = group_}); }, "'train' is not declared");
  expect_error<InvalidArgument>([&] { declare(0); }, "window is 0");
  expect_error<InvalidArgument>([&] { declare(4, 0); }, "resumable_checkpoints is 0");
  declare(4);
  declare(4, 2);
  expect_error<InvalidArgument>([&] { declare(8); }, "window of 4, not 8");
  expect_error<InvalidArgument>([&] { ledger_->declare_group({.group = group_, .window = 4, .tail = TailPolicy::kCarry}); },
                                "the tail policy 'drop', not 'carry'");
}

TEST_P(LedgerTraining, AWindowOpensWhenItsRefsAreCommitted) {
  declare(2);
  const std::int64_t timeline = open_timeline(*ledger_);
  EXPECT_EQ(next_window(*ledger_, timeline).state, WindowState::kWaiting);
  commit(0, 1);
  EXPECT_EQ(next_window(*ledger_, timeline).state, WindowState::kWaiting);
  commit(1, 5);
  const WindowAnswer first = next_window(*ledger_, timeline);
  EXPECT_EQ(first.state, WindowState::kWindow);
  EXPECT_EQ(first.window->number, 0);
  EXPECT_THAT(window_ids(first), ElementsAre("s0", "s1"));
  EXPECT_THAT(window_ids(next_window(*ledger_, timeline)), ElementsAre("s2", "s3"));
  EXPECT_EQ(next_window(*ledger_, timeline).state, WindowState::kWaiting);
  EXPECT_EQ(group_status().windowed, 4);
  EXPECT_EQ(group_status().available, 1);
}

TEST_P(LedgerTraining, AnotherObjectOfTheTimelineBeginsAtTheFirstUntrainedWindow) {
  declare(1);
  commit(0, 3);
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 1);
  next_window(*ledger_, timeline);
  EXPECT_THAT(window_ids(next_window(*ledger_, timeline)), ElementsAre("s2"));
  EXPECT_THAT(window_ids(next_window(*open(), timeline)), ElementsAre("s1"));
}

TEST_P(LedgerTraining, TrainedMovesTheWholeWindowAndRepeatsHarmlessly) {
  declare(2);
  commit(0, 4);
  const std::int64_t timeline = open_timeline(*ledger_);
  EXPECT_THAT(train(timeline, 1, 1), ElementsAre("s0", "s1"));
  ledger_->trained(group_, timeline, 0, 1, {});
  EXPECT_EQ(group_status().trained, 2);
  EXPECT_EQ(group_status().trained_step, 1);
  EXPECT_THAT(ledger_->trained_ids(group_), ElementsAre("s0", "s1"));
  expect_error<Conflict>([&] { ledger_->trained(group_, timeline, 0, 2, {}); },
                         "was trained at step 1 of timeline 1, not at step 2");
}

TEST_P(LedgerTraining, WrongAcknowledgementsAreRefused) {
  declare(1);
  commit(0, 3);
  const std::int64_t timeline = open_timeline(*ledger_);
  for (int i = 0; i < 3; ++i) next_window(*ledger_, timeline);
  expect_error<InvalidArgument>([&] { ledger_->trained(group_, timeline, 1, 1, {}); }, "the next to train is 0");
  expect_error<InvalidArgument>([&] { ledger_->trained(group_, timeline, 9, 1, {}); }, "3 windows are dealt");
  expect_error<InvalidArgument>([&] { ledger_->trained(group_, timeline, -1, 1, {}); }, "window -1");
  expect_error<InvalidArgument>([&] { ledger_->trained(group_, timeline, 0, 0, {}); }, "step 0 is done already");
  ledger_->trained(group_, timeline, 0, 1, {});
  expect_error<InvalidArgument>([&] { ledger_->trained(group_, timeline, 1, 1, {}); }, "one step trains one window");
  expect_error<InvalidArgument>(
      [&] {
        ledger_->trained(group_, timeline, 1, 2, {{SampleId("s0"), "bad"}});
      },
      "'s0' is not in window 1");
  EXPECT_EQ(group_status().trained_step, 1);
}

TEST_P(LedgerTraining, ANewTimelineEndsTheOldOne) {
  declare(1);
  commit(0, 2);
  const std::int64_t first = open_timeline(*ledger_);
  next_window(*ledger_, first);
  auto other = open();
  const std::int64_t second = open_timeline(*other);
  EXPECT_EQ(second, first + 1);
  expect_error<Conflict>([&] { next_window(*ledger_, first); },
                         "read_window on timeline 1 of group 'train': the newest timeline is 2");
  expect_error<Conflict>([&] { ledger_->trained(group_, first, 0, 1, {}); }, "trained on timeline 1");
  expect_error<Conflict>([&] { ledger_->checkpointed(group_, first, 0); }, "checkpointed on timeline 1");
  EXPECT_THAT(window_ids(next_window(*other, second)), ElementsAre("s0"));
  EXPECT_THROW(next_window(*ledger_, 0), Conflict);
}

TEST_P(LedgerTraining, WithoutACheckpointEverythingTrainedIsDealtAgainInOrder) {
  declare(2);
  commit(0, 6);
  const auto seen = train(open_timeline(*ledger_), 1, 2);
  const std::int64_t again = open_timeline(*ledger_);
  EXPECT_EQ(group_status().trained, 0);
  EXPECT_EQ(group_status().trained_step, 0);
  EXPECT_THAT(ledger_->trained_ids(group_), IsEmpty());
  EXPECT_EQ(train(again, 1, 2), seen);
  EXPECT_THAT(train(again, 3, 1), ElementsAre("s4", "s5"));
}

TEST_P(LedgerTraining, ResumingReturnsWhatWasTrainedAfterTheCheckpoint) {
  declare(1);
  commit(0, 6);
  const std::int64_t first = open_timeline(*ledger_);
  train(first, 1, 4);
  ledger_->checkpointed(group_, first, 2);
  EXPECT_EQ(group_status().durable, 2);
  EXPECT_EQ(group_status().trained, 2);
  const TimelineInfo second = ledger_->open_timeline({.group = group_, .resume = mark(first, 2)});
  EXPECT_EQ(second.first_step, 2);
  EXPECT_EQ(second.ledger_id, ledger_->id());
  EXPECT_EQ(group_status().trained, 0);
  EXPECT_EQ(group_status().windowed, 2);
  EXPECT_THAT(train(second.number, 3, 4), ElementsAre("s2", "s3", "s4", "s5"));
  EXPECT_THAT(ledger_->trained_ids(group_), ElementsAre("s0", "s1", "s2", "s3", "s4", "s5"));
}

TEST_P(LedgerTraining, ACheckpointTheLedgerHasNotHeardOfIsRecordedFirst) {
  declare(1);
  commit(0, 4);
  const std::int64_t first = open_timeline(*ledger_);
  train(first, 1, 3);  // the checkpoint of step 3 is down, its record is not
  const TimelineInfo second = ledger_->open_timeline({.group = group_, .resume = mark(first, 3)});
  EXPECT_EQ(second.first_step, 3);
  EXPECT_EQ(group_status().durable, 3);
  EXPECT_EQ(group_status().durable_step, 3);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1", "s2"));
}

TEST_P(LedgerTraining, CheckpointsOffTheLineAreRefusedByName) {
  declare(1);
  commit(0, 8);
  const std::int64_t first = open_timeline(*ledger_);
  train(first, 1, 4);
  ledger_->checkpointed(group_, first, 2);
  ledger_->checkpointed(group_, first, 4);
  const std::int64_t second = ledger_->open_timeline({.group = group_, .resume = mark(first, 2)}).number;
  train(second, 3, 1);
  expect_error<Conflict>([&] { ledger_->open_timeline({.group = group_, .resume = mark(first, 4)}); },
                         "checkpoint (timeline 1, step 4) of group 'train' is not on the line");
  expect_error<Conflict>([&] { ledger_->open_timeline({.group = group_, .resume = mark(second, 4)}); },
                         "timeline 2 steps 2 to 3, timeline 1 steps 0 to 2");
  expect_error<Conflict>([&] { ledger_->open_timeline({.group = group_, .resume = mark(7, 1)}); }, "timeline 7");
  expect_error<Conflict>([&] { ledger_->open_timeline({.group = group_, .resume = mark(first, -1)}); }, "step -1");
  CheckpointMark foreign = mark(first, 2);
  foreign.ledger_id = "feed";
  expect_error<Conflict>([&] { ledger_->open_timeline({.group = group_, .resume = foreign}); },
                         "is of ledger feed, not of ledger " + ledger_->id());
  foreign = mark(first, 2);
  foreign.group = GroupId("other");
  expect_error<Conflict>([&] { ledger_->open_timeline({.group = group_, .resume = foreign}); },
                         "cannot be resumed by group 'train'");
  EXPECT_EQ(group_status().timeline, second);  // a refused resume ends no timeline
  const TimelineInfo third = ledger_->open_timeline({.group = group_, .resume = mark(first, 2)});
  EXPECT_THAT(train(third.number, 3, 1), ElementsAre("s2"));
  EXPECT_EQ(ledger_->open_timeline({.group = group_, .resume = mark(third.number, 3)}).first_step, 3);
}

TEST_P(LedgerTraining, AnOlderCheckpointIsFineWhileItsBytesAreThere) {
  declare(1);
  commit(0, 5);
  const std::int64_t first = open_timeline(*ledger_);
  train(first, 1, 4);
  ledger_->checkpointed(group_, first, 2);
  ledger_->checkpointed(group_, first, 4);
  const TimelineInfo second = ledger_->open_timeline({.group = group_, .resume = mark(first, 2)});
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1"));  // 2 and 3 are needed again
  EXPECT_THAT(train(second.number, 3, 3), ElementsAre("s2", "s3", "s4"));
}

TEST_P(LedgerTraining, AResumeThatWouldLoseBytesIsRefusedWithTheCount) {
  declare(1);
  commit(0, 5);
  const std::int64_t first = open_timeline(*ledger_);
  train(first, 1, 4);
  ledger_->checkpointed(group_, first, 1);
  ledger_->checkpointed(group_, first, 3);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1", "s2"));  // handed out: they may be gone already
  expect_error<InvalidArgument>([&] { ledger_->open_timeline({.group = group_, .resume = mark(first, 1)}); },
                                "2 samples trained after it are freed and would be lost; resume from the checkpoint at step 3");
  free({"s0", "s1", "s2"});
  expect_error<InvalidArgument>([&] { ledger_->open_timeline({.group = group_, .resume = mark(first, 1)}); }, "2 samples");
  expect_error<InvalidArgument>([&] { ledger_->open_timeline({.group = group_}); }, "no checkpoint was presented): 3 samples");
  EXPECT_EQ(ledger_->open_timeline({.group = group_, .resume = mark(first, 3)}).first_step, 3);
}

TEST_P(LedgerTraining, OnlyWhatEveryResumableCheckpointHoldsMayGo) {
  declare(1, 2);
  commit(0, 6);
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 5);
  ledger_->checkpointed(group_, timeline, 2);
  EXPECT_THAT(freeable_ids(), IsEmpty());  // one checkpoint only
  ledger_->checkpointed(group_, timeline, 2);
  EXPECT_THAT(freeable_ids(), IsEmpty());
  ledger_->checkpointed(group_, timeline, 4);
  EXPECT_THAT(freeable_ids(1), testing::SizeIs(1));
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1"));
  ledger_->checkpointed(group_, timeline, 5);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1", "s2", "s3"));
  EXPECT_THAT(freeable_ids(0), IsEmpty());
}

TEST_P(LedgerTraining, FreeingCountsOnce) {
  declare(2);
  commit(0, 4);
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 2);
  ledger_->checkpointed(group_, timeline, 1);
  EXPECT_THROW(free({"s0"}), Conflict);  // not handed out
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1"));
  expect_error<Conflict>([&] { free({"s0", "s2"}); }, "'s2' was not handed out");
  EXPECT_EQ(ledger_->status().freed, 0);  // the batch is one transaction
  free({"s0", "s1"});
  free({"s0", "s1"});
  EXPECT_EQ(ledger_->status().freed, 2);
  EXPECT_EQ(ledger_->status().resident_bytes, 200U);
  EXPECT_THAT(freeable_ids(), IsEmpty());
  free({});
}

TEST_P(LedgerTraining, ACheckpointHoldsOnlyAcknowledgedSteps) {
  declare(1);
  commit(0, 3);
  const std::int64_t first = open_timeline(*ledger_);
  train(first, 1, 2);
  expect_error<InvalidArgument>([&] { ledger_->checkpointed(group_, first, 3); }, "the newest trained step is 2");
  ledger_->checkpointed(group_, first, 2);
  const std::int64_t second = ledger_->open_timeline({.group = group_, .resume = mark(first, 2)}).number;
  expect_error<InvalidArgument>([&] { ledger_->checkpointed(group_, second, 1); }, "the timeline starts at step 2");
  ledger_->checkpointed(group_, second, 2);
  EXPECT_EQ(group_status().durable_step, 2);
}

TEST_P(LedgerTraining, AFailedSampleKeepsItsPlaceAndItsReason) {
  declare(2);
  commit(0, 4);
  const std::int64_t first = open_timeline(*ledger_);
  next_window(*ledger_, first);
  ledger_->trained(group_, first, 0, 1, {{SampleId("s1"), "not finite"}, {SampleId("s1"), "twice"}});
  EXPECT_EQ(group_status().failed, 1);
  EXPECT_EQ(group_status().trained, 1);
  EXPECT_THAT(ledger_->trained_ids(group_), ElementsAre("s0"));
  const std::int64_t second = open_timeline(*ledger_);
  EXPECT_EQ(group_status().failed, 0);
  const WindowAnswer again = next_window(*ledger_, second);
  EXPECT_THAT(window_ids(again), ElementsAre("s0", "s1"));
  ledger_->trained(group_, second, 0, 1, {{SampleId("s1"), "not finite"}});
  ledger_->checkpointed(group_, second, 1);
  EXPECT_EQ(group_status().durable, 1);
  EXPECT_EQ(group_status().failed, 1);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1"));
}

TEST_P(LedgerTraining, TheEndComesOnlyWhenThePromptsAreFinished) {
  declare(2);
  commit(0, 2);
  ingest({"s2"});
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 1);
  ledger_->close_prompts();
  EXPECT_EQ(next_window(*ledger_, timeline).state, WindowState::kWaiting);
  const PromptLease lease = lease_one("worker", 10);
  now_ms_ += 100;  // its producer died: not the same as finished
  EXPECT_EQ(next_window(*ledger_, timeline).state, WindowState::kWaiting);
  ledger_->commit_sample(make_ref("s2"), lease);
  EXPECT_EQ(next_window(*ledger_, timeline).state, WindowState::kEndOfStream);
  EXPECT_EQ(next_window(*ledger_, timeline).state, WindowState::kEndOfStream);
  EXPECT_EQ(group_status().dropped, 1);
  EXPECT_EQ(group_status().available, 0);
  EXPECT_THAT(freeable_ids(), ElementsAre("s2"));
  EXPECT_EQ(next_window(*open(), timeline).state, WindowState::kEndOfStream);
}

TEST_P(LedgerTraining, AfterTheEndTheSameWindowsCanBeTrainedAgain) {
  declare(2);
  commit(0, 5);
  ledger_->close_prompts();
  const std::int64_t first = open_timeline(*ledger_);
  const auto seen = train(first, 1, 2);
  EXPECT_EQ(next_window(*ledger_, first).state, WindowState::kEndOfStream);
  free(freeable_ids());  // the tail
  const std::int64_t second = open_timeline(*ledger_);
  EXPECT_EQ(train(second, 1, 2), seen);
  EXPECT_EQ(next_window(*ledger_, second).state, WindowState::kEndOfStream);
  EXPECT_EQ(group_status().dropped, 1);
}

TEST_P(LedgerTraining, ARunWithoutASampleEnds) {
  declare(4);
  ingest({"a"});
  ledger_->close_prompts();
  ledger_->fail_prompt(lease_one(), "bad", false, 1);
  EXPECT_EQ(next_window(*ledger_, open_timeline(*ledger_)).state, WindowState::kEndOfStream);
}

}  // namespace
}  // namespace draftflow
