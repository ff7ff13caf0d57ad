// SPDX-License-Identifier: Apache-2.0
#include "ledger/memory/row_set.h"

#include <gtest/gtest.h>

#include <set>

#include "draftflow/base/random.h"

namespace draftflow::memory {
namespace {

TEST(RowSet, IsASetWithANextOne) {
  for (const std::uint64_t most : {1ULL, 64ULL, 65ULL, 5000ULL, 300'000ULL, 20'000'000ULL}) {
    Random random(most);
    RowSet set;
    std::set<std::int64_t> model;
    for (int i = 0; i < 4000; ++i) {
      const auto row = static_cast<std::int64_t>(random.below(most));
      if (random.below(3) == 0) {
        const auto some = model.lower_bound(row);
        const std::int64_t gone = some == model.end() ? row : *some;
        set.erase(gone);
        model.erase(gone);
      } else {
        set.insert(row);
        model.insert(row);
      }
      const auto from = static_cast<std::int64_t>(random.below(most + 70));
      const auto next = model.lower_bound(from);
      ASSERT_EQ(set.next(from), next == model.end() ? -1 : *next) << most << " from " << from;
      ASSERT_EQ(set.next(0), model.empty() ? -1 : *model.begin());
    }
    set.clear();
    EXPECT_EQ(set.next(0), -1);
  }
}

}  // namespace
}  // namespace draftflow::memory
