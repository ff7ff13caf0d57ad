// SPDX-License-Identifier: Apache-2.0
//
// Stories of prompts, over every backend: ingest, lease, expiry, failure, end.
#include "ledger/ledger_story.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing_support::expect_error;
using testing_support::make_ref;
using testing_support::make_task;

class LedgerPrompts : public testing_support::LedgerStory {
 protected:
  static std::vector<std::string> ids(const PromptAnswer& answer) {
    std::vector<std::string> found;
    for (const PromptLease& lease : answer.leases) found.push_back(lease.task.task_id.str());
    return found;
  }
};
INSTANTIATE_LEDGER_STORY(LedgerPrompts);

TEST_P(LedgerPrompts, IngestCountsATaskOnce) {
  EXPECT_EQ(ledger_->ingest_prompts({make_task("a"), make_task("b"), make_task("a")}, {}), 2);
  EXPECT_EQ(ledger_->ingest_prompts({make_task("b"), make_task("c")}, {}), 1);
  EXPECT_EQ(ledger_->status().prompts, 3);
  EXPECT_EQ(ledger_->status().prompts_pending, 3);
  EXPECT_EQ(ledger_->status().run_id, "run");
}

TEST_P(LedgerPrompts, ABatchWithABadTaskChangesNothing) {
  PromptTask bad = make_task("bad");
  bad.payload = "{not json";
  expect_error<InvalidArgument>([&] { ledger_->ingest_prompts({make_task("good"), bad}, {}); }, "'bad'");
  EXPECT_EQ(ledger_->status().prompts, 0);
  EXPECT_EQ(ledger_->ingest_prompts({make_task("good")}, {}), 1);
  expect_error<InvalidArgument>([&] { ledger_->ingest_prompts({make_task("x")}, {{}, {}}); }, "1 prompts with 2 lists");
}

TEST_P(LedgerPrompts, TokenCountsAddUpOverNewTasksOnly) {
  ledger_->ingest_prompts({make_task("a"), make_task("b")}, {{{7, 2, 0}, {9, 1, 0}}, {{7, 3, 0}, {4, 1, 0}}});
  ledger_->ingest_prompts({make_task("a"), make_task("c")}, {{{7, 50, 0}}, {{4, 1, 0}, {5, 0, 0}}});
  std::vector<std::vector<std::int64_t>> found;
  for (const TokenCount& entry : ledger_->token_counts()) found.push_back({entry.token, entry.count, entry.first_row});
  EXPECT_THAT(found, ElementsAre(ElementsAre(4, 2, 1), ElementsAre(7, 5, 0), ElementsAre(9, 1, 0)));
  expect_error<InvalidArgument>([&] { ledger_->ingest_prompts({make_task("d")}, {{{-1, 1, 0}}}); }, "token -1");
  EXPECT_EQ(ledger_->status().prompts, 3);
}

TEST_P(LedgerPrompts, AnotherTextUnderATaskIdOnTheBooksIsAConflictAndNothingIsTaken) {
  ingest({"a"});
  PromptTask changed = make_task("a");
  changed.payload = R"({"text":"twice upon"})";
  EXPECT_THROW(ledger_->ingest_prompts({make_task("b"), changed}, {}), Conflict);
  EXPECT_EQ(ledger_->status().prompts, 1);
}

TEST_P(LedgerPrompts, LeasesComeInIngestOrderAndGoToOneHolder) {
  ingest({"c", "a", "b"});
  auto other = open();
  EXPECT_THAT(ids(ledger_->lease_prompts(worker_, 2, 1000)), ElementsAre("c", "a"));
  EXPECT_THAT(ids(other->lease_prompts(HolderId("other"), 2, 1000)), ElementsAre("b"));
  EXPECT_THAT(ids(ledger_->lease_prompts(worker_, 2, 1000)), IsEmpty());
  EXPECT_EQ(ledger_->status().prompts_leased, 3);
}

