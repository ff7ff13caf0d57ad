// SPDX-License-Identifier: Apache-2.0
//
// Stories of queues, over every backend: lease, ack, fail, expiry, dead letters, the end, and a queue beside a group of
// windows.
#include "draftflow/ledger/partition.h"
#include "ledger/ledger_queue_story.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;
using testing_support::expect_error;
using testing_support::make_ref;

class LedgerQueue : public testing_support::QueueStory {};
INSTANTIATE_LEDGER_STORY(LedgerQueue);

TEST_P(LedgerQueue, RefsComeInCommitOrderOnceAndGoWhenAcked) {
  declare_queue();
  commit(0, 5);
  expect_counts(5, 0, 0, 0);
  EXPECT_EQ(queue_status().kind, GroupKind::kQueue);
  const auto first = lease(2), second = lease(10, "other");
  EXPECT_THAT(ids(first), ElementsAre("s0", "s1"));
  EXPECT_THAT(ids(second), ElementsAre("s2", "s3", "s4"));
  EXPECT_EQ(first[0].token, first[1].token);
  EXPECT_NE(first[0].token, second[0].token);
  EXPECT_EQ(first[0].attempt, 0);
  EXPECT_EQ(sample_ref_to_json(first[1].ref), sample_ref_to_json(*ledger_->get_committed(SampleId("s1"))));
  expect_counts(0, 5, 0, 0);
  EXPECT_EQ(state(), QueueState::kEmpty);
  EXPECT_THAT(freeable_ids(), IsEmpty());
  ack({second[1], first[0]});
  expect_counts(0, 3, 2, 0);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s3"));
  EXPECT_THAT(ledger_->trained_ids(queue_), ElementsAre("s0", "s3"));
  free({"s0", "s3"});
  ack(first);
  expect_counts(0, 2, 3, 0);
}

TEST_P(LedgerQueue, AnAckAgainIsASuccessAndChangesNothing) {
  declare_queue();
  commit(0, 3);
  const auto leases = lease(3);
  ack({leases[0], leases[0], leases[1]});
  ack(leases);
  ack(leases);
  ack({});
  expect_counts(0, 0, 3, 0);
  EXPECT_EQ(freeable_ids().size(), 3U);
}

TEST_P(LedgerQueue, AnExpiredLeaseComesBackFirstAndIsNoAttempt) {
  declare_queue(1);
  commit(0, 4);
  lease(2, "slow");
  now_ms_ += 999;
  EXPECT_THAT(ids(lease(1)), ElementsAre("s2"));
  now_ms_ += 1;
  const auto again = lease(3);
  EXPECT_THAT(ids(again), ElementsAre("s0", "s1", "s3"));
  EXPECT_EQ(again[0].attempt, 0);
  for (int i = 0; i < 200; ++i) {
    now_ms_ += 1000;
    EXPECT_EQ(lease(4).size(), 4U);
  }
}

TEST_P(LedgerQueue, ALateAckOrFailHoldsUntilSomebodyElseHasTheRef) {
  declare_queue();
  commit(0, 4);
  const auto late = lease(4, "slow");
  now_ms_ += 1000;
  ack({late[0]});  // ran out, nobody has asked since
  EXPECT_THAT(ids(lease(1)), ElementsAre("s1"));
  expect_counts(2, 1, 1, 0);
  ack({late[2]});  // ran out and was taken back
  fail({late[3]});
  expect_counts(1, 1, 2, 0);
  const auto again = lease(1);
  EXPECT_THAT(ids(again), ElementsAre("s3"));
  EXPECT_EQ(again[0].attempt, 1);
}

TEST_P(LedgerQueue, AnAckAfterTheRefWasLeasedAgainIsAConflictAndChangesNothing) {
  declare_queue();
  commit(0, 2);
  const auto late = lease(2, "slow");
  now_ms_ += 1000;
  const auto now = lease(1, "quick \x01");
  const std::string lost =
      "on sample 's0' of group 'queue' was lost: the sample is leased to 'quick \\x01'; nothing was changed, drop this result "
      "and "
      "lease again";
  expect_error<Conflict>([&] { ack({late[1], late[0]}); }, lost);
  expect_error<Conflict>([&] { fail({late[1], late[0]}); }, lost);
  expect_counts(1, 1, 0, 0);
  ack(now);
  expect_error<Conflict>([&] { ack({late[0]}); }, "the sample is acked");
  expect_error<Conflict>([&] { fail({late[0]}, false); }, "the sample is acked");
  expect_counts(1, 0, 1, 0);
}

