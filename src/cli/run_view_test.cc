// SPDX-License-Identifier: Apache-2.0
#include "cli/run_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

GroupStatus group_of(const std::string& name, std::int64_t available, std::int64_t trained = 0) {
  GroupStatus group;
  group.group = name;
  group.window = 4;
  group.available = group.pinned = available;
  group.trained = trained;
  return group;
}

RunView with_group(std::int64_t available, std::int64_t trained = 0) {
  RunView view;
  view.status.groups.push_back(group_of("train", available, trained));
  view.status.committed = available + trained;
  return view;
}

std::string limits(RunView view, std::optional<RunRates> rates = {}) {
  view.rates = rates;
  return what_limits(view);
}

HolderLeases prompts_of(const std::string& holder, std::int64_t count, std::int64_t expired) {
  return {
      .holder = holder, .group = "", .count = count, .expired = expired, .expires_in_ms = expired < count ? 90'000 : -5'000};
}

TEST(RunView, RatesAreOfTheGroupThatIsBehind) {
  LedgerStatus before = with_group(10, 4).status, now = with_group(20, 8).status;
  now.groups.push_back(group_of("slow", 28));
  before.groups.push_back(group_of("slow", 28));
  const RunRates rates = rates_between(before, now, 2);
  EXPECT_EQ(rates.committed, 7);
  EXPECT_EQ(rates.trained, 0);
}

TEST(RunView, OneSentenceSaysWhatLimitsWhatMoves) {
  EXPECT_THAT(limits({}), HasSubstr("training: no trainer has come yet; 0 samples wait"));
  EXPECT_THAT(limits(with_group(5), RunRates{5, 5}), HasSubstr("capture: group 'train' takes samples as they come"));
  EXPECT_EQ(limits(with_group(100), RunRates{5, 5}), "training: 100 samples wait for group 'train'");
  EXPECT_EQ(limits(with_group(100)), "training: 100 samples wait for group 'train'");
  EXPECT_THAT(limits(with_group(100), RunRates{0, 5}), HasSubstr("producers pause or are slow, 100 samples"));
  EXPECT_THAT(limits(with_group(100), RunRates{}), HasSubstr("nothing moves, 100 samples wait"));
}

TEST(RunView, TrainersThatWaitAreToldWhyNothingComes) {
  RunView view = with_group(1);
  EXPECT_EQ(limits(view),
            "the prompts: group 'train' waits for samples (1 are there), none is waiting, and they are not closed");
  view.status.prompts_pending = 9;
  EXPECT_THAT(limits(view, RunRates{}),
              HasSubstr("capture: group 'train' waits for samples (1 are there), 9 prompts wait and no worker takes them"));
  view.status.prompts_leased = 5;
  view.leases = {prompts_of("a", 2, 0), prompts_of("b", 3, 3)};
  EXPECT_THAT(limits(view), HasSubstr("5 prompts are leased by 2 workers"));
  view.leases = {prompts_of("b", 5, 5)};
  EXPECT_THAT(limits(view), HasSubstr("14 prompts wait and no worker takes them"));
  view.status.prompts_pending = 0;
  EXPECT_THAT(limits(view), HasSubstr("5 prompts are leased, every lease has run out, and no worker asks"));
}

TEST(RunView, ProducersThatPauseAreToldWhoKeepsTheBytes) {
  RunView view = with_group(100);
  view.status.prompts_pending = 9;
  view.status.resident_bytes = 2048;
  view.budget = {2048, 1024};
  EXPECT_EQ(limits(view),
            "training: producers pause, 2.0 KiB are resident and 2.0 KiB may be; 100 samples wait for group 'train'");
  view.status.groups.push_back(group_of("late", 400));
  EXPECT_THAT(limits(view), HasSubstr("group 'late': producers pause, "));
  EXPECT_THAT(limits(view), HasSubstr("it is 300 samples behind the other groups and keeps 400"));
  RunView used = with_group(1);
  used.status.prompts_pending = 9;
  used.status.resident_bytes = 4096;
  used.budget = view.budget;
  EXPECT_THAT(limits(used), HasSubstr("checkpoints: producers pause, "));
  used.budget.high_bytes = 4097;
  EXPECT_THAT(limits(used), Not(HasSubstr("pause")));
}

TEST(RunView, AGroupThatLagsIsNamedBeforeAnybodyPauses) {
  RunView view = with_group(10, 390);
  view.status.groups.push_back(group_of("late", 400));
  EXPECT_EQ(limits(view, RunRates{1, 1}), "group 'late': it is 390 samples behind the other groups and keeps 400");
  view.status.groups[1].open = false;
  EXPECT_THAT(limits(view, RunRates{1, 1}), HasSubstr("training: 10 samples wait for group 'train'"));
}