TEST_P(LedgerPrompts, ALeaseCarriesTheTaskAsItCame) {
  PromptTask task = make_task("a/b:c\nd");
  task.max_length = 77;
  ledger_->ingest_prompts({task}, {});
  const PromptLease lease = lease_one();
  EXPECT_EQ(lease.task.task_id.str(), "a/b:c\nd");
  EXPECT_EQ(lease.task.max_length, 77);
  EXPECT_EQ(lease.task.payload, task.payload);
}

TEST_P(LedgerPrompts, AnExpiredLeaseGoesToTheNextAndIsNoAttempt) {
  ingest({"a", "b"});
  const PromptLease lost = lease_one("first", 1000);
  now_ms_ += 999;
  EXPECT_THAT(ids(ledger_->lease_prompts(worker_, 1, 1000)), ElementsAre("b"));
  now_ms_ += 1;
  const PromptLease taken = lease_one("second");
  EXPECT_EQ(taken.task.task_id.str(), "a");
  EXPECT_EQ(taken.task.attempt, 0);
  EXPECT_FALSE(lost.taken_over);
  EXPECT_TRUE(taken.taken_over) << "the first may still be at work";
  expect_error<Conflict>([&] { ledger_->commit_sample(make_ref("a"), lost); }, "leased to 'second'");
  expect_error<Conflict>([&] { ledger_->fail_prompt(lost, "late", true, 3); }, "was lost");
  EXPECT_FALSE(ledger_->is_committed(SampleId("a")));
  ledger_->commit_sample(make_ref("a"), taken);
}

TEST_P(LedgerPrompts, ASlowHolderMayCommitUntilSomebodyElseTookIt) {
  ingest({"a", "b"});
  const PromptLease slow = lease_one("slow", 10);
  now_ms_ += 100;
  ledger_->lease_prompts(worker_, 1, 1000);  // takes a: it comes first
  EXPECT_THROW(ledger_->commit_sample(make_ref("a"), slow), Conflict);
  const PromptLease late = lease_one("late", 10);
  now_ms_ += 100;
  ledger_->commit_sample(make_ref("b"), late);
  EXPECT_EQ(ledger_->status().prompts_done, 1);
  EXPECT_EQ(ledger_->status().prompts_leased, 1);
}

TEST_P(LedgerPrompts, AnExpiredLeaseTakenBackButNotTakenStillCommits) {
  ingest({"a", "b"});
  const PromptAnswer both = ledger_->lease_prompts(worker_, 2, 10);
  now_ms_ += 100;
  lease_one("other");  // takes both back, leases a
  EXPECT_EQ(ledger_->status().prompts_pending, 1);
  ledger_->commit_sample(make_ref("b"), both.leases[1]);
  EXPECT_EQ(ledger_->status().prompts_pending, 0);
  EXPECT_EQ(ledger_->status().prompts_done, 1);
  EXPECT_EQ(ledger_->status().prompts_leased, 1);
}

TEST_P(LedgerPrompts, ExtendingKeepsTheLease) {
  ingest({"a"});
  const PromptLease lease = lease_one("worker", 1000);
  now_ms_ += 900;
  ledger_->extend_leases(worker_, 1000);
  ledger_->extend_leases(HolderId("nobody"), 1000);
  now_ms_ += 900;
  EXPECT_THAT(ids(ledger_->lease_prompts(HolderId("other"), 1, 1000)), IsEmpty());
  ledger_->commit_sample(make_ref("a"), lease);
}

TEST_P(LedgerPrompts, AHolderIsToldWhetherItsLeaseStillHolds) {
  ingest({"a", "b"});
  const PromptAnswer both = ledger_->lease_prompts(worker_, 2, 1000);
  now_ms_ += 900;
  EXPECT_TRUE(ledger_->extend_lease(both.leases[0], 1000));
  now_ms_ += 900;  // a holds until 1900, b until 1000
  EXPECT_TRUE(ledger_->extend_lease(both.leases[0], 100));
  const PromptLease taken = lease_one("other", 50);
  EXPECT_EQ(taken.task.task_id.str(), "b");
  EXPECT_FALSE(ledger_->extend_lease(both.leases[1], 1000));
  now_ms_ += 60;
  EXPECT_TRUE(ledger_->extend_lease(taken, 1000)) << "it ran out, but nobody took it";
  EXPECT_EQ(ledger_->status().prompts_leased, 2);
  ledger_->commit_sample(make_ref("b"), taken);
  EXPECT_FALSE(ledger_->extend_lease(taken, 1000)) << "it ended with the commit";
  EXPECT_FALSE(ledger_->extend_lease({.task = make_task("a"), .token = ""}, 1000));
  expect_error<Conflict>([&] { ledger_->extend_lease({.task = make_task("other"), .token = "t"}, 1000); }, "'other' is not in");
  expect_error<InvalidArgument>([&] { ledger_->extend_lease(taken, 0); }, "lease of 0 ms");
}