TEST_P(LedgerQueue, NothingResurrectsAnAckedSample) {
  declare_queue();
  commit(0, 1);
  const auto leases = lease(1);
  ack(leases);
  expect_error<Conflict>([&] { fail(leases); }, "the sample is acked");
  now_ms_ += 5000;
  ledger_->return_refs(queue_, HolderId("consumer"));
  EXPECT_EQ(ledger_->retry_failed(queue_, typed({"s0"})), 0);
  EXPECT_THAT(lease(9), IsEmpty());
  expect_counts(0, 0, 1, 0);
}

TEST_P(LedgerQueue, AFailedRefComesAgainUntilItHasFailedTooOften) {
  declare_queue(3);
  commit(0, 2);
  for (int attempt = 0; attempt < 3; ++attempt) {
    const auto leases = lease(1);
    EXPECT_THAT(ids(leases), ElementsAre("s0"));
    EXPECT_EQ(leases[0].attempt, attempt);
    fail(leases, true, fmt::format("try {}", attempt));
    fail(leases, true, "said before");
  }
  expect_counts(1, 0, 0, 1);
  const auto failed = ledger_->failed_refs(queue_, 10);
  ASSERT_EQ(failed.size(), 1U);
  EXPECT_EQ(failed[0].sample_id.str(), "s0");
  EXPECT_EQ(failed[0].reason, "try 2");
  EXPECT_THAT(freeable_ids(), ElementsAre("s0")) << "its claim has ended";
  EXPECT_THAT(ids(lease(9)), ElementsAre("s1"));
}

TEST_P(LedgerQueue, WhatCannotBeRetriedFailsAtOnce) {
  declare_queue();
  commit(0, 3);
  const auto leases = lease(3);
  fail({leases[1]}, false, "no \x02 tensor\xFF" + std::string(5000, 'x'));
  expect_counts(0, 2, 0, 1);
  const auto failed = ledger_->failed_refs(queue_, 10);
  ASSERT_EQ(failed.size(), 1U);
  EXPECT_THAT(failed[0].reason, HasSubstr("no \\x02 tensor"));
  EXPECT_LE(failed[0].reason.size(), 2100U);
  expect_error<Conflict>([&] { ack({leases[0], leases[1]}); }, "'s1' of group 'queue' was lost: the sample is failed");
  ack({leases[0], leases[2]});
  expect_counts(0, 0, 2, 1);
}

TEST_P(LedgerQueue, AFailSaidAgainAfterTheNextLeaseDoesNoHarm) {
  declare_queue();
  commit(0, 1);
  const auto first = lease(1);
  fail(first);
  const auto second = lease(1);
  fail(first);  // its answer was lost
  expect_counts(0, 1, 0, 0);
  expect_error<Conflict>([&] { ack(first); }, "was lost");
  ack(second);
  expect_counts(0, 0, 1, 0);
}

TEST_P(LedgerQueue, DeadLettersComeBackWhenAPersonSaysSo) {
  declare_queue(2);
  commit(0, 4);
  fail(lease(4), false, "bad disk");
  EXPECT_EQ(ledger_->failed_refs(queue_, 2).size(), 2U);
  EXPECT_EQ(ledger_->failed_refs(queue_, 0).size(), 0U);
  EXPECT_EQ(freeable_ids(1).size(), 1U);
  const std::string going = freeable_ids(1)[0];
  EXPECT_EQ(ledger_->retry_failed(queue_, typed({"s0", "s1", "s2", "s2", "ghost"})), going == "s3" ? 3 : 2)
      << "what a sweeper may have removed stays failed";
  EXPECT_EQ(ledger_->retry_failed(queue_, typed({"s0", "s1", "s2"})), 0);
  EXPECT_THAT(freeable_ids(), testing::Contains(going));
  const auto again = lease(9);
  ASSERT_GE(again.size(), 2U);
  EXPECT_EQ(again[0].attempt, 0);
  fail({again[0]});
  EXPECT_EQ(lease(9).size(), 1U) << "the count of its failures began anew";
  expect_counts(0, static_cast<std::int64_t>(again.size()), 0, 4 - static_cast<std::int64_t>(again.size()));
}

