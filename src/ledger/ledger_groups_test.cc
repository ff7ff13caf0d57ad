// SPDX-License-Identifier: Apache-2.0
//
// Stories of several ranks and several groups, over every backend: shares of windows, launches, changes of the width, who pins
// which bytes, tails, and what a resume may lose.
#include "ledger/ledger_story.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;
using testing_support::expect_error;

class LedgerGroups : public testing_support::LedgerStory {
 protected:
  std::vector<std::string> share_ids(const TimelineInfo& timeline, std::int64_t number, int rank, int width) {
    std::vector<std::string> ids;
    const WindowAnswer answer = ledger_->read_window(group_, timeline.number, number, {.rank = rank, .width = width});
    if (!answer.window) return ids;
    for (const SampleRef& ref : answer.window->refs) ids.push_back(ref.sample_id.str());
    return ids;
  }
  TimelineInfo open_as(int width, std::optional<CheckpointMark> resume = {}, const std::string& launch = "", int rank = 0) {
    return ledger_->open_timeline(
        {.group = group_, .resume = std::move(resume), .width = width, .rank = rank, .launch = launch});
  }
  // Trains `count` windows with `width` ranks; the ids of each window in their order, as the ranks see them together.
  std::vector<std::string> train_wide(const TimelineInfo& timeline, int width, int count) {
    std::vector<std::string> seen;
    for (int i = 0; i < count; ++i) {
      const std::int64_t number = timeline.first_window + i;
      std::vector<std::vector<std::string>> shares;
      for (int rank = 0; rank < width; ++rank) shares.push_back(share_ids(timeline, number, rank, width));
      for (std::size_t p = 0; p < shares[0].size() * static_cast<std::size_t>(width); ++p) {
        const auto n = static_cast<std::size_t>(width);
        seen.push_back(shares[p % n].at(p / n));
      }
      for (int rank = 0; rank < width; ++rank) {
        ledger_->trained(group_, timeline.number, number, timeline.first_step + i + 1, {});
      }
    }
    return seen;
  }
  static std::vector<std::string> names(int from, int to) {
    std::vector<std::string> all;
    for (int i = from; i < to; ++i) all.push_back(fmt::format("s{}", i));
    return all;
  }
};
INSTANTIATE_LEDGER_STORY(LedgerGroups);

TEST_P(LedgerGroups, RanksShareAWindowEvenly) {
  declare(4);
  commit(0, 8);
  const TimelineInfo timeline = open_as(2);
  EXPECT_EQ(timeline.first_window, 0);
  EXPECT_THAT(share_ids(timeline, 0, 0, 2), ElementsAre("s0", "s2"));
  EXPECT_THAT(share_ids(timeline, 0, 1, 2), ElementsAre("s1", "s3"));
  EXPECT_THAT(share_ids(timeline, 0, 1, 2), ElementsAre("s1", "s3")) << "it is a fact, not a hand-out";
  EXPECT_THAT(share_ids(timeline, 1, 1, 2), ElementsAre("s5", "s7"));
  expect_error<Conflict>([&] { share_ids(timeline, 0, 0, 1); },
                         "rank 0 of 1 asks for a window of timeline 1 of group 'train', "
                         "which has 2 ranks");
  expect_error<Conflict>([&] { share_ids(timeline, 0, 2, 2); }, "rank 2 of 2");
  expect_error<InvalidArgument>([&] { share_ids(timeline, 3, 0, 2); }, "2 are dealt, and they are dealt one by one");
  expect_error<InvalidArgument>([&] { share_ids(timeline, -1, 0, 2); }, "window -1");
}

TEST_P(LedgerGroups, TheOrderIsTheSameAtAnyWidthAndTheWidthChangesBetweenTimelines) {
  declare(6);
  commit(0, 30);
  const TimelineInfo two = open_as(2);
  EXPECT_EQ(train_wide(two, 2, 2), names(0, 12));
  ledger_->checkpointed(group_, two.number, 1);
  const TimelineInfo three = open_as(3, mark(two.number, 1));
  EXPECT_EQ(three.first_window, 1);
  EXPECT_EQ(train_wide(three, 3, 3), names(6, 24)) << "the window trained after the checkpoint comes again, first";
  ledger_->checkpointed(group_, three.number, 4);
  const TimelineInfo one = open_as(1, mark(three.number, 4));
  EXPECT_EQ(train_wide(one, 1, 1), names(24, 30));
  EXPECT_EQ(ledger_->trained_ids(group_), names(0, 30));
  EXPECT_EQ(group_status().width, 1);
}

TEST_P(LedgerGroups, AWidthThatDoesNotDivideIsRefusedWithTheArithmetic) {
  declare(16);
  expect_error<InvalidArgument>([&] { open_as(3); }, "3 ranks do not share a window of 16 evenly (5 x 3 + 1)");
  expect_error<InvalidArgument>([&] { open_as(0); }, "rank 0 of 0");
  expect_error<InvalidArgument>([&] { open_as(2, {}, "a", 2); }, "rank 2 of 2");
  EXPECT_EQ(group_status().timeline, 0);
}