TEST_P(LedgerPrompts, ALeaseThatWasTakenBackIsExtendedUntilSomebodyTakesIt) {
  ingest({"a", "b"});
  const PromptAnswer both = ledger_->lease_prompts(worker_, 2, 10);
  now_ms_ += 100;
  lease_one("other", 50);  // takes both back, leases a
  EXPECT_TRUE(ledger_->extend_lease(both.leases[1], 1000));
  EXPECT_EQ(ledger_->status().prompts_pending, 0);
  EXPECT_EQ(ledger_->status().prompts_leased, 2);
  EXPECT_THAT(ids(ledger_->lease_prompts(HolderId("third"), 2, 1000)), IsEmpty());
  now_ms_ += 500;
  ledger_->extend_leases(worker_, 1000);  // it is this holder's again
  now_ms_ += 900;
  EXPECT_THAT(ids(ledger_->lease_prompts(HolderId("third"), 2, 1000)), ElementsAre("a"));
  ledger_->commit_sample(make_ref("b"), both.leases[1]);
}

TEST_P(LedgerPrompts, LeasesOfAnotherBootAreDead) {
  ingest({"a", "b"});
  const PromptLease before = lease_one("worker", 1'000'000);
  boot_ = "boot-2";
  now_ms_ = 1;  // the clock starts again
  ledger_ = open();
  if (GetParam().server_time) {  // its clock goes on
    EXPECT_EQ(ledger_->status().prompts_leased, 1);
    ledger_->commit_sample(make_ref("a"), before);
    return;
  }
  EXPECT_EQ(ledger_->status().prompts_pending, 2);
  EXPECT_EQ(ledger_->status().prompts_leased, 0);
  EXPECT_THROW(ledger_->commit_sample(make_ref("a"), before), Conflict);
  EXPECT_EQ(lease_one().task.task_id.str(), "a");
}

TEST_P(LedgerPrompts, ReturnedLeasesArePendingAtOnceInTheirOldOrder) {
  ingest({"a", "b", "c"});
  const PromptAnswer mine = ledger_->lease_prompts(worker_, 2, 1000);
  ledger_->return_leases(worker_);
  EXPECT_THROW(ledger_->commit_sample(make_ref("a"), mine.leases[0]), Conflict);
  EXPECT_THAT(ids(ledger_->lease_prompts(HolderId("other"), 3, 1000)), ElementsAre("a", "b", "c"));
  ledger_->return_leases(worker_);  // holds none now
  EXPECT_EQ(ledger_->status().prompts_leased, 3);
}

TEST_P(LedgerPrompts, AFailureIsAnAttemptAndTheLastOneIsFinal) {
  ingest({"a"});
  const PromptLease first = lease_one();
  ledger_->fail_prompt(first, "boom", true, 2);
  ledger_->fail_prompt(first, "boom", true, 2);  // said before: changes nothing
  const PromptLease second = lease_one();
  EXPECT_EQ(second.task.attempt, 1);
  ledger_->fail_prompt(first, "boom", true, 2);  // late, and said before
  ledger_->fail_prompt(second, "boom again\x01", true, 2);
  ledger_->fail_prompt(second, "boom again", true, 2);
  EXPECT_THAT(ledger_->failed_prompts(10), ElementsAre(Pair("a", HasSubstr("boom again"))));
  EXPECT_EQ(ledger_->status().prompts_failed, 1);
  EXPECT_THROW(lease_one(), NotFound);
}

