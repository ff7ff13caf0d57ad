// SPDX-License-Identifier: Apache-2.0
//
// Stories of what a person does by hand, over every backend: who holds what, prompts tried again and given up, samples dropped,
// the books checked.
#include <atomic>
#include <thread>

#include "ledger/ledger_queue_story.h"
#include "ledger/sql/recount.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;
using testing_support::expect_error;
using testing_support::make_ref;

std::vector<TaskId> tasks(const std::vector<std::string>& ids) {
  return {ids.begin(), ids.end()};
}

class LedgerOperators : public testing_support::QueueStory {
 protected:
  std::vector<std::string> failed_prompts() {
    std::vector<std::string> all;
    for (const auto& [id, reason] : ledger_->failed_prompts(100)) all.push_back(id + ": " + reason);
    return all;
  }
  std::int64_t drop(const std::vector<std::string>& ids, bool dry_run = false) {
    return ledger_->drop_refs(queue_, typed(ids), "by hand", dry_run);
  }
  std::int64_t drop_of_windows(const std::vector<std::string>& ids, bool dry_run = false) {
    return ledger_->drop_refs(group_, typed(ids), "by hand", dry_run);
  }
  std::vector<std::string> window(std::int64_t timeline) {
    std::vector<std::string> ids;
    const WindowAnswer answer = next_window(*ledger_, timeline);
    if (!answer.window) return ids;
    for (const SampleRef& ref : answer.window->refs) ids.push_back(ref.sample_id.str());
    return ids;
  }
  void TearDown() override {
    if (ledger_ == nullptr) return;
    EXPECT_THAT(ledger_->check(), IsEmpty());
  }
};
INSTANTIATE_LEDGER_STORY(LedgerOperators);

TEST_P(LedgerOperators, LeasesAreToldByHolderWithTheirTime) {
  EXPECT_THAT(ledger_->leases(), IsEmpty());
  declare_queue();
  commit(0, 4);
  ingest({"a", "b", "c"});
  lease_one("w2", 400);
  lease_one("w1", 300);
  now_ms_ += 100;
  lease_one("w2", 500);
  lease(3, "consumer");
  now_ms_ += 350;
  const auto all = ledger_->leases();
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].holder, "w1");
  EXPECT_EQ(all[0].group, "");
  EXPECT_EQ(all[0].count, 1);
  EXPECT_EQ(all[0].expired, 1);
  EXPECT_EQ(all[0].expires_in_ms, -150);
  EXPECT_EQ(all[1].holder, "w2");
  EXPECT_EQ(all[1].count, 2);
  EXPECT_EQ(all[1].expired, 1);
  EXPECT_EQ(all[1].expires_in_ms, 150);
  EXPECT_EQ(all[2].holder, "consumer");
  EXPECT_EQ(all[2].group, "queue");
  EXPECT_EQ(all[2].count, 3);
  EXPECT_EQ(all[2].expired, 0);
  EXPECT_EQ(all[2].expires_in_ms, 650);
}

TEST_P(LedgerOperators, FailedPromptsArePendingAgainAsIfNew) {
  ingest({"a", "b", "c"});
  ledger_->fail_prompt(lease_one(), "bad", false, 3);
  ledger_->fail_prompt(lease_one(), "worse", true, 1);
  ledger_->close_prompts();
  EXPECT_EQ(ledger_->retry_prompts(tasks({"a", "c", "nobody", "a"})), 1);
  EXPECT_EQ(ledger_->retry_prompts(tasks({"a"})), 0);
  EXPECT_EQ(ledger_->retry_prompts({}), 0);
  EXPECT_THAT(failed_prompts(), ElementsAre("b: worse"));
  const PromptLease again = lease_one();
  EXPECT_EQ(again.task.task_id.str(), "a");
  EXPECT_EQ(again.task.attempt, 0);
  EXPECT_FALSE(again.taken_over) << "who failed it had ended";
  ledger_->commit_sample(make_ref("a"), again);
  EXPECT_EQ(ledger_->status().prompts_done, 1);
}