TEST_P(LedgerQueue, ExtendKeepsALeaseAndReturnGivesItBackAtOnce) {
  declare_queue();
  commit(0, 4);
  const auto mine = lease(2, "mine"), theirs = lease(1, "theirs");
  now_ms_ += 900;
  ledger_->extend_refs(queue_, HolderId("mine"), 1000);
  now_ms_ += 200;
  EXPECT_THAT(ids(lease(1, "next")), ElementsAre("s2")) << "theirs ran out, mine did not";
  ledger_->return_refs(queue_, HolderId("mine"));
  ledger_->return_refs(queue_, HolderId("mine"));
  expect_counts(3, 1, 0, 0);
  expect_error<Conflict>([&] { ack(mine); }, "'s0' of group 'queue' was lost: the sample is available again");
  fail(mine);  // it has ended already, and giving back is no attempt
  const auto again = lease(2);
  EXPECT_THAT(ids(again), ElementsAre("s0", "s1"));
  EXPECT_EQ(again[0].attempt, 0);
}

TEST_P(LedgerQueue, ACapOnTokensEndsABatchButAlwaysGivesOneRef) {
  declare_queue();
  std::vector<SampleRef> refs;
  for (int i = 0; i < 5; ++i) {
    refs.push_back(make_ref(fmt::format("s{}", i)));
    refs.back().num_tokens = i == 2 ? 100 : 10;
  }
  ledger_->commit_samples(refs, {});
  RefRequest request = asking(10);
  request.max_tokens = 25;
  EXPECT_THAT(ids(ledger_->lease_refs(request).leases), ElementsAre("s0", "s1"));
  EXPECT_THAT(ids(ledger_->lease_refs(request).leases), ElementsAre("s2")) << "larger than the cap by itself";
  request.max_tokens = 20;
  EXPECT_THAT(ids(ledger_->lease_refs(request).leases), ElementsAre("s3", "s4"));
}

TEST_P(LedgerQueue, ACallGivesABoundedNumberOfRefs) {
  declare_queue();
  commit_many(0, 4100);
  const auto leases = lease(1'000'000);
  EXPECT_EQ(leases.size(), 4096U);
  EXPECT_EQ(ids(leases), names(0, 4096));
  ack(leases);
  expect_counts(4, 0, 4096, 0);
}

TEST_P(LedgerQueue, WrongRequestsAreRefusedByName) {
  declare_queue();
  declare(2);
  commit(0, 1);
  const auto refused = [&](auto change, const std::string& part) {
    RefRequest request = asking(1);
    change(request);
    expect_error<InvalidArgument>([&] { ledger_->lease_refs(request); }, part);
  };
  refused([](RefRequest& r) { r.max_refs = 0; }, "lease of 0 refs of group 'queue': at least 1 is allowed");
  refused([](RefRequest& r) { r.max_tokens = -1; }, "max_tokens -1");
  refused([](RefRequest& r) { r.lease_ms = 0; }, "lease of 0 ms");
  refused([](RefRequest& r) { r.partition = Partition{0, 0}; }, "partition into 0 of group 'queue': at least 1 is allowed");
  refused([](RefRequest& r) { r.partition = Partition{2, 2}; }, "partition 2 of 2 of group 'queue': the index is 0 to 1");
  refused([](RefRequest& r) { r.partition = Partition{-1, 2}; }, "partition -1 of 2");
  refused([](RefRequest& r) { r.group = GroupId("nobody"); }, "group 'nobody' is not declared");
  expect_error<InvalidArgument>([&] { ledger_->extend_refs(queue_, HolderId("h"), -1); }, "lease of -1 ms");
  expect_counts(1, 0, 0, 0);
}

TEST_P(LedgerQueue, ALeaseOfNothingHereIsAConflict) {
  declare_queue();
  commit(0, 1);
  auto leases = lease(1);
  RefLease ghost = leases[0];
  ghost.ref = make_ref("ghost");
  expect_error<Conflict>([&] { ack({leases[0], ghost}); }, "'ghost' of group 'queue' was lost: the sample is not in it");
  leases[0].token.clear();
  expect_error<Conflict>([&] { ack(leases); }, "was lost");
  expect_error<Conflict>([&] { fail(leases); }, "was lost");
  expect_counts(0, 1, 0, 0);
}