TEST_P(LedgerPrompts, WhatCannotBeRetriedFailsAtOnce) {
  ingest({"a", "b"});
  ledger_->fail_prompt(lease_one(), "too long", false, 100);
  EXPECT_THAT(ledger_->failed_prompts(10), ElementsAre(Pair("a", "too long")));
  EXPECT_THAT(ledger_->failed_prompts(0), IsEmpty());
  EXPECT_EQ(ledger_->status().prompts_pending, 1);
}

TEST_P(LedgerPrompts, FailingADonePromptIsAConflict) {
  ingest({"a"});
  const PromptLease lease = lease_one();
  ledger_->commit_sample(make_ref("a"), lease);
  expect_error<Conflict>([&] { ledger_->fail_prompt(lease, "late", true, 3); }, "the prompt is done");
  PromptLease forged = lease;
  forged.token = "";
  EXPECT_THROW(ledger_->fail_prompt(forged, "forged", true, 3), Conflict);
  PromptLease unknown{.task = make_task("elsewhere"), .token = "t"};
  expect_error<Conflict>([&] { ledger_->fail_prompt(unknown, "x", true, 3); }, "'elsewhere' is not in ledger");
}

TEST_P(LedgerPrompts, APromptThatKillsItsWorkersEndsAsFailed) {
  ingest({"poison", "good"});
  int leases = 0;
  while (lease_one("worker", 10).task.task_id.str() == "poison") {
    now_ms_ += 10;
    ASSERT_LT(++leases, 1000);
  }
  EXPECT_EQ(leases, 100);
  EXPECT_THAT(ledger_->failed_prompts(1), ElementsAre(Pair("poison", HasSubstr("ran out 100 times"))));
}

TEST_P(LedgerPrompts, FinishedMeansClosedAndNoneLeft) {
  ingest({"a", "b"});
  const PromptAnswer both = ledger_->lease_prompts(worker_, 2, 1000);
  EXPECT_FALSE(both.finished);
  ledger_->close_prompts();
  ledger_->close_prompts();
  EXPECT_FALSE(ledger_->lease_prompts(worker_, 1, 1000).finished);  // two are leased: one may come back
  ledger_->commit_sample(make_ref("a"), both.leases[0]);
  ledger_->fail_prompt(both.leases[1], "bad", false, 1);
  EXPECT_TRUE(ledger_->lease_prompts(worker_, 1, 1000).finished);
  EXPECT_TRUE(open()->lease_prompts(worker_, 1, 1000).finished);
}

TEST_P(LedgerPrompts, ClosedPromptsTakeTheOldOnesAgainAndNoNewOnes) {
  ingest({"a"});
  ledger_->close_prompts();
  EXPECT_EQ(ledger_->ingest_prompts({make_task("a")}, {}), 0);
  expect_error<InvalidArgument>([&] { ledger_->ingest_prompts({make_task("b")}, {}); }, "are closed");
  EXPECT_EQ(ledger_->status().prompts, 1);
}

TEST_P(LedgerPrompts, BadArgumentsAreNamed) {
  expect_error<InvalidArgument>([&] { ledger_->lease_prompts(worker_, 0, 1000); }, "lease of 0 prompts");
  expect_error<InvalidArgument>([&] { ledger_->lease_prompts(worker_, 1, 0); }, "lease of 0 ms");
  expect_error<InvalidArgument>([&] { ledger_->extend_leases(worker_, -5); }, "lease of -5 ms");
  ingest({"a"});
  expect_error<InvalidArgument>([&] { ledger_->fail_prompt(lease_one(), "x", true, 0); }, "max_attempts is 0");
}

TEST_P(LedgerPrompts, AFactIsSetOnce) {
  EXPECT_EQ(ledger_->declared("target"), std::nullopt);
  ledger_->declare("target", "model-1");
  ledger_->declare("target", "model-1");
  expect_error<Conflict>([&] { ledger_->declare("target", "model-2"); }, "says target = 'model-1', not 'model-2'");
  EXPECT_EQ(open()->declared("target"), "model-1");
  expect_error<InvalidArgument>([&] { ledger_->declare("bad", "\xff"); }, "not UTF-8");
}

}  // namespace
}  // namespace draftflow