TEST_P(LedgerOperators, APromptThatKilledItsWorkersIsTriedAgainAndIsStillTakenOver) {
  ingest({"a"});
  for (int i = 0; i < 100; ++i, now_ms_ += 20) lease_one("w", 10);
  ledger_->lease_prompts(worker_, 1, 10);
  EXPECT_EQ(ledger_->status().prompts_failed, 1);
  EXPECT_EQ(ledger_->retry_prompts(tasks({"a"})), 1);
  // Who had it may still be writing, however long ago: the one expiry that is kept says so.
  for (int i = 0; i < 98; ++i, now_ms_ += 20) EXPECT_TRUE(lease_one("w", 10).taken_over) << i;
  const PromptLease last = lease_one("w", 10);
  EXPECT_EQ(last.task.task_id.str(), "a");
  EXPECT_EQ(last.task.attempt, 0);
  now_ms_ += 20;
  EXPECT_THAT(ledger_->lease_prompts(worker_, 1, 10).leases, IsEmpty()) << "a hundred, with the one that was kept";
}

// Its lease ran out, and then a person gave it up and took that back.
TEST_P(LedgerOperators, APromptThatWasDroppedAfterItsLeaseRanOutIsTakenOver) {
  ingest({"a", "b"});
  lease_one("slow", 100);
  now_ms_ += 100;
  EXPECT_EQ(ledger_->drop_prompts(tasks({"a", "b"}), "not wanted", false), 2);
  EXPECT_EQ(ledger_->retry_prompts(tasks({"a", "b"})), 2);
  EXPECT_TRUE(lease_one().taken_over);
  EXPECT_FALSE(lease_one().taken_over) << "nobody ever had b";
}

TEST_P(LedgerOperators, PendingPromptsAreDroppedWithTheReason) {
  ingest({"a", "b", "c", "d"});
  const PromptLease slow = lease_one("slow", 100);
  now_ms_ += 100;
  EXPECT_EQ(ledger_->drop_prompts(tasks({"b", "a", "b"}), "not wanted", true), 2);
  EXPECT_THAT(failed_prompts(), IsEmpty());
  EXPECT_EQ(ledger_->drop_prompts(tasks({"b", "a", "b"}), "not \x01 wanted", false), 2);
  EXPECT_EQ(ledger_->drop_prompts(tasks({"b", "a"}), "again", false), 0);
  EXPECT_THAT(failed_prompts(), ElementsAre("a: not \\x01 wanted", "b: not \\x01 wanted"));
  expect_error<Conflict>([&] { ledger_->commit_sample(make_ref("a"), slow); }, "the prompt is failed");
  EXPECT_EQ(lease_one().task.task_id.str(), "c");
}

TEST_P(LedgerOperators, APromptThatIsLeasedOrDoneIsNotDroppedAndNoneBesideIt) {
  ingest({"a", "b", "c"});
  const PromptLease done = lease_one();
  ledger_->commit_sample(make_ref("a"), done);
  lease_one("worker \x01");
  expect_error<Conflict>(
      [&] {
        ledger_->drop_prompts(tasks({"c", "b"}), "no", false);
      },
      "prompt 'b' is leased to 'worker \\x01': nothing was dropped; wait");
  expect_error<Conflict>([&] { ledger_->drop_prompts(tasks({"c", "a"}), "no", false); }, "prompt 'a' is done");
  expect_error<InvalidArgument>([&] { ledger_->drop_prompts(tasks({"c", "x"}), "no", false); }, "prompt 'x' is not in ledger");
  EXPECT_EQ(ledger_->status().prompts_pending, 1);
}

