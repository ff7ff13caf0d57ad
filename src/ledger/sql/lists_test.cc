// SPDX-License-Identifier: Apache-2.0
#include "ledger/sql/lists.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

namespace draftflow::sql {
namespace {

using testing::ElementsAre;

TEST(InList, SaysTheLastValueAgainUpToAKeptLength) {
  const InList list("x WHERE a = ?1 AND b IN ", 2, " AND c");
  std::vector<std::pair<std::string, std::vector<Value>>> parts;
  list.for_parts(std::vector<std::int64_t>{7, 8, 9},
                 [&](const std::string& sql, const auto& part) { parts.emplace_back(sql, part); });
  ASSERT_EQ(parts.size(), 1U);
  EXPECT_EQ(parts[0].first, "x WHERE a = ?1 AND b IN (?2, ?3, ?4, ?5) AND c");
  EXPECT_EQ(parts[0].second, (std::vector<Value>{std::int64_t{7}, std::int64_t{8}, std::int64_t{9}, std::int64_t{9}}));
  list.for_parts(std::vector<std::int64_t>{}, [&](const auto&, const auto&) { FAIL() << "nothing to say"; });
}

TEST(InList, CoversAnyNumberOfValuesWithFewTexts) {
  const InList list("IN ", 1);
  std::set<std::string> texts;
  for (std::size_t count = 1; count <= 700; ++count) {
    std::vector<std::int64_t> all(count);
    std::iota(all.begin(), all.end(), 0);
    std::set<std::int64_t> seen;
    list.for_parts(all, [&](const std::string& sql, const std::vector<Value>& part) {
      texts.insert(sql);
      for (const Value& value : part) seen.insert(std::get<std::int64_t>(value));
    });
    ASSERT_EQ(seen.size(), count);
  }
  EXPECT_EQ(texts.size(), 9U);
}

TEST(RowList, CoversEachRowOnceWithFewTexts) {
  const RowList list("INSERT INTO t VALUES ", 3, " ON CONFLICT DO NOTHING");
  std::vector<std::string> texts;
  std::vector<std::size_t> ends;
  list.for_parts(2 + 1 + 256 * 2, [&](const std::string& sql, std::size_t from, std::size_t to) {
    EXPECT_EQ(from, ends.empty() ? 0 : ends.back());
    texts.push_back(sql);
    ends.push_back(to);
  });
  EXPECT_THAT(ends, ElementsAre(256, 512, 514, 515));
  EXPECT_EQ(texts[0], texts[1]);
  EXPECT_EQ(texts[2], "INSERT INTO t VALUES (?1, ?2, ?3), (?4, ?5, ?6) ON CONFLICT DO NOTHING");
  EXPECT_EQ(texts[3], "INSERT INTO t VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING");
}

}  // namespace
}  // namespace draftflow::sql
