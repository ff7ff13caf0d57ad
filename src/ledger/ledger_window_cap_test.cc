// SPDX-License-Identifier: Apache-2.0
//
// Stories of windows with a cap in tokens, over every backend.
#include "ledger/ledger_story.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing_support::expect_error;
using testing_support::make_ref;
using testing_support::make_task;

class LedgerWindowCap : public testing_support::LedgerStory {
 protected:
  void TearDown() override {
    if (!ledger_) return;
    EXPECT_THAT(ledger_->check(), IsEmpty());
  }
  GroupConfig capped(int window, std::int64_t cap) { return {.group = group_, .window = window, .max_window_tokens = cap}; }
  // Samples s<n> on, of so many tokens each.
  void commit_tokens(const std::vector<std::int64_t>& tokens) {
    std::vector<SampleRef> refs;
    for (const std::int64_t count : tokens) {
      refs.push_back(make_ref(fmt::format("s{}", committed_++)));
      refs.back().num_tokens = count;
    }
    ledger_->commit_samples(refs, {});
  }
  std::vector<std::string> ids_of(std::int64_t timeline, std::int64_t number, const WindowShare& share = {}) {
    const WindowAnswer answer = ledger_->read_window(group_, timeline, number, share);
    std::vector<std::string> ids;
    if (!answer.window) return ids;
    for (const SampleRef& ref : answer.window->refs) ids.push_back(ref.sample_id.str());
    return ids;
  }
  WindowState state_of(std::int64_t timeline, std::int64_t number) {
    return ledger_->read_window(group_, timeline, number, {}).state;
  }

  int committed_ = 0;
};
INSTANTIATE_LEDGER_STORY(LedgerWindowCap);

TEST_P(LedgerWindowCap, AWindowEndsBeforeTheRefThatWouldPassTheCap) {
  ledger_->declare_group(capped(4, 10));
  EXPECT_EQ(group_status().max_window_tokens, 10);
  const std::int64_t timeline = open_timeline(*ledger_);
  commit_tokens({4, 4});
  EXPECT_EQ(state_of(timeline, 0), WindowState::kWaiting) << "another ref may find room";
  commit_tokens({3});
  EXPECT_THAT(ids_of(timeline, 0), ElementsAre("s0", "s1"));
  EXPECT_EQ(state_of(timeline, 1), WindowState::kWaiting);
  EXPECT_EQ(group_status().windowed, 2);
  EXPECT_EQ(group_status().available, 1);
  EXPECT_EQ(group_status().pinned, 3);
}

TEST_P(LedgerWindowCap, AWindowThatReachesTheCapOrItsRefsWaitsForNoMore) {
  ledger_->declare_group(capped(3, 10));
  const std::int64_t timeline = open_timeline(*ledger_);
  commit_tokens({4, 6, 0, 1, 1});
  EXPECT_THAT(ids_of(timeline, 0), ElementsAre("s0", "s1"));
  EXPECT_THAT(ids_of(timeline, 1), ElementsAre("s2", "s3", "s4"));
  EXPECT_EQ(state_of(timeline, 2), WindowState::kWaiting);
}

TEST_P(LedgerWindowCap, ARefLargerThanTheCapIsAWindowOfItsOwn) {
  ledger_->declare_group(capped(4, 10));
  const std::int64_t timeline = open_timeline(*ledger_);
  commit_tokens({3, 25, 11});
  EXPECT_THAT(ids_of(timeline, 0), ElementsAre("s0"));
  EXPECT_THAT(ids_of(timeline, 1), ElementsAre("s1"));
  EXPECT_THAT(ids_of(timeline, 2), ElementsAre("s2")) << "at once: nothing may come into it";
  EXPECT_EQ(state_of(timeline, 3), WindowState::kWaiting);
}