TEST_P(LedgerOperators, WhatAQueueHasAvailableIsDroppedAndGoes) {
  declare_queue();
  commit(0, 5);
  EXPECT_EQ(drop({"s1", "s3"}, true), 2);
  expect_counts(5, 0, 0, 0);
  EXPECT_EQ(drop({"s3", "s1", "s3"}), 2);
  EXPECT_EQ(drop({"s1"}), 0);
  expect_counts(3, 0, 0, 0);
  EXPECT_EQ(queue_status().dropped, 2);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s1", "s3"));
  free({"s1", "s3"});
  EXPECT_EQ(drop({"s1"}), 0) << "said before";
  EXPECT_THAT(ids(lease(9)), ElementsAre("s0", "s2", "s4"));
}

TEST_P(LedgerOperators, WhatAQueueHasGivenOutIsNotDropped) {
  declare_queue(1);
  commit(0, 4);
  const auto leases = lease(3);
  ack({leases[1]});
  fail({leases[2]});
  expect_error<Conflict>(
      [&] {
        drop({"s3", "s0"});
      },
      "sample 's0' of group 'queue' is leased to 'consumer': nothing was dropped; only what is available");
  expect_error<Conflict>([&] { drop({"s3", "s1"}); }, "sample 's1' of group 'queue' is acked");
  expect_error<Conflict>([&] { drop({"s3", "s2"}); }, "sample 's2' of group 'queue' has failed");
  expect_error<InvalidArgument>([&] { drop({"s3", "x"}); }, "sample 'x' is not in ledger");
  expect_counts(1, 1, 1, 1);
  now_ms_ += 1000;  // the consumer is gone, and nobody has asked since
  EXPECT_EQ(drop({"s3", "s0"}), 2);
  expect_counts(0, 0, 1, 1);
  expect_error<Conflict>([&] { ack({leases[0]}); }, "the sample is not in it");
}

TEST_P(LedgerOperators, AWindowIsDealtWithoutWhatWasDropped) {
  declare(2);
  commit(0, 7);
  const std::int64_t timeline = open_timeline(*ledger_);
  EXPECT_THAT(window(timeline), ElementsAre("s0", "s1"));
  EXPECT_EQ(drop_of_windows({"s3"}, true), 1);
  EXPECT_EQ(drop_of_windows({"s3", "s6"}), 2);
  EXPECT_EQ(drop_of_windows({"s6", "s3"}), 0);
  EXPECT_EQ(group_status().available, 3);
  EXPECT_EQ(group_status().dropped, 2);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s3", "s6"));
  EXPECT_THAT(window(timeline), ElementsAre("s2", "s4"));
  expect_error<Conflict>([&] { drop_of_windows({"s5", "s4"}); }, "sample 's4' of group 'train' is in window 1");
  ledger_->trained(group_, timeline, 0, 1, {});
  expect_error<Conflict>([&] { drop_of_windows({"s5", "s0"}); }, "sample 's0' of group 'train' was trained in window 0");
  ledger_->close_prompts();
  EXPECT_EQ(next_window(*ledger_, timeline).state, WindowState::kEndOfStream);
  EXPECT_EQ(group_status().dropped, 3);  // the tail, s5
  EXPECT_EQ(drop_of_windows({"s5"}), 0);
}

// What is left over when the passes are counted is in no window: only that can be dropped.
TEST_P(LedgerOperators, OfAGroupInItsPassesOnlyWhatIsInNoneIsDropped) {
  ledger_->declare_group({.group = group_, .window = 2, .tail = TailPolicy::kCarry, .passes = 2});
  commit(0, 5);
  ledger_->close_prompts();
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 3);
  ledger_->checkpointed(group_, timeline, 3);
  EXPECT_THAT(freeable_ids(), ElementsAre("s0", "s1"));
  expect_error<Conflict>([&] { drop_of_windows({"s4", "s0"}); }, "sample 's0' of group 'train' was trained in window 0");
  expect_error<Conflict>([&] { drop_of_windows({"s4", "s2"}); }, "sample 's2' of group 'train' was trained in window 1");
  EXPECT_EQ(drop_of_windows({"s4"}), 1);
  EXPECT_THAT(window(timeline), ElementsAre("s2", "s3"));
  EXPECT_EQ(group_status().available, 0);
  EXPECT_THAT(freeable_ids(), UnorderedElementsAre("s0", "s1", "s4"));
}

