// SPDX-License-Identifier: Apache-2.0
//
// The books of a ledger in memory, damaged one by one past its verbs: check() must name each.
#include "ledger/ledger_story.h"
#include "ledger/memory/books.h"

namespace draftflow {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing_support::make_ref;
using testing_support::make_task;

class MemoryCheck : public ::testing::Test {
 protected:
  // s0 to s4, of which s0 to s3 are in windows, s0 and s1 trained; in a queue s0 is acked, s1 failed and s2 leased; prompts of
  // every state.
  void SetUp() override {
    ledger_->declare_group({.group = GroupId("train"), .window = 2});
    ledger_->declare_group({.group = GroupId("queue"), .kind = GroupKind::kQueue, .max_attempts = 1});
    ledger_->commit_samples({make_ref("s0"), make_ref("s1"), make_ref("s2"), make_ref("s3"), make_ref("s4")}, {});
    ledger_->ingest_prompts({make_task("done"), make_task("failed"), make_task("leased"), make_task("pending")}, {});
    const auto leases = ledger_->lease_prompts(HolderId("w"), 3, 1000).leases;
    ledger_->commit_sample(make_ref("done"), leases[0]);
    ledger_->fail_prompt(leases[1], "bad", false, 1);
    const std::int64_t timeline = ledger_->open_timeline({.group = GroupId("train")}).number;
    ledger_->read_window(GroupId("train"), timeline, 0, {});
    ledger_->read_window(GroupId("train"), timeline, 1, {});
    ledger_->trained(GroupId("train"), timeline, 0, 1, {{SampleId("s1"), "not finite"}});
    const auto refs = ledger_->lease_refs({.group = GroupId("queue"), .max_refs = 3}).leases;
    ledger_->ack_refs(GroupId("queue"), {refs[0]});
    ledger_->fail_refs(GroupId("queue"), {refs[1]}, "bad", false);
    ledger_->lease_refs({.group = GroupId("queue"), .max_refs = 1, .partition = Partition{0, 2}});
  }

  void expect_found(const char* finding, const std::function<void(MemoryBooks&)>& damage,
                    const std::function<void(MemoryBooks&)>& mend) {
    SCOPED_TRACE(finding);
    damage(*books_);
    EXPECT_THAT(ledger_->check(), Contains(HasSubstr(finding)));
    mend(*books_);
    EXPECT_THAT(ledger_->check(), IsEmpty());
  }
  // A number is another one.
  template <class Of>
  void expect_counted(const char* finding, Of of) {
    expect_found(
        finding, [&](MemoryBooks& b) { ++of(b); }, [&](MemoryBooks& b) { --of(b); });
  }
  // A row is not in its set.
  template <class Of>
  void expect_in_set(const char* finding, std::int64_t row, Of of) {
    expect_found(
        finding, [&](MemoryBooks& b) { of(b).erase(row); }, [&](MemoryBooks& b) { of(b).insert(row); });
  }

