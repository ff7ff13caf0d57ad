// SPDX-License-Identifier: Apache-2.0
#include "ledger/memory/shards.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>

#include "draftflow/base/random.h"
#include "draftflow/ledger/partition.h"

namespace draftflow::memory {
namespace {

std::string id_of(std::int64_t row) {
  return fmt::format("s{}", row);
}

// Beside a model that looks at every row.
class ShardsTest : public ::testing::Test {
 protected:
  enum class State { kAvailable, kLeased, kGone };

  void append() {
    const auto row = static_cast<std::int64_t>(states_.size());
    states_.push_back(State::kAvailable);
    shards_.append(row, id_of(row));
  }
  void set(std::int64_t row, State state) {
    State& now = states_[static_cast<std::size_t>(row)];
    if ((now == State::kAvailable) != (state == State::kAvailable)) shards_.set_available(row, state == State::kAvailable);
    now = state;
    if (state == State::kGone) shards_.gone();
  }
  bool is_gone(std::int64_t row) const { return states_[static_cast<std::size_t>(row)] == State::kGone; }
  void tidy() {
    shards_.tidy([&](std::int64_t row) { return is_gone(row); });
  }
  const Shard& shard(std::int64_t width, std::int64_t index) {
    return shards_.of(width, index, [&](const Shards::Visit& visit) {
      ++built_;
      for (std::int64_t row = 0; row < static_cast<std::int64_t>(states_.size()); ++row) {
        if (!is_gone(row)) visit(row, id_of(row), states_[static_cast<std::size_t>(row)] == State::kAvailable);
      }
    });
  }
  void expect_as_the_model(std::int64_t width) {
    for (std::int64_t index = 0; index < width; ++index) {
      std::vector<std::int64_t> expected, found;
      for (std::int64_t row = 0; row < static_cast<std::int64_t>(states_.size()); ++row) {
        const bool available = states_[static_cast<std::size_t>(row)] == State::kAvailable;
        if (available && dp_partition(id_of(row), width) == index) expected.push_back(row);
      }
      const Shard& one = shard(width, index);
      for (std::int64_t at = one.available.next(0); at >= 0; at = one.available.next(at + 1)) {
        found.push_back(one.rows[static_cast<std::size_t>(at)]);
      }
      ASSERT_EQ(found, expected) << index << " of " << width;
    }
  }

  Shards shards_;
  std::vector<State> states_;
  int built_ = 0;
};

TEST_F(ShardsTest, AnIndexIsBuiltOnceAndKeptUp) {
  for (int i = 0; i < 100; ++i) append();
  expect_as_the_model(4);
  Random random(1);
  for (int round = 0; round < 50; ++round) {
    append();
    const auto row = static_cast<std::int64_t>(random.below(states_.size()));
    if (!is_gone(row)) set(row, static_cast<State>(random.below(3)));
    for (const std::int64_t width : {4, 43, 1000}) expect_as_the_model(width);
  }
  EXPECT_EQ(built_, 3);
}

TEST_F(ShardsTest, TheNumberOfIndexesIsBoundedAndTheNewestOnesStay) {
  for (int i = 0; i < 30; ++i) append();
  for (std::int64_t width = 2; width < 30; ++width) {
    expect_as_the_model(2);
    expect_as_the_model(width);
    EXPECT_LE(shards_.indexes(), Shards::kMostIndexes);
  }
  EXPECT_EQ(built_, 28) << "one for each, though most were forgotten since";
  expect_as_the_model(3);
  EXPECT_EQ(built_, 29) << "it was forgotten";
}

TEST_F(ShardsTest, WhatIsGoneIsLeftOut) {
  for (int i = 0; i < 20'000; ++i) append();
  expect_as_the_model(3);
  for (int i = 0; i < 15'000; ++i) {
    set(i, i % 100 == 7 ? State::kLeased : State::kGone);
    tidy();
  }
  EXPECT_LT(shard(3, 0).rows.size() + shard(3, 1).rows.size() + shard(3, 2).rows.size(), 15'000U);
  for (int i = 7; i < 15'000; i += 300) set(i, State::kAvailable);
  expect_as_the_model(3);
  EXPECT_EQ(built_, 1);
}

}  // namespace
}  // namespace draftflow::memory
