// SPDX-License-Identifier: Apache-2.0
#include "draftflow/records/shared_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace draftflow {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(SharedList, CopiesShareTheirItems) {
  const SharedList<std::string> list{"a", "b"};
  const SharedList<std::string> copy = list;
  EXPECT_EQ(&copy[0], &list[0]);
  EXPECT_THAT(copy, ElementsAre("a", "b"));
  EXPECT_THAT(SharedList<std::string>(), IsEmpty());
}

TEST(SharedList, AChangeIsOfOneListOnly) {
  SharedList<std::string> list{"a", "b"};
  const SharedList<std::string> copy = list;
  list.edit([](auto& items) { items[0] = "changed"; });
  list.push_back("c");
  EXPECT_THAT(list, ElementsAre("changed", "b", "c"));
  EXPECT_THAT(copy, ElementsAre("a", "b"));
  SharedList<std::string> moved = std::move(list);
  EXPECT_THAT(moved, ElementsAre("changed", "b", "c"));
  list = {};
  list.push_back("again");
  EXPECT_THAT(list, ElementsAre("again"));
}

}  // namespace
}  // namespace draftflow