TEST(RunView, TheEndIsNoLimit) {
  RunView done = with_group(1, 8);
  done.status.prompts_closed = true;
  EXPECT_EQ(limits(done), "nothing: everything is captured and trained");
  RunView rest = with_group(50);
  rest.status.prompts_closed = true;
  EXPECT_THAT(limits(rest, RunRates{0, 3}), HasSubstr("training: everything is captured, 50 samples wait"));
  rest.budget.high_bytes = 1;
  rest.status.resident_bytes = 1;
  EXPECT_THAT(limits(rest), HasSubstr("everything is captured")) << "nobody is left to pause";
  done.status.groups[0].open = false;
  EXPECT_THAT(limits(done), HasSubstr("every group was closed"));
}

TEST(RunView, AQueueIsBehindByWhatIsLeasedToo) {
  RunView view;
  view.status.prompts_closed = true;
  GroupStatus queue = group_of("q", 0);
  queue.kind = GroupKind::kQueue;
  queue.window = 0;
  queue.leased = 3;
  view.status.groups.push_back(queue);
  EXPECT_THAT(limits(view), HasSubstr("everything is captured, 3 samples wait for group 'q'"));
}

TEST(RunView, OneScreenShowsLeasesBytesAndRates) {
  RunView view = with_group(10);
  view.status.resident_bytes = 512;
  view.budget.high_bytes = 2048;
  view.leases = {prompts_of("w\x01", 3, 1), prompts_of("gone", 2, 2)};
  view.leases.push_back({.holder = "c", .group = "scores", .count = 7, .expired = 0, .expires_in_ms = 2'000});
  view.rates = RunRates{2, 1.5};
  view.starvation = Starvation{12, 130};
  const std::string text = run_view_text(view);
  EXPECT_THAT(text, HasSubstr("bytes      512 B resident of 2.0 KiB (25 %), 0 samples freed\n"));
  EXPECT_THAT(text, HasSubstr("lease      w\\x01: 3 prompts, for another 1 min 30 s; 1 of them ran out\n"));
  EXPECT_THAT(text, HasSubstr("lease      gone: 2 prompts, ran out 5 s ago\n"));
  EXPECT_THAT(text, HasSubstr("lease      c: 7 refs of queue 'scores', for another 2 s\n"));
  EXPECT_THAT(text, HasSubstr("rates      2.0 samples/s committed, 1.5 trained\n"));
  EXPECT_THAT(text, HasSubstr("waits      producers paused for 12 s, trainers waited for 2 min 10 s\n"));
  for (int i = 0; i < 30; ++i) view.leases.push_back(prompts_of("more", 1, 0));
  EXPECT_THAT(run_view_text(view), HasSubstr("lease      and 13 holders more\n"));
  const Json json = to_json(view);
  EXPECT_EQ(json["leases"][0]["expires_in_s"], 90);
  EXPECT_EQ(json["leases"][0]["group"], nullptr);
  EXPECT_EQ(json["leases"][2]["group"], "scores");
  EXPECT_EQ(json["high_watermark_bytes"], 2048);
  EXPECT_TRUE(json["limit"].is_string());
}

TEST(RunView, WaitsAreSumsOverTheProcessesOfARun) {
  const testing_support::TempFolder folder;
  EXPECT_FALSE(find_starvation(folder.path()));
  make_folders(folder.path() / "metrics");
  replace_file(folder.path() / "metrics" / "capture-0.jsonl",
               "{\"process\":\"a\",\"paused_seconds\":1}\n{\"process\":\"a\",\"paused_seconds\":3}\n"
               "{\"process\":\"b\",\"paused_seconds\":4}\n{\"torn");
  replace_file(folder.path() / "metrics" / "train.jsonl", "{\"process\":\"t\",\"total_wait_seconds\":2.5}\n");
  const auto found = find_starvation(folder.path());
  ASSERT_TRUE(found);
  EXPECT_EQ(found->producers_paused_s, 7);
  EXPECT_EQ(found->trainers_waited_s, 2.5);
  EXPECT_EQ(find_budget(77, folder.path(), {}).high_bytes, 77u);
  EXPECT_EQ(find_budget(0, folder.path(), {}).high_bytes, 0u);
  replace_file(folder.path() / "run.yaml", "nonsense");
  EXPECT_EQ(find_budget(0, folder.path(), {}).high_bytes, 0u);
}

}  // namespace
}  // namespace draftflow::cli
