// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/random.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

namespace draftflow {
namespace {

// SplitMix64's published first outputs for seed 1234567.
TEST(Random, IsSplitMix64) {
  Random random(1234567);
  EXPECT_EQ(random.next(), 6457827717110365317ULL);
  EXPECT_EQ(random.next(), 3203168211198807973ULL);
}

TEST(Random, ShuffleIsAFunctionOfTheSeed) {
  std::vector<int> a(10), b(10), c(10);
  std::iota(a.begin(), a.end(), 0);
  b = c = a;
  seeded_shuffle(a, 7);
  seeded_shuffle(b, 7);
  seeded_shuffle(c, 8);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  EXPECT_EQ(std::set<int>(a.begin(), a.end()).size(), 10u);
}

// Pinned: a resumed run on another machine must deal the same order.
TEST(Random, ShuffleGolden) {
  std::vector<int> items{0, 1, 2, 3, 4, 5, 6, 7};
  seeded_shuffle(items, 42);
  EXPECT_EQ(items, (std::vector<int>{3, 1, 6, 2, 4, 0, 7, 5})) << ::testing::PrintToString(items);
}

TEST(Random, HexIs32DigitsAndNeverTheSame) {
  EXPECT_EQ(random_hex128().size(), 32u);
  EXPECT_NE(random_hex128(), random_hex128());
}

}  // namespace
}  // namespace draftflow