TEST_P(LedgerQueue, AnotherKindOfGroupIsRefusedByName) {
  declare_queue();
  declare(2);
  expect_error<InvalidArgument>([&] { ledger_->declare_group({.group = queue_, .window = 2}); },
                                "group 'queue' was declared as a queue, not as a group of windows: the kind is fixed");
  expect_error<InvalidArgument>([&] { ledger_->declare_group({.group = group_, .kind = GroupKind::kQueue}); },
                                "group 'train' was declared as a group of windows, not as a queue");
  expect_error<InvalidArgument>(
      [&] { ledger_->declare_group({.group = GroupId("x"), .window = 3, .kind = GroupKind::kQueue}); },
      "group 'x' is a queue with a window of 3: a queue has none");
  expect_error<InvalidArgument>(
      [&] { ledger_->declare_group({.group = GroupId("x"), .kind = GroupKind::kQueue, .max_attempts = 0}); },
      "max_attempts is 0: 1 to 1048576 are allowed");
  const auto is_queue = [&](auto call, const std::string& verb) {
    expect_error<InvalidArgument>(call, verb + " on group 'queue': it is a queue, which has no windows");
  };
  is_queue([&] { ledger_->open_timeline({.group = queue_}); }, "open_timeline");
  is_queue([&] { ledger_->read_window(queue_, 0, 0); }, "read_window");
  is_queue([&] { ledger_->report_failed(queue_, 0, 0, {{SampleId("a"), "x"}}); }, "report_failed");
  is_queue([&] { ledger_->trained(queue_, 0, 0, 1, {}); }, "trained");
  is_queue([&] { ledger_->checkpointed(queue_, 0, 1); }, "checkpointed");
  const auto is_windows = [&](auto call, const std::string& verb) {
    expect_error<InvalidArgument>(call, verb + " on group 'train': it is a group of windows, which leases no refs");
  };
  is_windows([&] { ledger_->lease_refs({.group = group_}); }, "lease_refs");
  is_windows([&] { ledger_->ack_refs(group_, {}); }, "ack_refs");
  is_windows([&] { ledger_->fail_refs(group_, {}, "x", true); }, "fail_refs");
  is_windows([&] { ledger_->extend_refs(group_, worker_, 1); }, "extend_refs");
  is_windows([&] { ledger_->return_refs(group_, worker_); }, "return_refs");
  is_windows([&] { ledger_->retry_failed(group_, {}); }, "retry_failed");
}

TEST_P(LedgerQueue, TheBoundOnAttemptsBecomesTheNewValue) {
  declare_queue(5);
  commit(0, 1);
  fail(lease(1));
  declare_queue(2);
  fail(lease(1));
  expect_counts(0, 0, 0, 1);
}

TEST_P(LedgerQueue, TheStreamEndsWhenThePromptsAreFinishedAndNothingIsOut) {
  declare_queue(2);
  EXPECT_EQ(state(), QueueState::kEmpty) << "more prompts may come";
  ingest({"s0", "s1"});
  const PromptLease a = lease_one(), b = lease_one();
  ledger_->close_prompts();
  EXPECT_EQ(state(), QueueState::kEmpty) << "a producer still works";
  ledger_->commit_sample(make_ref("s0"), a);
  const auto first = lease(1);
  ledger_->fail_prompt(b, "bad", false, 3);
  EXPECT_EQ(state(), QueueState::kEmpty) << "what is leased may come back";
  RefRequest other = asking(1);
  other.partition = Partition{0, 2};
  EXPECT_EQ(ledger_->lease_refs(other).state, QueueState::kEmpty);
  fail(first);
  ack(lease(1));
  EXPECT_EQ(state(), QueueState::kEndOfStream);
  EXPECT_EQ(ledger_->lease_refs(other).state, QueueState::kEndOfStream);
}

