// SPDX-License-Identifier: Apache-2.0
//
// Stories of waiting for a ledger to change.
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "draftflow/base/interrupt.h"
#include "draftflow/base/random.h"
#include "draftflow/ledger/partition.h"
#include "ledger/ledger_story.h"
#include "ledger/sql/recount.h"

namespace draftflow::testing_support {
namespace {

constexpr std::int64_t kLongMs = 30'000;  // no wait lasts so long, unless a wake-up was missed

struct CalledAway {};

class LedgerWait : public LedgerStory {
 protected:
  void SetUp() override {
    LedgerStory::SetUp();
    if (!IsSkipped()) other_ = open();
  }

  // Until everything that was done before has been told.
  static void settle(Ledger& ledger) {
    while (ledger.wait(200)) {
    }
  }

  void expect_wakes(const std::string& what, const std::function<void()>& change) {
    settle(*ledger_);
    change();
    EXPECT_TRUE(ledger_->wait(kLongMs)) << what;
  }

  std::unique_ptr<Ledger> other_;  // another process, as far as the ledger can tell
};

TEST_P(LedgerWait, AWaiterIsWokenByACommitOfAnother) {
  settle(*ledger_);
  EXPECT_FALSE(ledger_->wait(20));
  EXPECT_FALSE(ledger_->wait(0));
  std::thread committer([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    other_->ingest_prompts({make_task("a")}, {});
  });
  EXPECT_TRUE(ledger_->wait(kLongMs));
  EXPECT_EQ(ledger_->status().prompts, 1);
  committer.join();
}

TEST_P(LedgerWait, WhateverMayBeWaitedForWakes) {
  const GroupId queue("queue");
  const auto lease = [&] { return other_->lease_prompts(worker_, 1, 1000).leases.at(0); };
  const auto take = [&](int refs) { return other_->lease_refs({.group = queue, .holder = worker_, .max_refs = refs}).leases; };
  expect_wakes("declare", [&] { other_->declare("key", "value"); });
  expect_wakes("declare_group", [&] { other_->declare_group({.group = group_, .window = 1}); });
  other_->declare_group({.group = queue, .kind = GroupKind::kQueue, .max_attempts = 9});
  expect_wakes("ingest_prompts", [&] { other_->ingest_prompts({make_task("a"), make_task("b"), make_task("c")}, {}); });
  const PromptLease first = lease();
  expect_wakes("commit_sample", [&] { other_->commit_sample(make_ref("a"), first); });
  const PromptLease second = lease();
  expect_wakes("fail_prompt", [&] { other_->fail_prompt(second, "why", true, 5); });
  lease();
  expect_wakes("return_leases", [&] { other_->return_leases(worker_); });
  expect_wakes("drop_prompts", [&] { other_->drop_prompts({TaskId("b")}, "why"); });
  expect_wakes("retry_prompts", [&] { other_->retry_prompts({TaskId("b")}); });
  expect_wakes("commit_samples", [&] { other_->commit_samples({make_ref("d"), make_ref("e")}, {}); });
  expect_wakes("close_prompts", [&] { other_->close_prompts(); });

  auto leases = take(2);
  expect_wakes("fail_refs", [&] { other_->fail_refs(queue, leases, "why", true); });
  take(1);
  expect_wakes("return_refs", [&] { other_->return_refs(queue, worker_); });
  leases = take(1);
  other_->fail_refs(queue, leases, "why", false);
  expect_wakes("retry_failed", [&] { other_->retry_failed(queue, {leases.at(0).ref.sample_id}); });
  expect_wakes("drop_refs", [&] { other_->drop_refs(queue, {SampleId("e")}, "why"); });
  leases = take(9);
  expect_wakes("the last ack_refs", [&] { other_->ack_refs(queue, leases); });

  TimelineInfo line;
  expect_wakes("open_timeline", [&] { line = other_->open_timeline({.group = group_}); });
  other_->read_window(group_, line.number, 0);
  expect_wakes("trained", [&] { other_->trained(group_, line.number, 0, 1, {}); });
  expect_wakes("checkpointed", [&] { other_->checkpointed(group_, line.number, 1); });
  std::vector<SampleId> going;
  for (const SampleRef& ref : other_->freeable(9)) going.push_back(ref.sample_id);
  ASSERT_FALSE(going.empty());
  expect_wakes("freed", [&] { other_->freed(going); });
  expect_wakes("close_group", [&] { other_->close_group(group_); });
}

TEST_P(LedgerWait, WhatALeaseThatRanOutGivesBackWakes) {
  const GroupId queue("queue");
  other_->declare_group({.group = queue, .kind = GroupKind::kQueue});
  other_->ingest_prompts({make_task("a"), make_task("b")}, {});
  other_->commit_samples({make_ref("x"), make_ref("y")}, {});
  other_->lease_prompts(worker_, 2, 1000);
  other_->lease_refs({.group = queue, .holder = worker_, .max_refs = 2, .lease_ms = 1000});
  now_ms_ += 2000;
  expect_wakes("lease_prompts", [&] { other_->lease_prompts(HolderId("second"), 1, 1000); });
  expect_wakes("lease_refs", [&] { other_->lease_refs({.group = queue, .holder = HolderId("second"), .max_refs = 1}); });
}

void spin(std::uint64_t turns) {
  for (; turns > 0; --turns) std::atomic_signal_fence(std::memory_order_seq_cst);
}

// A waiter that asks and then waits, against a committer that commits right then: before the wait, at its beginning, in it.
TEST_P(LedgerWait, NothingIsMissedBetweenAVerbAndAWait) {
  constexpr int kRounds = 1000;
  std::atomic<int> seen{0};
  std::atomic<bool> given_up{false};
  std::thread committer([&] {
    Random random(7);
    for (int i = 0; i < kRounds && !given_up; ++i) {
      while (seen < i && !given_up) std::this_thread::yield();
      spin(random.below(40'000));
      other_->ingest_prompts({make_task(fmt::format("p{}", i))}, {});
    }
  });
  int wakes = 0;
  Random random(8);
  while (seen < kRounds && !given_up) {
    seen = static_cast<int>(ledger_->status().prompts);
    if (seen == kRounds) break;
    spin(random.below(40'000));
    if (random.below(4) == 0) std::this_thread::sleep_for(std::chrono::microseconds(random.below(3000)));
    if (ledger_->wait(kLongMs)) {
      ++wakes;
    } else {
      ADD_FAILURE() << "the wake-up after " << seen << " of " << kRounds << " was missed";
      given_up = true;
    }
  }
  committer.join();
  EXPECT_GE(wakes, kRounds / 2);
}

TEST_P(LedgerWait, ABusyLedgerWakesNoMoreThanEveryFewMilliseconds) {
  settle(*ledger_);
  std::atomic<bool> stop{false};
  std::thread committer([&] {
    for (int i = 0; !stop; ++i) other_->ingest_prompts({make_task(fmt::format("p{}", i))}, {});
  });
  const auto start = std::chrono::steady_clock::now();
  int wakes = 0;
  while (wakes < 40 && ledger_->wait(kLongMs)) ++wakes;
  const auto passed = std::chrono::steady_clock::now() - start;
  stop = true;
  committer.join();
  EXPECT_EQ(wakes, 40);
  EXPECT_GE(passed, std::chrono::milliseconds(5) * 38);
}

TEST_P(LedgerWait, WhoFoundNothingToDoWakesNobody) {
  const GroupId queue("queue");
  other_->declare_group({.group = queue, .kind = GroupKind::kQueue});
  declare(2);
  const std::int64_t line = open_timeline(*other_);
  other_->commit_samples({make_ref("a")}, {});
  const RefRequest of_the_other_part{
      .group = queue, .holder = worker_, .partition = Partition{1 - static_cast<int>(dp_partition("a", 2)), 2}};
  other_->lease_refs(of_the_other_part);  // makes an index
  settle(*ledger_);
  EXPECT_TRUE(other_->lease_prompts(worker_, 1, 1000).leases.empty());
  EXPECT_TRUE(other_->lease_refs(of_the_other_part).leases.empty());
  EXPECT_FALSE(other_->read_window(group_, line, 0).window);
  EXPECT_TRUE(other_->freeable(10).empty());
  EXPECT_FALSE(ledger_->wait(150));
}

TEST_P(LedgerWait, AnInterruptEndsAWaitAndTheLedgerGoesOn) {
  settle(*ledger_);
  {
    int checks = 0;
    const InterruptScope scope([&] {
      if (++checks == 3) throw CalledAway();
    });
    EXPECT_THROW(ledger_->wait(kLongMs * 100), CalledAway);
  }
  ledger_->ingest_prompts({make_task("a")}, {});
  settle(*ledger_);
  expect_wakes("after an interrupt", [&] { other_->ingest_prompts({make_task("b")}, {}); });
  EXPECT_EQ(ledger_->status().prompts, 2);
}

TEST_P(LedgerWait, AStopEndsALoopsWaitAndAChangeDoes) {
  settle(*ledger_);
  std::atomic<bool> stop{false};
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    stop = true;
  });
  int asked = 0;
  while (!stop) {
    wait_for_change(*ledger_, [&] {
      ++asked;
      return stop.load();
    });
  }
  stopper.join();
  EXPECT_GT(asked, 0);
  other_->ingest_prompts({make_task("a")}, {});
  wait_for_change(*ledger_, [] { return false; });
  wait_for_change(*ledger_, [] { return false; });  // ends by time
}

INSTANTIATE_LEDGER_STORY(LedgerWait);

// Where writers take turns, one that is called away out of the line leaves everything as it was.
class LedgerTurn : public LedgerWait {};

TEST_P(LedgerTurn, AnInterruptEndsAWaitForTheWriteTurn) {
  const auto holder = as_sql(open());
  const auto third = as_sql(open());
  std::thread behind;
  {
    sql::Transaction held(holder->database());
    behind = std::thread([&] { third->ingest_prompts({make_task("behind")}, {}); });
    for (int i = 0; i < 3; ++i) {
      int checks = 0;
      const InterruptScope scope([&] {
        if (++checks > 3) throw CalledAway();
      });
      EXPECT_THROW(ledger_->ingest_prompts({make_task("a")}, {}), CalledAway);
    }
    holder->database().run("UPDATE run SET prompts = prompts WHERE id = 1");
    held.commit();
  }
  behind.join();
  EXPECT_EQ(ledger_->status().prompts, 1);
  ledger_->ingest_prompts({make_task("a")}, {});
  other_->ingest_prompts({make_task("c")}, {});  // and the turn is nobody's
  EXPECT_EQ(other_->status().prompts, 3);
}

// In the midst of its transaction, whenever that is.
TEST_P(LedgerTurn, AnInterruptedVerbIsDoneOrNotAtAll) {
  std::vector<PromptTask> tasks;
  for (int i = 0; i < 300; ++i) tasks.push_back(make_task(fmt::format("p{}", i)));
  int thrown = 0, most = 1;
  for (; most < 100'000; most *= 2) {
    int checks = 0;
    try {
      const InterruptScope scope([&] {
        if (++checks > most) throw CalledAway();
      });
      ledger_->ingest_prompts(tasks, {});
      break;
    } catch (const CalledAway&) {
      ++thrown;
    }
    const std::int64_t found = other_->status().prompts;
    EXPECT_TRUE(found == 0 || found == 300) << found;
  }
  EXPECT_EQ(ledger_->status().prompts, 300);
  expect_books_balance(*as_sql(open()));
  if (GetParam().server_time) {
    EXPECT_GT(thrown, 3);  // of a statement each
  }
}

INSTANTIATE_SQL_STORY(LedgerTurn);

}  // namespace
}  // namespace draftflow::testing_support