TEST_P(LedgerOperators, ADropIsOfOneGroupAndTheOthersKeepTheSample) {
  declare(1);
  declare_queue();
  commit(0, 2);
  EXPECT_EQ(drop_of_windows({"s0"}), 1);
  EXPECT_THAT(freeable_ids(), IsEmpty());
  EXPECT_THAT(ids(lease(9)), ElementsAre("s0", "s1"));
  EXPECT_THAT(window(open_timeline(*ledger_)), ElementsAre("s1"));
  free({});
  ledger_->close_group(queue_);
  EXPECT_THAT(freeable_ids(), ElementsAre("s0"));
  expect_error<Conflict>([&] { drop({"s1"}); }, "the group was closed");
  expect_error<InvalidArgument>([&] { ledger_->drop_refs(GroupId("x"), {}, "", false); }, "group 'x' is not declared");
}

TEST_P(LedgerOperators, ALateGroupDropsOnlyWhatItHas) {
  declare(1);
  commit(0, 2);
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 1);
  ledger_->checkpointed(group_, timeline, 1);
  free(freeable_ids());
  ledger_->declare_group({.group = GroupId("late"), .window = 1});
  expect_error<Conflict>([&] { ledger_->drop_refs(GroupId("late"), typed({"s0"}), "", false); }, "was never the group's");
  EXPECT_EQ(ledger_->drop_refs(GroupId("late"), typed({"s1"}), "", false), 1);
  EXPECT_THAT(freeable_ids(), IsEmpty()) << "the first group has it in a window yet to come";
}

TEST_P(LedgerOperators, WhatEveryGroupIsDoneWithIsNotReplaced) {
  for (const bool close : {false, true}) {
    const std::string id = close ? "closed" : "dropped";
    ledger_->declare_group({.group = GroupId(id), .window = 2});
    ingest({id});
    const PromptLease lease = lease_one();
    ledger_->commit_sample(make_ref(id, 1), lease);
    if (!close) ledger_->drop_refs(GroupId(id), typed({id}), "by hand");
    ledger_->close_group(GroupId(id));
    free(freeable_ids());
    expect_error<Conflict>([&] { ledger_->commit_sample(make_ref(id, 2), lease); }, "comes too late");
    EXPECT_EQ(ledger_->status().resident_bytes, 0u);
  }
}

TEST_P(LedgerOperators, ADropOutlivesARewind) {
  declare(1);
  commit(0, 4);
  const std::int64_t timeline = open_timeline(*ledger_);
  drop_of_windows({"s1"});
  EXPECT_THAT(train(timeline, 1, 2), ElementsAre("s0", "s2"));
  const std::int64_t again = open_timeline(*ledger_);
  EXPECT_THAT(train(again, 1, 3), ElementsAre("s0", "s2", "s3"));
}

class LedgerTables : public LedgerOperators {};
INSTANTIATE_SQL_STORY(LedgerTables);

