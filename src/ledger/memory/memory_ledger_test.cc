// SPDX-License-Identifier: Apache-2.0
//
// What only the ledger in memory has: books that several objects share, and threads that use them at once.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "ledger/export_testing.h"
#include "ledger/ledger_story.h"

namespace draftflow {
namespace {

using testing_support::expect_error;
using testing_support::make_ref;
using testing_support::make_task;

TEST(MemoryLedger, LivesAsLongAsItsBooksOrALedgerOnThem) {
  auto books = make_memory_ledger();
  auto first = open_memory_ledger(books);
  first->ingest_prompts({make_task("a")}, {});
  const std::string id = first->id();
  first.reset();
  auto second = open_memory_ledger(books);
  EXPECT_EQ(second->id(), id);
  books.reset();
  EXPECT_EQ(second->status().prompts, 1);
  EXPECT_NE(open_memory_ledger(make_memory_ledger())->id(), id);
  expect_error<InvalidArgument>([] { open_memory_ledger(nullptr); }, "without its books");
  expect_error<InvalidArgument>([] { open_ledger("mem://x"); }, "ledger mem://x: a ledger in memory has no name");
  expect_error<InvalidArgument>([] { open_ledger_read_only("mem://x"); }, "name a SQLite file");
}

TEST(MemoryLedger, HasNoExportAndSaysSo) {
  const auto ledger = open_memory_ledger(make_memory_ledger());
  ledger->ingest_prompts({make_task("a")}, {});
  expect_error<InvalidArgument>([&] { testing_support::export_of(*ledger); }, "a ledger in memory has no export");
  expect_error<InvalidArgument>([&] { testing_support::import_into(*ledger, {}); }, "a ledger in memory has no export");
  const PromptAnswer answer = ledger->lease_prompts(HolderId("worker"), 1, 1000);
  ASSERT_EQ(answer.leases.size(), 1u);
  EXPECT_EQ(answer.leases[0].task.task_id.str(), "a");
}

// Of a queue that lives long: what is acked costs its row, and neither its lease nor a place in an index.
TEST(MemoryLedger, AQueueGoesOnAndOn) {
  const auto ledger = open_memory_ledger(make_memory_ledger());
  const GroupId group("queue");
  ledger->declare_group({.group = group, .kind = GroupKind::kQueue});
  std::set<std::string> acked;
  for (int round = 0; round < 30; ++round) {
    std::vector<SampleRef> refs;
    for (int i = 0; i < 1000; ++i) refs.push_back(make_ref(fmt::format("s{}", 1000 * round + i)));
    ledger->commit_samples(refs, {});
    for (int index = 0; index < 3; ++index) {
      const QueueAnswer answer = ledger->lease_refs({.group = group, .max_refs = 1000, .partition = Partition{index, 3}});
      ledger->ack_refs(group, answer.leases);
      for (const RefLease& lease : answer.leases) EXPECT_TRUE(acked.insert(lease.ref.sample_id.str()).second);
    }
    std::vector<SampleId> gone;
    for (const SampleRef& ref : ledger->freeable(2000)) gone.push_back(ref.sample_id);
    ledger->freed(gone);
  }
  EXPECT_EQ(acked.size(), 30'000U);
  EXPECT_EQ(ledger->trained_ids(group).size(), 30'000U);
  EXPECT_EQ(ledger->status().freed, 30'000);
  EXPECT_TRUE(ledger->is_committed(SampleId("s0")));
  EXPECT_EQ(sample_ref_to_json(*ledger->get_committed(SampleId("s17"))), sample_ref_to_json(make_ref("s17")));
}

// A run with all its parts, each with a Ledger of its own.
class Threads : public ::testing::Test {
 protected:
  static constexpr int kSamples = 600, kWindow = 4;
  std::unique_ptr<Ledger> open() const { return open_memory_ledger(books_); }

  void produce(int worker) {
    const auto ledger = open();
    for (;;) {
      const PromptAnswer answer = ledger->lease_prompts(HolderId(fmt::format("w{}", worker)), 3, 60'000);
      if (answer.finished) return;
      for (const PromptLease& lease : answer.leases) {
        EXPECT_TRUE(ledger->extend_lease(lease, 60'000));
        ledger->commit_sample(make_ref(lease.task.task_id.str()), lease);
      }
    }
  }
  void train(const TimelineRequest& request) {
    const auto ledger = open();
    const TimelineInfo timeline = ledger->open_timeline(request);
    for (std::int64_t next = timeline.first_window;;) {
      const WindowAnswer answer =
          ledger->read_window(train_, timeline.number, next, {.rank = request.rank, .width = request.width});
      if (answer.state == WindowState::kEndOfStream) break;
      if (!answer.window) continue;
      ledger->trained(train_, timeline.number, next, next + 1, {});
      ledger->checkpointed(train_, timeline.number, next + 1);
      ++next;
    }
  }
  void consume(int index) {
    const auto ledger = open();
    for (int call = 0;; ++call) {
      const QueueAnswer answer = ledger->lease_refs(
          {.group = queue_, .holder = HolderId(fmt::format("c{}", index)), .max_refs = 5, .partition = Partition{call % 3, 3}});
      if (answer.state == QueueState::kEndOfStream) return;
      if (answer.leases.empty()) continue;
      if (call % 7 == 0) {
        ledger->fail_refs(queue_, answer.leases, "again", true);
      } else if (call % 11 == 0) {
        ledger->return_refs(queue_, HolderId(fmt::format("c{}", index)));
      } else {
        ledger->ack_refs(queue_, answer.leases);
      }
    }
  }
  void sweep() {
    const auto ledger = open();
    while (ledger->status().freed < kSamples) {
      std::vector<SampleId> ids;
      for (const SampleRef& ref : ledger->freeable(16)) ids.push_back(ref.sample_id);
      ledger->freed(ids);
      for (const GroupStatus& group : ledger->status().groups) EXPECT_LE(group.durable, kSamples);
    }
  }

  const std::shared_ptr<MemoryBooks> books_ = make_memory_ledger();
  const GroupId train_{"train"}, queue_{"queue"};
};

TEST_F(Threads, LoseNothingAndSeeEachSampleOnce) {
  const auto ledger = open();
  ledger->declare_group({.group = train_, .window = kWindow});
  ledger->declare_group({.group = queue_, .kind = GroupKind::kQueue, .max_attempts = 1 << 20});
  std::vector<PromptTask> tasks;
  for (int i = 0; i < kSamples; ++i) tasks.push_back(make_task(fmt::format("p{}", i)));
  ledger->ingest_prompts(tasks, {});
  ledger->close_prompts();
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([this, i] { produce(i); });
    threads.emplace_back([this, i] { train({.group = train_, .width = 2, .rank = i, .launch = "a"}); });
    threads.emplace_back([this, i] { consume(i); });
  }
  threads.emplace_back([this] { sweep(); });
  for (std::thread& thread : threads) thread.join();
  for (const GroupId& group : {train_, queue_}) {
    const std::vector<std::string> ids = ledger->trained_ids(group);
    EXPECT_EQ(ids.size(), static_cast<std::size_t>(kSamples));
    EXPECT_EQ(std::set<std::string>(ids.begin(), ids.end()).size(), ids.size());
    EXPECT_EQ(ledger->status().of(group).pinned, 0);
  }
  EXPECT_EQ(ledger->status().resident_bytes, 0U);
}

}  // namespace
}  // namespace draftflow
