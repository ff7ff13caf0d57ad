// SPDX-License-Identifier: Apache-2.0
#include "ledger/memory/leases.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(LeaseTokens, NameALeaseOfOneLedger) {
  const LeaseTokens tokens, others;
  for (const memory::LeaseNumber number : {1ULL, 15ULL, 16ULL, 0x0123456789abcdefULL, ~0ULL}) {
    const std::string text = tokens.text_of(number);
    EXPECT_EQ(text.size(), 32U);
    EXPECT_EQ(tokens.number_of(text), number);
    EXPECT_EQ(others.number_of(text), 0U);
  }
  const std::string text = tokens.text_of(10);
  for (const std::string& wrong : {std::string(), std::string("none"), text + "0", text.substr(1), text.substr(0, 31) + "A",
                                   text.substr(0, 31) + "g", text.substr(16) + text.substr(0, 16)}) {
    EXPECT_EQ(tokens.number_of(wrong), 0U) << wrong;
  }
}

TEST(RefLeases, EndByTimeByHolderAndByTheirLastRef) {
  memory::RefLeases leases;
  leases.add(1, {.holder = "a", .expires_ms = 20, .held = 2, .rows = {5, 6}});
  leases.add(2, {.holder = "b", .expires_ms = 10, .held = 1, .rows = {7}});
  leases.add(3, {.holder = "a", .expires_ms = 30, .held = 1, .rows = {8}});
  EXPECT_THAT(leases.all(), ElementsAre(2, 1, 3));
  EXPECT_THAT(leases.of_holder("a"), ElementsAre(1, 3));
  EXPECT_THAT(leases.of_holder("nobody"), IsEmpty());
  const auto expired = [&](std::int64_t now) {
    return leases.find_expired([&](std::int64_t expires_ms) { return expires_ms <= now || expires_ms > now + 100; });
  };
  EXPECT_EQ(expired(9), 0U);
  EXPECT_EQ(expired(10), 2U);
  leases.extend(2, 40);
  EXPECT_EQ(expired(25), 1U);
  leases.let_go(1);
  EXPECT_NE(leases.find(1), nullptr);
  leases.let_go(1);
  EXPECT_EQ(leases.find(1), nullptr);
  EXPECT_THAT(leases.take(3).rows, ElementsAre(8));
  EXPECT_THAT(leases.of_holder("a"), IsEmpty());
  EXPECT_THAT(leases.all(), ElementsAre(2));
}

}  // namespace
}  // namespace draftflow
