// SPDX-License-Identifier: Apache-2.0
#include "draftflow/records/feature_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace draftflow {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

TEST(FeatureKeys, AreReadInOrder) {
  FeatureKeys keys{{"a", "run:1/a"}, {"", ""}};
  keys.append("b", {"run:1", "/", "", std::string(1000, 'b')});
  keys.emplace_back(std::string_view("\0x", 2), std::string_view("a\0", 2));
  EXPECT_THAT(keys, ElementsAre(Pair("a", "run:1/a"), Pair("", ""), Pair("b", "run:1/" + std::string(1000, 'b')),
                                Pair(std::string_view("\0x", 2), std::string_view("a\0", 2))));
  EXPECT_EQ(keys.size(), 4U);
  EXPECT_EQ(keys[3].second.size(), 2U);
}

TEST(FeatureKeys, AreAValue) {
  const FeatureKeys keys{{"a", "1"}, {"b", "2"}};
  FeatureKeys copy = keys;
  EXPECT_EQ(copy, keys);
  EXPECT_NE(copy, (FeatureKeys{{"a", "12"}, {"b", ""}}));
  copy.emplace_back("c", "3");
  EXPECT_EQ(keys.size(), 2U);
  copy.clear();
  EXPECT_TRUE(copy.empty());
  EXPECT_EQ(copy.begin(), copy.end());
  EXPECT_EQ(copy, FeatureKeys());
}

}  // namespace
}  // namespace draftflow