TEST_P(LedgerQueue, ALeaseThatRanOutIsNotTheEndOfTheStream) {
  declare_queue();
  commit(0, 1);
  ledger_->close_prompts();
  lease(1, "dead");
  EXPECT_EQ(state(), QueueState::kEmpty);
  now_ms_ += 1000;
  ack(lease(1));
  EXPECT_EQ(state(), QueueState::kEndOfStream);
}

TEST_P(LedgerQueue, AQueueThatJoinsLateBeginsAtWhatIsThere) {
  declare_queue();
  commit(0, 4);
  ack(lease(2));
  EXPECT_EQ(freeable_ids(1).size(), 1U);
  const GroupId late("late");
  ledger_->declare_group({.group = late, .kind = GroupKind::kQueue});
  EXPECT_EQ(ledger_->status().of(late).available, 3) << "one was not handed to a sweeper yet";
  EXPECT_EQ(freeable_ids().size(), 1U);
  commit(4, 6);
  const QueueAnswer answer = ledger_->lease_refs({.group = late, .max_refs = 9});
  EXPECT_EQ(answer.leases.size(), 5U);
  EXPECT_EQ(ids(answer.leases).back(), "s5");
  ledger_->ack_refs(late, answer.leases);
  EXPECT_EQ(freeable_ids().size(), 2U) << "the first queue still needs the others";
  expect_counts(4, 0, 2, 0);
}

TEST_P(LedgerQueue, AQueueThatJoinsLateTakesAnyNumberOfSamples) {
  commit_many(0, 2500);
  declare_queue();
  expect_counts(2500, 0, 0, 0);
  EXPECT_EQ(ids(lease(3000)), names(0, 2500));
}

TEST_P(LedgerQueue, AClosedQueueHoldsNothing) {
  declare_queue();
  commit(0, 4);
  const auto leases = lease(2);
  ack({leases[0]});
  ledger_->close_group(queue_);
  ledger_->close_group(queue_);
  const GroupStatus status = queue_status();
  EXPECT_FALSE(status.open);
  EXPECT_EQ(status.dropped, 3);
  expect_counts(0, 0, 1, 0);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1", "s2", "s3"));
  commit(4, 5);
  expect_counts(0, 0, 1, 0);
  expect_error<Conflict>([&] { lease(1); }, "lease_refs on group 'queue': the group was closed; stop");
  expect_error<Conflict>([&] { ack({leases[1]}); }, "ack_refs on group 'queue': the group was closed");
  expect_error<Conflict>([&] { fail({leases[1]}); }, "fail_refs on group 'queue': the group was closed");
  expect_error<Conflict>([&] { ledger_->extend_refs(queue_, HolderId("consumer"), 5); }, "the group was closed");
  expect_error<Conflict>([&] { ledger_->retry_failed(queue_, {}); }, "the group was closed");
  ledger_->return_refs(queue_, HolderId("consumer"));
  expect_error<InvalidArgument>([&] { declare_queue(); }, "was closed");
}

TEST_P(LedgerQueue, BytesGoWhenAQueueAndAGroupOfWindowsAreBothDone) {
  declare_queue();
  declare(2);
  commit(0, 4);
  const std::int64_t timeline = open_timeline(*ledger_);
  EXPECT_THAT(train(timeline, 1, 2), ElementsAre("s0", "s1", "s2", "s3"));
  ledger_->checkpointed(group_, timeline, 1);
  EXPECT_THAT(freeable_ids(), IsEmpty());
  const auto leases = lease(3);
  ack({leases[1], leases[2]});
  EXPECT_THAT(freeable_ids(), ElementsAre("s1")) << "s2 is in no checkpoint yet, s0 is leased";
  ledger_->checkpointed(group_, timeline, 2);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s1", "s2"));
  fail({leases[0]}, false);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1", "s2"));
  EXPECT_EQ(ledger_->retry_failed(queue_, typed({"s0"})), 0) << "a sweeper may have removed it";
  ledger_->close_group(queue_);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1", "s2", "s3"));
}

TEST_P(LedgerQueue, ARewindOfWindowsLeavesTheQueueAlone) {
  declare_queue();
  declare(1);
  commit(0, 2);
  ack(lease(2));
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 2);
  ledger_->checkpointed(group_, timeline, 2);
  const std::int64_t again = open_timeline(*ledger_);
  EXPECT_THAT(freeable_ids(), IsEmpty()) << "the windows need them again";
  EXPECT_THAT(lease(9), IsEmpty());
  expect_counts(0, 0, 2, 0);
  train(again, 1, 2);
  ledger_->checkpointed(group_, again, 2);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1"));
}