TEST_P(LedgerWindowCap, TheOrderIsTheSameAtEachWidthAndARankMayHaveNothing) {
  ledger_->declare_group(capped(6, 10));
  commit_tokens({4, 4, 9, 1, 2, 2, 2, 2, 2, 20, 1, 1, 1, 1, 1, 1});
  const std::vector<std::vector<std::string>> windows = {
      {"s0", "s1"}, {"s2", "s3"}, {"s4", "s5", "s6", "s7", "s8"}, {"s9"}, {"s10", "s11", "s12", "s13", "s14", "s15"}};
  std::int64_t step = 0, parent = 0;
  for (const int width : {2, 3, 1}) {
    std::optional<CheckpointMark> from;
    if (step > 0) from = mark(parent, step);
    const TimelineInfo line = ledger_->open_timeline({.group = group_, .resume = from, .width = width});
    ASSERT_EQ(line.first_window, step);
    for (std::int64_t number = line.first_window; number < static_cast<std::int64_t>(windows.size()); ++number) {
      const auto& whole = windows[static_cast<std::size_t>(number)];
      for (int rank = 0; rank < width; ++rank) {
        std::vector<std::string> share;
        for (std::size_t p = static_cast<std::size_t>(rank); p < whole.size(); p += static_cast<std::size_t>(width)) {
          share.push_back(whole[p]);
        }
        const WindowAnswer answer = ledger_->read_window(group_, line.number, number, {.rank = rank, .width = width});
        ASSERT_EQ(answer.state, WindowState::kWindow);
        EXPECT_EQ(ids_of(line.number, number, {.rank = rank, .width = width}), share) << number << ' ' << rank << ' ' << width;
      }
    }
    ledger_->trained(group_, line.number, step, step + 1, {});
    ++step;
    ledger_->checkpointed(group_, line.number, step);
    parent = line.number;
  }
  EXPECT_THAT(ledger_->trained_ids(group_), ElementsAre("s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8"));
  EXPECT_EQ(group_status().durable, 9);
  EXPECT_EQ(group_status().windowed, 7);
  EXPECT_EQ(freeable_ids().size(), 9u);
}

TEST_P(LedgerWindowCap, ATailFillsNeitherTheRefsNorTheCap) {
  ledger_->declare_group(capped(4, 10));
  const GroupId carry("carry");
  ledger_->declare_group({.group = carry, .window = 4, .tail = TailPolicy::kCarry, .max_window_tokens = 10});
  const std::int64_t timeline = open_timeline(*ledger_);
  commit_tokens({9, 9, 4, 4});
  ledger_->close_prompts();
  EXPECT_THAT(ids_of(timeline, 0), ElementsAre("s0"));
  EXPECT_THAT(ids_of(timeline, 1), ElementsAre("s1"));
  EXPECT_EQ(state_of(timeline, 2), WindowState::kEndOfStream);
  EXPECT_EQ(group_status().dropped, 2);
  const std::int64_t other = ledger_->open_timeline({.group = carry}).number;
  for (const WindowState expected : {WindowState::kWindow, WindowState::kWindow, WindowState::kEndOfStream}) {
    EXPECT_EQ(ledger_->read_window(carry, other, ledger_->status().of(carry).windowed).state, expected);
  }
  EXPECT_EQ(ledger_->status().of(carry).available, 2);
  EXPECT_EQ(ledger_->status().of(carry).dropped, 0);
}

TEST_P(LedgerWindowCap, AStreamThatEndsAtTheCapHasNoTail) {
  ledger_->declare_group(capped(4, 10));
  const std::int64_t timeline = open_timeline(*ledger_);
  commit_tokens({5, 5});
  ledger_->close_prompts();
  EXPECT_THAT(ids_of(timeline, 0), ElementsAre("s0", "s1"));
  EXPECT_EQ(state_of(timeline, 1), WindowState::kEndOfStream);
  EXPECT_EQ(group_status().dropped, 0);
}

