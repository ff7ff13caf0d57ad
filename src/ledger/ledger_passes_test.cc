// SPDX-License-Identifier: Apache-2.0
//
// Stories of groups that train a stream several times, over every backend.
#include "ledger/ledger_story.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing_support::expect_error;
using testing_support::make_ref;

class LedgerPasses : public testing_support::LedgerStory {
 protected:
  void declare_passes(int passes, int window = 2, TailPolicy tail = TailPolicy::kDrop) {
    ledger_->declare_group({.group = group_, .window = window, .tail = tail, .passes = passes});
  }
  std::vector<std::string> ids_of(std::int64_t timeline, std::int64_t number, const WindowShare& share = {}) {
    const WindowAnswer answer = ledger_->read_window(group_, timeline, number, share);
    std::vector<std::string> ids;
    if (!answer.window) return ids;
    EXPECT_EQ(answer.window->number, number);
    for (const SampleRef& ref : answer.window->refs) ids.push_back(ref.sample_id.str());
    return ids;
  }
  WindowState state_of(std::int64_t timeline, std::int64_t number) {
    return ledger_->read_window(group_, timeline, number, {}).state;
  }
};
INSTANTIATE_LEDGER_STORY(LedgerPasses);

TEST_P(LedgerPasses, EachHasTheSameWindowsInTheSameOrder) {
  declare_passes(3);
  const std::int64_t timeline = open_timeline(*ledger_);
  commit(0, 5);
  EXPECT_THAT(ids_of(timeline, 0), ElementsAre("s0", "s1"));
  EXPECT_THAT(ids_of(timeline, 1), ElementsAre("s2", "s3"));
  EXPECT_EQ(state_of(timeline, 2), WindowState::kWaiting) << "more may come, and a later pass has all of it";
  ledger_->close_prompts();
  for (std::int64_t number = 2; number < 6; ++number) {
    EXPECT_THAT(ids_of(timeline, number), number % 2 == 0 ? ElementsAre("s0", "s1") : ElementsAre("s2", "s3")) << number;
  }
  EXPECT_EQ(state_of(timeline, 6), WindowState::kEndOfStream);
  EXPECT_EQ(group_status().passes, 3);
  EXPECT_EQ(group_status().windowed, 12);
  EXPECT_EQ(group_status().dropped, 1) << "the tail, once";
  EXPECT_THAT(freeable_ids(), ElementsAre("s4"));
  expect_error<InvalidArgument>([&] { state_of(timeline, 7); }, "6 are dealt");
}

TEST_P(LedgerPasses, BytesGoWhenTheLastPassIsDurable) {
  declare_passes(2);
  commit(0, 4);
  ledger_->close_prompts();
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 2);
  ledger_->checkpointed(group_, timeline, 2);
  EXPECT_EQ(group_status().durable, 4);
  EXPECT_EQ(group_status().pinned, 4);
  EXPECT_THAT(freeable_ids(), IsEmpty()) << "the second pass needs them";
  train(timeline, 3, 1);
  EXPECT_THAT(freeable_ids(), IsEmpty()) << "trained for the last time, and not durable";
  ledger_->checkpointed(group_, timeline, 3);
  EXPECT_THAT(freeable_ids(), ElementsAre("s0", "s1"));
  train(timeline, 4, 1);
  ledger_->checkpointed(group_, timeline, 4);
  EXPECT_EQ(freeable_ids().size(), 4u);
  free({"s0", "s1", "s2", "s3"});
  EXPECT_EQ(ledger_->status().freed, 4);
  EXPECT_EQ(group_status().pinned, 0);
  EXPECT_EQ(ledger_->trained_ids(group_).size(), 8u);
}

TEST_P(LedgerPasses, AResumeWithinALaterPassTrainsTheRestOnceMore) {
  declare_passes(3);
  commit(0, 4);
  ledger_->close_prompts();
  const std::int64_t first = open_timeline(*ledger_);
  train(first, 1, 3);
  ledger_->checkpointed(group_, first, 3);
  train(first, 4, 2);  // in the third pass, and lost
  const TimelineInfo second = ledger_->open_timeline({.group = group_, .resume = mark(first, 3), .width = 2});
  EXPECT_EQ(second.first_window, 3);
  EXPECT_THAT(ids_of(second.number, 3, {.rank = 0, .width = 2}), ElementsAre("s2"));
  EXPECT_THAT(ids_of(second.number, 3, {.rank = 1, .width = 2}), ElementsAre("s3"));
  for (std::int64_t window = 3; window < 6; ++window) {
    EXPECT_EQ(ids_of(second.number, window, {.rank = 0, .width = 2}).size(), 1u);
    ledger_->trained(group_, second.number, window, window + 1, {});
  }
  EXPECT_THAT(ledger_->trained_ids(group_),
              ElementsAre("s0", "s1", "s2", "s3", "s0", "s1", "s2", "s3", "s0", "s1", "s2", "s3"));
  ledger_->checkpointed(group_, second.number, 6);
  EXPECT_EQ(freeable_ids().size(), 4u);
}

TEST_P(LedgerPasses, WhatCouldNotBeReadIsTriedAgainInTheNext) {
  declare_passes(2);
  commit(0, 2);
  ledger_->close_prompts();
  const std::int64_t timeline = open_timeline(*ledger_);
  ASSERT_EQ(ids_of(timeline, 0).size(), 2u);
  ledger_->trained(group_, timeline, 0, 1, {{SampleId("s1"), "a cable was out"}});
  ASSERT_EQ(ids_of(timeline, 1).size(), 2u);
  ledger_->trained(group_, timeline, 1, 2, {});
  EXPECT_EQ(group_status().trained, 3);
  EXPECT_EQ(group_status().failed, 1);
  EXPECT_THAT(ledger_->trained_ids(group_), ElementsAre("s0", "s0", "s1"));
  EXPECT_EQ(ledger_->failed_refs(group_, 9).size(), 1u);
}