  std::shared_ptr<MemoryBooks> books_ = make_memory_ledger();
  std::unique_ptr<Ledger> ledger_ = open_memory_ledger(books_, LedgerClock{"boot", [] { return std::int64_t{1000}; }});
};

TEST_F(MemoryCheck, NamesAPromptThatDoesNotFit) {
  EXPECT_THAT(ledger_->check(), IsEmpty());
  expect_counted(
      "prompts pending: the counter says 2, the rows 1", [](auto& b) -> auto& { return b.pending; });
  expect_counted(
      "prompts leased: the counter says 2, the rows 1", [](auto& b) -> auto& { return b.leased; });
  expect_counted(
      "prompts done: the counter says 2, the rows 1", [](auto& b) -> auto& { return b.done; });
  expect_in_set(
      "prompts pending: their set has 0, the rows 1", 3, [](auto& b) -> auto& { return b.pending_prompts; });
  expect_found(
      "prompt 'failed' has failed without a reason", [](auto& b) { b.failed_prompts.erase(1); },
      [](auto& b) { b.failed_prompts[1] = "bad"; });
  expect_found(
      "prompts leased: their times are not those of their leases", [](auto& b) { b.holds.at(2).expires_ms += 1; },
      [](auto& b) { b.holds.at(2).expires_ms -= 1; });
  expect_found(
      "prompts leased: their holders are not those of their leases", [](auto& b) { b.holds.at(2).holder = "x"; },
      [](auto& b) { b.holds.at(2).holder = "w"; });
  expect_found(
      "prompt 'pending' has a token and no holder", [](auto& b) { b.prompts[3].token = 9; },
      [](auto& b) { b.prompts[3].token = 0; });
  expect_found(
      "prompt 'other' is not found by its id", [](auto& b) { b.prompts[3].task_id = "other"; },
      [](auto& b) { b.prompts[3].task_id = "pending"; });
}

TEST_F(MemoryCheck, NamesASampleThatDoesNotFit) {
  expect_counted(
      "committed tokens: the counter says 61, the rows 60", [](auto& b) -> auto& { return b.committed_tokens; });
  expect_counted(
      "resident bytes: the counter says 601, the rows 600", [](auto& b) -> auto& { return b.resident_bytes; });
  expect_counted(
      "samples freed: the counter says 1, the rows 0", [](auto& b) -> auto& { return b.freed; });
  expect_counted(
      "samples whose claims are not those of the groups: 1, 's3'", [](auto& b) -> auto& { return b.samples[3].claims; });
  expect_in_set(
      "samples resident: their set has 5, the rows 6", 2, [](auto& b) -> auto& { return b.resident; });
  expect_found(
      "group 'train': needed for training, and may go: 1, 's0' among them",
      [](auto& b) {
        b.samples[0].state = kMayGo;
        b.may_go.insert(0);
      },
      [](auto& b) {
        b.samples[0].state = kNeeded;
        b.may_go.erase(0);
      });
  expect_found(
      "sample 's4': in place is 1 in its row and 0 in its ref",
      [](auto& b) {
        b.samples[4].in_place = true;
        b.resident.erase(4);
        b.resident_bytes -= 100;
      },
      [](auto& b) {
        b.samples[4].in_place = false;
        b.resident.insert(4);
        b.resident_bytes += 100;
      });
}

TEST_F(MemoryCheck, NamesAGroupThatDoesNotFit) {
  const auto train = [](auto& b) -> auto& {
    return b.groups[0].windows;
  };
  expect_counted(
      "group 'train': available: the counter says 3, the rows 2", [](auto& b) -> auto& { return b.groups[0].available; });
  expect_counted(
      "group 'train': dropped: the counter says 1, the rows 0", [](auto& b) -> auto& { return b.groups[0].dropped; });
  expect_counted(
      "group 'train': failed and trained: the counter says 2, the rows 1", [&](auto& b) -> auto& {
        return train(b).failed_trained;
      });
  expect_counted(
      "group 'train': window 0: failed: the counter says 2, the rows 1", [&](auto& b) -> auto& {
        return train(b).windows[0].failed;
      });
  expect_counted(
      "group 'train': window 1: samples that were handed to a sweeper: the counter says 1, the rows 0", [&](auto& b) -> auto& {
        return train(b).windows[1].going;
      });
  expect_counted(
      "group 'train': released, durable, trained and dealt windows out of their order", [&](auto& b) -> auto& {
        return train(b).released_windows;
      });
  expect_counted(
      "group 'train': window 1 is trained out of the order", [&](auto& b) -> auto& { return train(b).windows[1].step; });
  expect_counted(
      "group 'train': windows out of their order", [&](auto& b) -> auto& { return train(b).rows[1]; });
  expect_counted(
      "group 'train': more or fewer windows than its passes have", [&](auto& b) -> auto& { return train(b).pass_windows; });
  expect_found(
      "group 'train': samples dropped, and in a window: 1, 's2' among them", [&](auto& b) { train(b).dropped_rows.insert(2); },
      [&](auto& b) { train(b).dropped_rows.erase(2); });
}

TEST_F(MemoryCheck, NamesAQueueThatDoesNotFit) {
  const auto queue = [](auto& b) -> auto& {
    return b.groups[1].queue;
  };
  expect_counted(
      "queue 'queue': available: the counter says ", [](auto& b) -> auto& { return b.groups[1].available; });
  expect_counted(
      "queue 'queue': leased: the counter says ", [&](auto& b) -> auto& { return queue(b).leased; });
  expect_counted(
      "queue 'queue': acked: the counter says 2, the rows 1", [&](auto& b) -> auto& { return queue(b).acked; });
  expect_counted(
      "queue 'queue': leases do not hold what the refs say", [&](auto& b) -> auto& { return queue(b).refs[2].token; });
  const std::int64_t row = queue(*books_).available.next(0);
  expect_in_set(
      "queue 'queue': available: their set has ", row, [&](auto& b) -> auto& { return queue(b).available; });
  expect_found(
      "queue 'queue': the index of partitions into 2 has other refs than are available",
      [&](auto& b) { queue(b).shards.set_available(row, false); }, [&](auto& b) { queue(b).shards.set_available(row, true); });
  expect_found(
      "queue 'queue': dropped, and in it: 1, ", [&](auto& b) { queue(b).dropped_rows.insert(row), ++b.groups[1].dropped; },
      [&](auto& b) { queue(b).dropped_rows.erase(row), --b.groups[1].dropped; });
  expect_found(
      "queue 'queue': leased without a lease, ended with one, or failed without a reason: 1, 's1'",
      [&](auto& b) { queue(b).failed.erase(1), queue(b).failed[4] = "bad"; },
      [&](auto& b) { queue(b).failed.erase(4), queue(b).failed[1] = "bad"; });
}

}  // namespace
}  // namespace draftflow