TEST_P(LedgerWindowCap, AStreamWithoutAnyStepIsRefusedWithTheCap) {
  ledger_->declare_group(capped(4, 10));
  const std::int64_t timeline = open_timeline(*ledger_);
  commit_tokens({5, 4});
  ledger_->close_prompts();
  expect_error<InvalidArgument>([&] { state_of(timeline, 0); }, "2 samples, and a window takes 4, or max_window_tokens 10");
  EXPECT_EQ(group_status().available, 2);
}

TEST_P(LedgerWindowCap, EachPassHasTheSameWindows) {
  GroupConfig config = capped(3, 10);
  config.passes = 2;
  ledger_->declare_group(config);
  const std::int64_t timeline = open_timeline(*ledger_);
  commit_tokens({6, 6, 1, 1, 30, 2});
  ledger_->close_prompts();
  const std::vector<std::vector<std::string>> windows = {{"s0"}, {"s1", "s2", "s3"}, {"s4"}};
  for (std::int64_t number = 0; number < 6; ++number) {
    EXPECT_EQ(ids_of(timeline, number), windows[static_cast<std::size_t>(number % 3)]) << number;
  }
  EXPECT_EQ(state_of(timeline, 6), WindowState::kEndOfStream);
  EXPECT_EQ(group_status().windowed, 10);
  EXPECT_EQ(group_status().pinned, 5);
  for (std::int64_t number = 0; number < 5; ++number) {
    const bool fails = number == 4;
    ledger_->trained(group_, timeline, number, number + 1,
                     fails ? std::vector<FailedSample>{{SampleId("s3"), "why"}} : std::vector<FailedSample>{});
  }
  ledger_->checkpointed(group_, timeline, 5);
  EXPECT_THAT(freeable_ids(), ElementsAre("s0", "s1", "s2", "s3", "s5"));
  EXPECT_EQ(group_status().durable, 8);
  EXPECT_EQ(group_status().failed, 1);
  EXPECT_EQ(group_status().pinned, 1);
  EXPECT_THAT(ledger_->trained_ids(group_), ElementsAre("s0", "s1", "s2", "s3", "s4", "s0", "s1", "s2"));
  expect_error<InvalidArgument>([&] { ledger_->open_timeline({.group = group_, .resume = mark(timeline, 0)}); },
                                "of 2 passes cannot start from the checkpoint (timeline 1, step 0)");
}

TEST_P(LedgerWindowCap, AFailureKeepsItsPlaceInItsWindow) {
  ledger_->declare_group(capped(4, 10));
  const std::int64_t timeline = open_timeline(*ledger_);
  commit_tokens({5, 4, 5, 1, 9});
  ids_of(timeline, 0), ids_of(timeline, 1);
  ledger_->report_failed(group_, timeline, 1, {{SampleId("s3"), "holds NaN"}});
  expect_error<InvalidArgument>(
      [&] {
        ledger_->trained(group_, timeline, 0, 1, {{SampleId("s2"), "x"}});
      },
      "sample 's2' is not in window 0");
  ledger_->trained(group_, timeline, 0, 1, {{SampleId("s1"), "cut short"}});
  ledger_->trained(group_, timeline, 1, 2, {});
  EXPECT_THAT(ledger_->trained_ids(group_), ElementsAre("s0", "s2"));
  EXPECT_EQ(group_status().failed, 2);
  ASSERT_EQ(ledger_->failed_refs(group_, 9).size(), 2u);
  EXPECT_EQ(ledger_->failed_refs(group_, 9)[1].sample_id.str(), "s3");
  ledger_->open_timeline({.group = group_, .resume = mark(timeline, 1)});
  EXPECT_EQ(ledger_->failed_refs(group_, 9).size(), 1u);
  EXPECT_EQ(group_status().windowed, 2);
  EXPECT_EQ(group_status().durable, 1);
}