TEST_P(LedgerPasses, AClosedGroupNeedsNothingInWhicheverPassItIs) {
  for (const int trained_windows : {1, 3, 5}) {
    const GroupId group(fmt::format("g{}", trained_windows));
    const int from = trained_windows * 10;
    commit(from, from + 4);
    ledger_->declare_group({.group = group, .window = 2, .passes = 3});
    if (trained_windows == 5) ledger_->close_prompts();
    const std::int64_t timeline = ledger_->open_timeline({.group = group}).number;
    for (int i = 0; i < std::min(trained_windows, trained_windows == 5 ? 5 : 2); ++i) {
      ASSERT_EQ(ledger_->read_window(group, timeline, i, {}).state, WindowState::kWindow);
      ledger_->trained(group, timeline, i, i + 1, {});
      ledger_->checkpointed(group, timeline, i + 1);
    }
    ledger_->close_group(group);
    const std::vector<std::string> ids = freeable_ids();
    EXPECT_EQ(ids.size(), 4u);
    free(ids);
  }
}

TEST_P(LedgerPasses, AGroupOfOnePassDoesNotWaitForThem) {
  declare_passes(2, 1);
  const GroupId once("once");
  ledger_->declare_group({.group = once, .window = 1});
  commit(0, 1);
  ledger_->close_prompts();
  const std::int64_t line = ledger_->open_timeline({.group = once}).number;
  ASSERT_EQ(ledger_->read_window(once, line, 0, {}).state, WindowState::kWindow);
  EXPECT_EQ(ledger_->read_window(once, line, 1, {}).state, WindowState::kEndOfStream);
  ledger_->trained(once, line, 0, 1, {});
  ledger_->checkpointed(once, line, 1);
  EXPECT_THAT(freeable_ids(), IsEmpty());
  const std::int64_t twice = open_timeline(*ledger_);
  train(twice, 1, 2);
  ledger_->checkpointed(group_, twice, 2);
  EXPECT_THAT(freeable_ids(), ElementsAre("s0"));
}

TEST_P(LedgerPasses, ClosingOneInItsLastPassTakesNothingFromAnother) {
  declare_passes(2, 1);
  const GroupId other("other");
  ledger_->declare_group({.group = other, .window = 1});
  commit(0, 2);
  ledger_->close_prompts();
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 3);
  ledger_->checkpointed(group_, timeline, 3);  // the claim on s0 has ended
  ledger_->close_group(group_);
  EXPECT_THAT(freeable_ids(), IsEmpty()) << "the other group has trained nothing yet";
  ledger_->close_group(other);
  EXPECT_THAT(freeable_ids(), ElementsAre("s0", "s1"));
}

// A set that somebody commits by hand, say: the passes are of one length.
TEST_P(LedgerPasses, WhatComesAfterTheEndIsInNoPass) {
  declare_passes(2);
  commit(0, 2);
  ledger_->close_prompts();
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 1);
  EXPECT_THAT(ids_of(timeline, 1), ElementsAre("s0", "s1"));
  ledger_->commit_samples({make_ref("late0"), make_ref("late1")}, {});
  EXPECT_EQ(state_of(timeline, 2), WindowState::kEndOfStream);
  EXPECT_EQ(group_status().dropped, 2);
  EXPECT_EQ(group_status().available, 0);
  EXPECT_THAT(freeable_ids(), ElementsAre("late0", "late1"));
}

TEST_P(LedgerPasses, ACarriedTailIsInNoPass) {
  declare_passes(2, 2, TailPolicy::kCarry);
  commit(0, 3);
  ledger_->close_prompts();
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 2);
  EXPECT_EQ(next_window(*ledger_, timeline).state, WindowState::kEndOfStream);
  EXPECT_EQ(group_status().available, 1);
  ledger_->checkpointed(group_, timeline, 2);
  EXPECT_THAT(freeable_ids(), ElementsAre("s0", "s1"));
}

TEST_P(LedgerPasses, AnEmptyStreamEndsAtOnce) {
  declare_passes(2);
  ledger_->close_prompts();
  const std::int64_t timeline = open_timeline(*ledger_);
  EXPECT_EQ(state_of(timeline, 0), WindowState::kEndOfStream);
}

TEST_P(LedgerPasses, TheirNumberIsFixedAndLossIsNotAccepted) {
  declare_passes(2);
  expect_error<InvalidArgument>([&] { declare_passes(3); }, "declared with 2 passes over its samples, not 3");
  expect_error<InvalidArgument>([&] { ledger_->declare_group({.group = GroupId("x"), .window = 2, .passes = 0}); },
                                "passes is 0");
  expect_error<InvalidArgument>(
      [&] { ledger_->declare_group({.group = GroupId("q"), .kind = GroupKind::kQueue, .passes = 2}); }, "passes is 2: 1 to 1");
  commit(0, 2);
  ledger_->close_prompts();
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 2);
  ledger_->checkpointed(group_, timeline, 2);
  EXPECT_EQ(freeable_ids().size(), 2u);
  for (const bool accept : {false, true}) {
    expect_error<InvalidArgument>([&] { ledger_->open_timeline({.group = group_, .accept_loss = accept}); },
                                  "group 'train' of 2 passes cannot start from nothing");
  }
}

}  // namespace
}  // namespace draftflow
