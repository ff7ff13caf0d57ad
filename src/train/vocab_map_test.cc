// SPDX-License-Identifier: Apache-2.0
#include "train/vocab_map.h"

#include <gtest/gtest.h>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

using Ids = std::vector<std::int64_t>;

TEST(VocabMap, MostFrequentFirstThenSorted) {
  EXPECT_EQ(make_vocab_map({{5, 2, 0}, {9, 7, 0}, {3, 4, 0}}, 2, 10).used, (Ids{3, 9}));
}

TEST(VocabMap, TiesGoToTheRowFirstSeenThenToTheLowerId) {
  EXPECT_EQ(make_vocab_map({{1, 4, 2}, {8, 4, 1}, {6, 4, 1}}, 1, 10).used, (Ids{6}));
  EXPECT_EQ(make_vocab_map({{1, 4, 2}, {8, 4, 1}, {6, 4, 1}}, 2, 10).used, (Ids{6, 8}));
}

TEST(VocabMap, FillsUpWithTheLowestUnseen) {
  EXPECT_EQ(make_vocab_map({{1, 3, 0}, {7, 1, 0}}, 4, 10).used, (Ids{0, 1, 2, 7}));
  EXPECT_EQ(make_vocab_map({}, 0, 3).used, (Ids{0, 1, 2}));  // 0: all of them
}

TEST(VocabMap, RefusesWhatCannotBe) {
  EXPECT_THROW(make_vocab_map({}, 11, 10), InvalidArgument);
  EXPECT_THROW(make_vocab_map({}, -1, 10), InvalidArgument);
  EXPECT_THROW(make_vocab_map({{10, 1, 0}}, 2, 10), InvalidArgument);
}

}  // namespace
}  // namespace draftflow
