// SPDX-License-Identifier: Apache-2.0
#include "draftflow/loader/window_source.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "draftflow/base/error.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Ids = std::vector<std::string>;

class WindowSourceTest : public ::testing::Test {
 protected:
  // Samples 0 .. count - 1, as ingest commits them.
  void commit(int count) {
    std::vector<SampleRef> refs;
    for (int i = 0; i < count; ++i) {
      SampleRef ref{.sample_id = SampleId(std::to_string(i)), .run_id = RunId("run")};
      ref.feature_store_uri = fmt::format("file:///features/{}", i);
      ref.num_tokens = 4;
      ref.generation = 1;
      refs.push_back(std::move(ref));
    }
    ledger_->commit_samples(refs, {});
  }

  static Ids ids_of(const Window& window) {
    Ids ids;
    for (const SampleRef& ref : window.refs) ids.push_back(ref.sample_id.str());
    return ids;
  }

  // Every window of the plan from its position on, checked to be numbered on from there.
  std::vector<Ids> read(const OfflinePlan& plan) {
    const auto source = make_offline_source(*ledger_, plan);
    std::vector<Ids> windows;
    std::int64_t number = plan.position;
    for (WindowAnswer answer = source->next(); answer.state == WindowState::kWindow; answer = source->next()) {
      EXPECT_EQ(answer.window->number, number++);
      windows.push_back(ids_of(*answer.window));
    }
    EXPECT_EQ(source->next().state, WindowState::kEndOfStream) << "the end must stay the end";
    return windows;
  }

  const testing_support::TempFolder folder_;
  const std::unique_ptr<Ledger> ledger_ = open_sqlite_ledger(folder_.path() / "ledger.sqlite3");
};

// Pinned, and computed apart from this code: a checkpoint's position means these very windows on every machine and version.
TEST_F(WindowSourceTest, TheOrderOfASeedIsPinned) {
  commit(10);
  EXPECT_THAT(read({.window = 3, .epochs = 2, .seed = 7}),
              ElementsAre(Ids{"7", "6", "9"}, Ids{"2", "8", "4"}, Ids{"0", "3", "5"}, Ids{"3", "9", "0"}, Ids{"1", "4", "5"},
                          Ids{"8", "2", "6"}));
  EXPECT_THAT(read({.window = 3, .epochs = 1, .seed = 8}),
              ElementsAre(Ids{"9", "3", "0"}, Ids{"1", "2", "5"}, Ids{"8", "7", "4"}));
}

TEST_F(WindowSourceTest, AnEpochCoversEachRefOnceAndDropsAnotherTailEachTime) {
  commit(11);
  constexpr int kEpochs = 20;
  const std::vector<Ids> windows = read({.window = 4, .epochs = kEpochs, .seed = 1});
  ASSERT_EQ(windows.size(), 2U * kEpochs);
  std::set<Ids> orders;
  std::set<std::string> ever;
  for (std::size_t epoch = 0; epoch < kEpochs; ++epoch) {
    Ids ids = windows[2 * epoch];
    ids.insert(ids.end(), windows[2 * epoch + 1].begin(), windows[2 * epoch + 1].end());
    EXPECT_EQ(std::set<std::string>(ids.begin(), ids.end()).size(), 8U) << "a ref came twice in epoch " << epoch;
    ever.insert(ids.begin(), ids.end());
    orders.insert(ids);
  }
  EXPECT_EQ(orders.size(), static_cast<std::size_t>(kEpochs)) << "epochs must differ";
  EXPECT_EQ(ever.size(), 11U) << "some ref was in the tail of every epoch";
}

TEST_F(WindowSourceTest, AWindowOfAllRefsDropsNothing) {
  commit(5);
  Ids ids = read({.window = 5, .epochs = 1, .seed = 3}).at(0);
  std::sort(ids.begin(), ids.end());
  EXPECT_THAT(ids, ElementsAre("0", "1", "2", "3", "4"));
}

TEST_F(WindowSourceTest, SeekingGivesWhatReadingUpToThereGives) {
  commit(10);
  const std::vector<Ids> all = read({.window = 3, .epochs = 3, .seed = 5});
  ASSERT_EQ(all.size(), 9U);
  for (std::int64_t position = 0; position <= 9; ++position) {
    EXPECT_EQ(read({.window = 3, .epochs = 3, .seed = 5, .position = position}),
              std::vector<Ids>(all.begin() + position, all.end()))
        << "from " << position;
  }
  EXPECT_TRUE(read({.window = 3, .epochs = 3, .seed = 5, .position = 10}).empty());
}

TEST_F(WindowSourceTest, AWindowCarriesTheRefsOfTheLedger) {
  commit(3);
  const WindowAnswer answer = make_offline_source(*ledger_, {.window = 3})->next();
  for (const SampleRef& ref : answer.window->refs) {
    EXPECT_EQ(sample_ref_to_json(ref), sample_ref_to_json(*ledger_->get_committed(ref.sample_id)));
  }
}

TEST_F(WindowSourceTest, TooFewRefsAreRefusedWithTheCounts) {
  commit(2);
  try {
    make_offline_source(*ledger_, {.window = 3});
    FAIL() << "no error";
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr("2 committed samples make no window of 3: ingest more samples or choose a smaller"));
  }
  EXPECT_THROW(make_offline_source(*ledger_, {.window = 0}), InvalidArgument);
  EXPECT_THROW(offline_windows_per_epoch(10, -1), InvalidArgument);
  EXPECT_EQ(offline_windows_per_epoch(10, 3), 3);
  EXPECT_EQ(offline_windows_per_epoch(3, 3), 1);
}

TEST_F(WindowSourceTest, ANegativePositionIsRefused) {
  commit(3);
  EXPECT_THROW(make_offline_source(*ledger_, {.window = 3, .position = -1}), InvalidArgument);
}

// What the ledger deals is what comes: waiting, windows in commit order, the end, and the loss of the timeline.
TEST_F(WindowSourceTest, AStreamIsTheLedgersOwn) {
  const GroupId group("train");
  ledger_->declare_group({.group = group, .window = 2});
  const TimelineInfo timeline = ledger_->open_timeline({.group = group});
  const auto source = make_stream_source(*ledger_, group, timeline);
  EXPECT_EQ(source->next().state, WindowState::kWaiting);
  commit(3);
  const WindowAnswer first = source->next();
  ASSERT_EQ(first.state, WindowState::kWindow);
  EXPECT_EQ(first.window->number, 0);
  EXPECT_THAT(ids_of(*first.window), ElementsAre("0", "1"));
  EXPECT_EQ(source->next().state, WindowState::kWaiting);
  ledger_->close_prompts();
  EXPECT_EQ(source->next().state, WindowState::kEndOfStream);
  EXPECT_EQ(ledger_->status().of(group).dropped, 1);
  ledger_->open_timeline({.group = group});
  EXPECT_THROW(source->next(), Conflict);
}

}  // namespace
}  // namespace draftflow