TEST_P(LedgerWindowCap, AfterAnAcceptedLossWhatIsLeftIsMeasuredAnew) {
  ledger_->declare_group(capped(4, 10));
  const std::int64_t first = open_timeline(*ledger_);
  commit_tokens({8, 3, 3, 3, 8, 1});
  EXPECT_THAT(ids_of(first, 0), ElementsAre("s0"));
  EXPECT_THAT(ids_of(first, 1), ElementsAre("s1", "s2", "s3"));
  ledger_->trained(group_, first, 0, 1, {});
  ledger_->checkpointed(group_, first, 1);
  ledger_->trained(group_, first, 1, 2, {});
  ledger_->checkpointed(group_, first, 2);
  EXPECT_THAT(freeable_ids(3), ElementsAre("s0", "s1", "s2"));
  const TimelineInfo again = ledger_->open_timeline({.group = group_, .resume = mark(first, 1), .accept_loss = true});
  EXPECT_EQ(again.lost, 2);
  EXPECT_THAT(ids_of(again.number, 1), ElementsAre("s3"));
  EXPECT_EQ(group_status().available, 2);
  EXPECT_EQ(group_status().dropped, 2);
}

TEST_P(LedgerWindowCap, WhatIsDroppedOrReplacedCountsAsItIsWhenDealt) {
  ledger_->declare_group(capped(4, 10));
  const std::int64_t timeline = open_timeline(*ledger_);
  commit_tokens({4, 4});
  ingest({"p"});
  const PromptLease lease = lease_one();
  SampleRef ref = make_ref("p", 1);
  ref.num_tokens = 1;
  ledger_->commit_sample(ref, lease);
  EXPECT_EQ(state_of(timeline, 0), WindowState::kWaiting);
  ref.generation = 2;
  ref.num_tokens = 6;
  ledger_->commit_sample(ref, lease);
  ledger_->drop_refs(group_, {SampleId("s1")}, "by hand");
  EXPECT_THAT(ids_of(timeline, 0), ElementsAre("s0", "p"));
}

TEST_P(LedgerWindowCap, AClosedGroupLetsItsWindowsGo) {
  ledger_->declare_group(capped(4, 10));
  const std::int64_t timeline = open_timeline(*ledger_);
  commit_tokens({8, 8, 8, 1});
  ids_of(timeline, 0), ids_of(timeline, 1);
  ledger_->trained(group_, timeline, 0, 1, {});
  ledger_->checkpointed(group_, timeline, 1);
  ledger_->close_group(group_);
  EXPECT_THAT(freeable_ids(), ElementsAre("s0", "s1", "s2", "s3"));
  EXPECT_EQ(group_status().pinned, 0);
}

TEST_P(LedgerWindowCap, TheCapIsFixedAndOfWindowsOnly) {
  ledger_->declare_group(capped(4, 10));
  ledger_->declare_group(capped(4, 10));
  expect_error<InvalidArgument>(
      [&] { ledger_->declare_group(capped(4, 11)); },
      "declared with max_window_tokens 10, not 11 (0: no cap): it is fixed for the run; use 10 again");
  expect_error<InvalidArgument>([&] { declare(4); }, "max_window_tokens 10, not 0");
  expect_error<InvalidArgument>([&] { ledger_->declare_group({.group = GroupId("x"), .window = 4, .max_window_tokens = -1}); },
                                "group 'x': max_window_tokens is -1: 0 (no cap) to ");
  expect_error<InvalidArgument>(
      [&] { ledger_->declare_group({.group = GroupId("q"), .kind = GroupKind::kQueue, .max_window_tokens = 5}); },
      "group 'q': max_window_tokens is 5: 0 (no cap) is allowed");
}

// A cap of 2^60 beside samples of the most tokens allowed: no sum runs over.
TEST_P(LedgerWindowCap, TheGreatestNumbersAreNoTrouble) {
  ledger_->declare_group(capped(2, 1LL << 60));
  const std::int64_t timeline = open_timeline(*ledger_);
  commit_tokens({1LL << 40, 1LL << 40, 1LL << 40});
  EXPECT_THAT(ids_of(timeline, 0), ElementsAre("s0", "s1"));
  EXPECT_EQ(state_of(timeline, 1), WindowState::kWaiting);
}

}  // namespace
}  // namespace draftflow