TEST_P(LedgerQueue, WhatFailedInAWindowIsListedToo) {
  declare(2);
  commit(0, 4);
  const std::int64_t timeline = open_timeline(*ledger_);
  next_window(*ledger_, timeline);
  ledger_->report_failed(group_, timeline, 0, {{SampleId("s1"), "holds NaN"}});
  EXPECT_THAT(ledger_->failed_refs(group_, 9), IsEmpty()) << "not before the step";
  ledger_->trained(group_, timeline, 0, 1, {});
  const auto failed = ledger_->failed_refs(group_, 9);
  ASSERT_EQ(failed.size(), 1U);
  EXPECT_EQ(failed[0].sample_id.str(), "s1");
  EXPECT_EQ(failed[0].reason, "holds NaN");
}

TEST_P(LedgerQueue, WhatAQueueHasTakenIsNotReplaced) {
  declare_queue(1);
  const auto put_again = [&](const PromptLease& lease, std::uint64_t generation) {
    ledger_->commit_sample(make_ref(lease.task.task_id.str(), generation), lease);
  };
  for (int i = 0; i < 4; ++i) {
    SCOPED_TRACE(i);
    ingest({fmt::format("s{}", i)});
    const PromptLease prompt = lease_one();
    put_again(prompt, 1);
    put_again(prompt, 2);
    const auto leases = lease(1);
    EXPECT_EQ(leases[0].ref.generation, 2U);
    if (i == 1) ack(leases);
    if (i == 2) fail(leases);
    if (i == 3) {
      now_ms_ += 1000;
      ledger_->lease_refs({.group = queue_, .partition = Partition{0, 1}});
    }
    expect_error<Conflict>([&] { put_again(prompt, 3); }, "comes too late, a group has taken the sample");
    if (i == 0) ack(leases);
  }
}

TEST_P(LedgerQueue, AnExpiredLeaseThatMayStillBeAckedKeepsItsGeneration) {
  declare_queue();
  ingest({"s0", "s1"});
  const PromptLease prompt = lease_one();
  ledger_->commit_sample(make_ref("s0", 1), prompt);
  const auto late = lease(1);
  now_ms_ += 1000;
  ledger_->extend_leases(worker_, 1000);
  RefRequest nothing = asking(1);
  nothing.partition = Partition{dp_partition("s0", 2) == 0 ? 1 : 0, 2};
  EXPECT_EQ(ledger_->lease_refs(nothing).state, QueueState::kEmpty);
  expect_counts(1, 0, 0, 0);
  expect_error<Conflict>([&] { ledger_->commit_sample(make_ref("s0", 2), prompt); }, "a group has taken the sample");
  ack(late);
  EXPECT_EQ(late[0].ref.generation, 1U);
}

TEST_P(LedgerQueue, FilesInPlaceAreQueuedButNeverFreed) {
  declare_queue();
  SampleRef ref = make_ref("x");
  ref.feature_store_uri = "file:///data/x";
  ledger_->commit_samples({ref}, {});
  fail(lease(1), false);
  EXPECT_THAT(freeable_ids(), IsEmpty());
  EXPECT_EQ(ledger_->retry_failed(queue_, typed({"x"})), 1);
  ack(lease(1));
  EXPECT_THAT(freeable_ids(), IsEmpty());
}

TEST_P(LedgerQueue, LeasesDoNotOutliveABoot) {
  declare_queue();
  commit(0, 3);
  const auto leases = lease(2);
  now_ms_ += 1000;
  lease(1, "other");
  ack({leases[1]});
  ledger_.reset();
  boot_ = "boot-2";
  now_ms_ = 3;
  ledger_ = open();
  if (GetParam().server_time) {  // its clock goes on
    expect_counts(1, 1, 1, 0);
    return;
  }
  expect_counts(2, 0, 1, 0);
  expect_error<Conflict>([&] { ack({leases[0]}); }, "the sample is available again");
  ack({leases[1]});
  EXPECT_THAT(ids(lease(9)), ElementsAre("s0", "s2"));
}

}  // namespace
}  // namespace draftflow
