// SPDX-License-Identifier: Apache-2.0
//
// Stories of a clock that jumps, over every backend: leases end or go on by the new time, and nothing is done twice.
#include "ledger/ledger_queue_story.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing_support::expect_error;
using testing_support::make_ref;

class LedgerClockJumps : public testing_support::QueueStory {
 protected:
  static constexpr std::int64_t kDay = 24LL * 3600 * 1000;

  void SetUp() override {
    QueueStory::SetUp();
    if (!ledger_) return;
    now_ms_ = 10 * kDay;
    declare_queue();
  }
  void TearDown() override {
    if (!ledger_) return;
    EXPECT_THAT(ledger_->check(), IsEmpty());
  }
  std::size_t prompts_for(const std::string& holder) { return ledger_->lease_prompts(HolderId(holder), 9, 1000).leases.size(); }
};
INSTANTIATE_LEDGER_STORY(LedgerClockJumps);

TEST_P(LedgerClockJumps, ForwardADayALateCallHoldsUntilAnotherHasTheWork) {
  ingest({"p", "q"});
  commit_many(0, 2);
  const PromptLease p = lease_one("slow"), q = lease_one("slow");
  const auto refs = lease(2, "slow");
  now_ms_ += kDay;
  ledger_->commit_sample(make_ref("p"), p);
  ack({refs[0]});
  const auto taken = ledger_->lease_prompts(HolderId("other"), 9, 1000).leases;
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_TRUE(taken[0].taken_over);
  const auto again = lease(9, "other");
  EXPECT_THAT(ids(again), ElementsAre("s1", "p"));
  expect_error<Conflict>([&] { ledger_->commit_sample(make_ref("q", 2), q); }, "other");
  expect_error<Conflict>([&] { ack({refs[1]}); }, "other");
  expect_error<Conflict>([&] { fail({refs[1]}); }, "other");
  ledger_->commit_sample(make_ref("q", 3), taken[0]);
  ack(again);
  EXPECT_EQ(ledger_->status().committed, 4);
  EXPECT_THAT(ledger_->trained_ids(queue_), ElementsAre("s0", "s1", "p"));
}

// A server's clock that an operator sets back: who died before that would keep its leases for a day.
TEST_P(LedgerClockJumps, BackADayTheLeasesOfTheDeadEndAtOnce) {
  ingest({"p", "q"});
  commit_many(0, 2);
  const PromptLease p = lease_one("dead"), q = lease_one("dead");
  const auto refs = lease(2, "dead");
  EXPECT_EQ(prompts_for("other"), 0u);
  now_ms_ -= kDay;
  for (const HolderLeases& one : ledger_->leases()) EXPECT_EQ(one.expired, one.count) << one.holder;
  EXPECT_EQ(ledger_->drop_prompts({TaskId("p")}, "by hand"), 1) << "no lease holds it";
  EXPECT_EQ(prompts_for("other"), 1u);
  EXPECT_EQ(lease(9, "other").size(), 2u);
  expect_error<Conflict>([&] { ledger_->commit_sample(make_ref("q"), q); }, "other");
  expect_error<Conflict>([&] { ack(refs); }, "other");
  now_ms_ += 999;
  EXPECT_EQ(prompts_for("third"), 0u) << "leases of the new time are as long as ever";
  EXPECT_THAT(lease(9, "third"), IsEmpty());
  now_ms_ += 1;
  EXPECT_EQ(prompts_for("third"), 1u);
  EXPECT_EQ(lease(9, "third").size(), 2u);
}

TEST_P(LedgerClockJumps, BackADayWhoIsAliveKeepsItsLeasesByExtendingThem) {
  ingest({"p", "q"});
  commit_many(0, 1);
  const PromptLease p = lease_one("alive");
  lease_one("alive");
  const auto refs = lease(1, "alive");
  now_ms_ -= kDay;
  EXPECT_TRUE(ledger_->extend_lease(p, 1000));
  EXPECT_EQ(prompts_for("other"), 1u) << "the other one, which nobody extended";
  ledger_->extend_leases(HolderId("other"), 500);
  ledger_->extend_refs(queue_, HolderId("alive"), 1000);
  EXPECT_THAT(lease(1, "other"), IsEmpty());
  ledger_->commit_sample(make_ref("p"), p);
  ack(refs);
  EXPECT_EQ(queue_status().durable, 1);
}

// A jump that is shorter than the longest lease cannot be told from such a lease: a shorter one ends by that much later.
TEST_P(LedgerClockJumps, BackALittleALeaseEndsWithinTheLongestOne) {
  ingest({"p"});
  commit_many(0, 1);
  ledger_->extend_refs(queue_, HolderId("nobody"), 1000);
  lease_one("dead", 100);
  RefRequest request = asking(1, "dead");
  request.lease_ms = 100;
  ASSERT_EQ(ledger_->lease_refs(request).leases.size(), 1u);
  now_ms_ -= 900;
  EXPECT_EQ(prompts_for("other"), 0u);
  EXPECT_THAT(lease(1, "other"), IsEmpty());
  now_ms_ += 1000;
  EXPECT_EQ(prompts_for("other"), 1u);
  EXPECT_EQ(lease(1, "other").size(), 1u);
}

// Who waits for its turn to write has read the clock before those whose turn it was.
TEST_P(LedgerClockJumps, WhoHasReadTheClockEarlierTakesNoLeaseThatIsNewer) {
  ingest({"p"});
  commit_many(0, 1);
  const PromptLease p = lease_one("alive");
  const auto refs = lease(1, "alive");
  now_ms_ -= 30'000;
  EXPECT_EQ(prompts_for("late"), 0u);
  EXPECT_THAT(lease(1, "late"), IsEmpty());
  EXPECT_TRUE(ledger_->extend_lease(p, 1000));
  ledger_->commit_sample(make_ref("p"), p);
  ack(refs);
}

TEST_P(LedgerClockJumps, AfterABootTheLeasesOfTheOneBeforeAreDead) {
  if (GetParam().server_time) GTEST_SKIP() << "the time of a server goes on";
  ingest({"p"});
  commit_many(0, 1);
  const PromptLease p = lease_one("before");
  const auto refs = lease(1, "before");
  boot_ = "boot-2";
  now_ms_ = 10;
  ledger_ = open();
  expect_error<Conflict>([&] { ledger_->commit_sample(make_ref("p"), p); }, "pending again");
  expect_error<Conflict>([&] { ack(refs); }, "available again");
  EXPECT_EQ(prompts_for("after"), 1u);
  EXPECT_EQ(lease(1, "after").size(), 1u);
}

}  // namespace
}  // namespace draftflow