// Each is written past the ledger, and check() must name it; memory/check_test.cc does the same to books in memory.
TEST_P(LedgerTables, CheckNamesWhatDoesNotFit) {
  declare(2);
  declare_queue();
  commit(0, 5);
  ingest({"p"});
  train(open_timeline(*ledger_), 1, 1);
  const auto leases = lease(2);
  ack({leases[0]});
  const auto sql = testing_support::as_sql(open());
  // As earlier versions kept them; of a packed ref the row is all there is.
  for (const int row : {1, 2}) {
    sql->database().script(fmt::format("UPDATE sample_ref SET template = 0, packed = '{}' WHERE row = {}",
                                       sample_ref_to_json(make_ref(fmt::format("s{}", row), 1)), row));
  }
  EXPECT_THAT(sql->check(), IsEmpty());
  const struct {
    const char *damage, *mended, *finding;
  } kDamages[] = {
      {"UPDATE run SET prompts_pending = 7", "UPDATE run SET prompts_pending = 1",
       "prompts pending: the counter says 7, the rows 1"},
      {"UPDATE run SET resident_bytes = 1", "UPDATE run SET resident_bytes = 500",
       "resident bytes: the counter says 1, the rows 500"},
      {"UPDATE consumer SET acked = 2 WHERE kind = 1", "UPDATE consumer SET acked = 1 WHERE kind = 1",
       "queue 'queue': acked: the counter says 2, the rows 1"},
      {"UPDATE consumer SET available = 9 WHERE kind = 0", "UPDATE consumer SET available = 3 WHERE kind = 0",
       "group 'train': available: the counter says 9, the rows 3"},
      {"UPDATE sample SET claims = 9 WHERE sample_id = 's3'", "UPDATE sample SET claims = 2 WHERE sample_id = 's3'",
       "samples whose claims are not those of the groups: 1, 's3' among them"},
      {"UPDATE sample SET state = 1, claims = 0 WHERE sample_id = 's0'",
       "UPDATE sample SET state = 0, claims = 1 WHERE sample_id = 's0'",
       "group 'train': needed for training, and may go: 1, 's0' among them"},
      {"UPDATE window_ref SET position = 5 WHERE position = 1", "UPDATE window_ref SET position = 1 WHERE position = 5",
       "group 'train': windows with gaps: the counter says 0, the rows 1"},
      {"UPDATE queue_ref SET shard = shard + 1 WHERE row = 4", "UPDATE queue_ref SET shard = shard - 1 WHERE row = 4",
       "sample 's4' is in another shard of a queue than its id says"},
      {"UPDATE sample SET generation = 5 WHERE sample_id = 's2'", "UPDATE sample SET generation = 1 WHERE sample_id = 's2'",
       "sample 's2': generation is 5 in its row and 1 in its ref"},
      {"UPDATE sample_ref SET packed = '5' || packed WHERE row = 3",
       "UPDATE sample_ref SET packed = SUBSTR(packed, 2) WHERE row = 3",
       "the ref of sample 's3' cannot be read: a packed ref is none of its template's: '5'"},
      {"UPDATE sample_ref SET template = 9 WHERE row = 4", "UPDATE sample_ref SET template = 1 WHERE row = 4",
       "has lost template 9"},
      {"UPDATE prompt_task SET json = 'x' || json WHERE row = 5", "UPDATE prompt_task SET json = SUBSTR(json, 2) WHERE row = 5",
       "the record of prompt 'p' cannot be read: "},
      {"UPDATE sample SET sample_id = 'other' WHERE sample_id = 's1'",
       "UPDATE sample SET sample_id = 's1' WHERE sample_id = 'other'", "sample 'other' has the ref of 's1'"},
      {"UPDATE consumer SET released_windows = 1 WHERE kind = 0", "UPDATE consumer SET released_windows = 0 WHERE kind = 0",
       "group 'train': released, durable, trained and dealt windows out of their order: 1, 'train' among them"},
  };
  for (const auto& [damage, mended, finding] : kDamages) {
    SCOPED_TRACE(damage);
    sql->database().script(damage);
    EXPECT_THAT(sql->check(), testing::Contains(HasSubstr(finding)));
    sql->database().script(mended);
    EXPECT_THAT(sql->check(), IsEmpty());
  }
}

// On one view, or a writer in between would make counters and rows differ.
TEST_P(LedgerOperators, CheckFindsNothingWhileOthersWrite) {
  declare_queue();
  std::atomic<bool> done = false;
  std::thread writer([&] {
    const auto theirs = open();
    for (int i = 0; !done && i < 2000; ++i) {
      theirs->commit_samples({make_ref(fmt::format("s{}", i))}, {});
      theirs->ack_refs(queue_, theirs->lease_refs(asking(1)).leases);
    }
  });
  std::vector<std::string> found;
  for (int i = 0; i < 40 && found.empty(); ++i) found = ledger_->check();
  done = true;
  writer.join();
  EXPECT_THAT(found, IsEmpty());
}

}  // namespace
}  // namespace draftflow
