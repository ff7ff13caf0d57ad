// SPDX-License-Identifier: Apache-2.0
#include "draftflow/flow/backpressure.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

TEST(Backpressure, PausesAtTheHighMarkAndResumesAtTheLow) {
  Backpressure pressure({.high_bytes = 100, .low_bytes = 60});
  EXPECT_FALSE(pressure.update(99));
  EXPECT_TRUE(pressure.update(100));
  EXPECT_TRUE(pressure.update(61));
  EXPECT_FALSE(pressure.update(60));
  EXPECT_FALSE(pressure.update(99));
  EXPECT_TRUE(pressure.update(1000));
  EXPECT_TRUE(pressure.paused());
  EXPECT_EQ(pressure.pauses(), 2U);
}

TEST(Backpressure, EqualMarksPauseAtTheMark) {
  Backpressure pressure({.high_bytes = 100, .low_bytes = 100});
  EXPECT_TRUE(pressure.update(100));
  EXPECT_TRUE(pressure.update(100));
  EXPECT_FALSE(pressure.update(99));
  EXPECT_EQ(pressure.pauses(), 1U);
}

TEST(Backpressure, MarksThatCannotWorkAreRefused) {
  EXPECT_THROW(Backpressure({.high_bytes = 100, .low_bytes = 101}), InvalidArgument);
  EXPECT_THROW(Backpressure({.high_bytes = 100, .low_bytes = 0}), InvalidArgument);
  EXPECT_THROW(Backpressure({.high_bytes = 0, .low_bytes = 0}), InvalidArgument);
}

TEST(NeededBytes, CountsWindowsHeldByCheckpointsFetchedAheadAndInWork) {
  FlowDemand demand{
      .checkpoint_every = 20, .resumable_checkpoints = 2, .prefetch_windows = 3, .window = 16, .largest_sample_bytes = 1000};
  EXPECT_EQ(needed_bytes(demand), 44U * 16U * 1000U);
  demand.checkpoint_every = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(needed_bytes(demand), std::numeric_limits<std::uint64_t>::max());
  demand.checkpoint_every = -1;
  EXPECT_THROW(needed_bytes(demand), InvalidArgument);
}

TEST(CheckProgress, RefusesWithTheArithmetic) {
  const FlowDemand demand{
      .checkpoint_every = 2, .resumable_checkpoints = 1, .prefetch_windows = 1, .window = 4, .largest_sample_bytes = 10};
  check_progress({.high_bytes = 160, .low_bytes = 1}, demand);
  try {
    check_progress({.high_bytes = 159, .low_bytes = 1}, demand);
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(),
                testing::HasSubstr("(2 steps between checkpoints x 1 resumable checkpoints + 1 windows fetched ahead + 1) "
                                   "windows x 4 samples x 10 bytes of the largest sample = 160 bytes"));
    EXPECT_THAT(error.what(), testing::HasSubstr("high mark of 159 bytes"));
  }
}

}  // namespace
}  // namespace draftflow
