// SPDX-License-Identifier: Apache-2.0
#include "ledger/clock.h"

#include <gtest/gtest.h>

namespace draftflow {
namespace {

TEST(BootClock, NamesTheBootAndNeverGoesBack) {
  const LedgerClock clock = boot_clock();
  EXPECT_EQ(clock.boot_id.size(), 36U);
  EXPECT_EQ(clock.boot_id, boot_clock().boot_id);
  const std::int64_t first = clock.now_ms();
  EXPECT_GT(first, 0);
  EXPECT_GE(clock.now_ms(), first);
}

}  // namespace
}  // namespace draftflow