TEST_P(LedgerGroups, RanksOfALaunchShareOneTimeline) {
  declare(2);
  commit(0, 6);
  const TimelineInfo first = open_as(2, {}, "a", 0);
  auto other = open();
  TimelineRequest second{.group = group_, .width = 2, .rank = 1, .launch = "a"};
  EXPECT_EQ(other->open_timeline(second).number, first.number);
  EXPECT_EQ(other->open_timeline(second).number, first.number) << "a call whose reply was lost, again";
  EXPECT_EQ(group_status().timeline, first.number);
  expect_error<Conflict>([&] { open()->open_timeline(second); }, "rank 1 of launch 'a', group 'train' has entered timeline 1");
  expect_error<Conflict>([&] { open_as(1, {}, "a", 0); }, "it says that 1 ranks train, the others say 2");
  train_wide(first, 2, 2);
  ledger_->checkpointed(group_, first.number, 2);
  const TimelineInfo next = open_as(2, mark(first.number, 2), "b", 1);
  EXPECT_EQ(next.first_window, 2);
  expect_error<Conflict>([&] { open_as(2, mark(first.number, 1), "b", 0); },
                         "it has loaded the checkpoint (timeline 1, step 1)");
  expect_error<Conflict>([&] { open_as(2, {}, "b", 0); }, "all ranks of a launch resume from the same one");
  expect_error<Conflict>([&] { other->open_timeline(second); }, "the launch ended when timeline 2 took over");
  TimelineRequest late{.group = group_, .resume = mark(first.number, 2), .width = 2, .rank = 0, .launch = "b"};
  EXPECT_EQ(other->open_timeline(late).first_step, 2);
}

TEST_P(LedgerGroups, AFailureThatOneRankReportsIsInTheAcknowledgementOfAnother) {
  declare(4);
  commit(0, 8);
  const TimelineInfo timeline = open_as(2);
  share_ids(timeline, 0, 0, 2);
  auto other = open();
  other->report_failed(group_, timeline.number, 0, {{SampleId("s3"), "holds NaN"}});
  other->report_failed(group_, timeline.number, 0, {{SampleId("s3"), "holds NaN"}});
  EXPECT_EQ(group_status().failed, 0) << "not before the step";
  ledger_->trained(group_, timeline.number, 0, 1, {});
  EXPECT_EQ(group_status().failed, 1);
  EXPECT_THAT(ledger_->trained_ids(group_), ElementsAre("s0", "s1", "s2"));
  expect_error<InvalidArgument>(
      [&] {
        other->report_failed(group_, timeline.number, 0, {{SampleId("s1"), "late"}});
      },
      "report it before the window's step");
  expect_error<InvalidArgument>([&] { other->report_failed(group_, timeline.number, 0, {{SampleId("s1"), "x"}}); }, "window 0");
  share_ids(timeline, 1, 0, 2);
  other->report_failed(group_, timeline.number, 1, {{SampleId("s4"), "unreadable"}});
  const TimelineInfo again = open_as(1);
  EXPECT_EQ(group_status().failed, 0) << "a new timeline reads it anew";
  EXPECT_THAT(share_ids(again, 1, 0, 1), ElementsAre("s4", "s5", "s6", "s7"));
  expect_error<Conflict>(
      [&] {
        other->report_failed(group_, timeline.number, 1, {{SampleId("s5"), "x"}});
      },
      "newest timeline is 2");
}

TEST_P(LedgerGroups, BytesGoWhenEveryGroupIsDoneWithThem) {
  const GroupId small("small");
  declare(2);
  ledger_->declare_group({.group = small, .window = 1});
  commit(0, 4);
  EXPECT_EQ(ledger_->status().of(small).available, 4);
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 2);
  ledger_->checkpointed(group_, timeline, 2);
  EXPECT_THAT(freeable_ids(), IsEmpty()) << "the other group has seen none";
  EXPECT_EQ(group_status().pinned, 0);
  EXPECT_EQ(ledger_->status().of(small).pinned, 4);
  const TimelineInfo other = ledger_->open_timeline({.group = small});
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(ledger_->read_window(small, other.number, i).window->refs.at(0).sample_id.str(), fmt::format("s{}", i));
    ledger_->trained(small, other.number, i, i + 1, {});
  }
  ledger_->checkpointed(small, other.number, 3);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1", "s2"));
  EXPECT_EQ(ledger_->trained_ids(small), names(0, 3));
}

TEST_P(LedgerGroups, ALateGroupBeginsAtTheOldestSampleThatIsThere) {
  declare(1);
  commit(0, 5);
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 2);
  ledger_->checkpointed(group_, timeline, 2);
  EXPECT_THAT(freeable_ids(1), ElementsAre("s0"));
  const GroupId late("late");
  ledger_->declare_group({.group = late, .window = 2});
  EXPECT_EQ(ledger_->status().of(late).available, 4) << "s1 was not handed to a sweeper yet";
  EXPECT_THAT(freeable_ids(), ElementsAre("s0"));
  const TimelineInfo joined = ledger_->open_timeline({.group = late});
  const WindowAnswer first = ledger_->read_window(late, joined.number, 0);
  EXPECT_EQ(first.window->refs.at(0).sample_id.str(), "s1");
  commit(5, 6);
  EXPECT_EQ(ledger_->status().of(late).available, 3);
}

TEST_P(LedgerGroups, AClosedGroupHoldsNothing) {
  const GroupId gone("gone");
  declare(1);
  ledger_->declare_group({.group = gone, .window = 2});
  commit(0, 4);
  const TimelineInfo theirs = ledger_->open_timeline({.group = gone});
  ledger_->read_window(gone, theirs.number, 0);
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 3);
  ledger_->checkpointed(group_, timeline, 3);
  EXPECT_THAT(freeable_ids(), IsEmpty());
  ledger_->close_group(gone);
  ledger_->close_group(gone);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1", "s2"));
  EXPECT_FALSE(ledger_->status().of(gone).open);
  EXPECT_EQ(ledger_->status().of(gone).pinned, 0);
  expect_error<Conflict>([&] { ledger_->read_window(gone, theirs.number, 0); }, "the group was closed");
  expect_error<Conflict>([&] { ledger_->trained(gone, theirs.number, 0, 1, {}); }, "the group was closed");
  expect_error<InvalidArgument>([&] { ledger_->open_timeline({.group = gone}); }, "was closed");
  expect_error<InvalidArgument>([&] { ledger_->declare_group({.group = gone, .window = 2}); }, "was closed");
  commit(4, 5);
  train(timeline, 4, 2);
  ledger_->checkpointed(group_, timeline, 5);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1", "s2", "s3", "s4"));
}

TEST_P(LedgerGroups, ATailIsCarriedWhereThePolicySaysSo) {
  ledger_->declare_group({.group = group_, .window = 2, .tail = TailPolicy::kCarry});
  commit(0, 3);
  ledger_->close_prompts();
  const TimelineInfo timeline = open_as(1);
  train_wide(timeline, 1, 1);
  EXPECT_EQ(ledger_->read_window(group_, timeline.number, 1).state, WindowState::kEndOfStream);
  EXPECT_EQ(group_status().available, 1);
  EXPECT_EQ(group_status().dropped, 0);
  ledger_->checkpointed(group_, timeline.number, 1);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1"));
}

TEST_P(LedgerGroups, AStreamTooShortForAnyStepIsRefusedAndDropsNothing) {
  declare(4);
  commit(0, 3);
  ledger_->close_prompts();
  const std::int64_t timeline = open_timeline(*ledger_);
  expect_error<InvalidArgument>([&] { ledger_->read_window(group_, timeline, 0); },
                                "the stream ended with 3 samples, and a window takes 4: there is no step to train");
  EXPECT_EQ(group_status().dropped, 0);
  EXPECT_EQ(group_status().available, 3);
}

TEST_P(LedgerGroups, AResumeMayAcceptTheLossOfFreedSamplesByName) {
  declare(2);
  commit(0, 10);
  const TimelineInfo first = open_as(1);
  train_wide(first, 1, 4);
  ledger_->checkpointed(group_, first.number, 1);
  ledger_->checkpointed(group_, first.number, 3);
  EXPECT_EQ(ledger_->freeable(5).size(), 5u);
  free({"s0", "s1", "s2"});
  TimelineRequest request{.group = group_, .resume = mark(first.number, 1), .width = 2};
  expect_error<InvalidArgument>([&] { ledger_->open_timeline(request); },
                                "3 samples trained after it are freed and would be lost; resume from the checkpoint at step 3, "
                                "start another run, or accept the loss (--accept-loss)");
  request.accept_loss = true;
  const TimelineInfo second = ledger_->open_timeline(request);
  EXPECT_EQ(second.lost, 3);  // s2, freed; s3 and s4, which a sweeper may have removed
  EXPECT_EQ(second.first_window, 1);
  EXPECT_EQ(group_status().dropped, 3);
  EXPECT_EQ(group_status().available, 5);
  EXPECT_EQ(train_wide(second, 2, 2), names(5, 9)) << "the rest comes in its order, in whole windows";
  EXPECT_THAT(ledger_->trained_ids(group_), ElementsAre("s0", "s1", "s5", "s6", "s7", "s8"));
  ledger_->checkpointed(group_, second.number, 3);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s3", "s4", "s5", "s6", "s7", "s8"));
}

}  // namespace
}  // namespace draftflow
