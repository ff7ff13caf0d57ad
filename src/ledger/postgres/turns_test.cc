// SPDX-License-Identifier: Apache-2.0
//
// Calls of a queue on one server at once: lease_refs and ack_refs share the write turn, all else is alone. What one has locked
// the other passes by; nothing is leased twice, no count is lost, and nobody waits for one who waits for him.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <mutex>
#include <set>
#include <thread>

#include "ledger/ledger_story.h"
#include "ledger/postgres/database.h"
#include "ledger/sql/recount.h"

namespace draftflow::postgres {
namespace {

using testing_support::make_ref;
using testing_support::TestingServer;

const GroupId kQueue("queue");

std::unique_ptr<Ledger> open_plain(const std::string& url) {
  return open_postgres_ledger(url, std::nullopt);
}

void commit(Ledger& ledger, int from, int to) {
  std::vector<SampleRef> refs;
  for (int i = from; i < to; ++i) refs.push_back(make_ref(fmt::format("s{:05}", i)));
  ledger.commit_samples(refs, {});
}

RefRequest asking(int max_refs, const GroupId& queue = kQueue) {
  return {.group = queue, .holder = HolderId("me"), .max_refs = max_refs};
}

// A client that has just leased the first two refs, and whose transaction has not ended.
TEST(PostgresTurns, ALeaseWaitsForNoOtherAndPassesByWhatItHasTaken) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  const auto ledger = open_plain(url);
  ledger->declare_group({.group = kQueue, .kind = GroupKind::kQueue});
  commit(*ledger, 0, 6);
  const auto earlier = ledger->lease_refs(asking(1)).leases;
  Database other(url);
  {
    const sql::Transaction slow(other, sql::Turn::kShared);
    other.run("UPDATE queue_ref SET state = 1, holder = 'x', token = 'x', expires_ms = 1 WHERE consumer = 1 AND row IN (1, 2)");
    auto found = std::async(std::launch::async, [&] { return ledger->lease_refs(asking(2)).leases; });
    ASSERT_EQ(found.wait_for(std::chrono::seconds(20)), std::future_status::ready) << "it waits for the other's turn";
    const auto leases = found.get();
    ASSERT_EQ(leases.size(), 2u);
    EXPECT_EQ(leases[0].ref.sample_id.str(), "s00003");
    ledger->ack_refs(kQueue, earlier);
    EXPECT_EQ(ledger->lease_refs(asking(5)).leases.size(), 1u);
    // What is left is in the other's hands: neither given nor the end.
    EXPECT_EQ(ledger->lease_refs(asking(5)).state, QueueState::kEmpty);
  }
  EXPECT_EQ(ledger->lease_refs(asking(5)).leases.size(), 2u);  // the other gave up
  testing_support::expect_books_balance(*testing_support::as_sql(open_plain(url)));
}

TEST(PostgresTurns, WhoMustBeAloneWaitsForThoseThatShare) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  const auto ledger = open_plain(url);
  ledger->declare_group({.group = kQueue, .kind = GroupKind::kQueue});
  Database other(url);
  std::future<void> closing;
  {
    const sql::Transaction slow(other, sql::Turn::kShared);
    closing = std::async(std::launch::async, [&] { ledger->close_group(kQueue); });
    EXPECT_EQ(closing.wait_for(std::chrono::milliseconds(300)), std::future_status::timeout);
  }
  closing.get();
}

// The same ack twice at once, as when a client that gave a call up has sent it again on another connection.
TEST(PostgresTurns, AnAckThatMeetsItselfCountsOnce) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  const auto ledger = open_plain(url);
  ledger->declare_group({.group = kQueue, .kind = GroupKind::kQueue});
  commit(*ledger, 0, 2000);
  const auto again = open_plain(url);
  for (int i = 0; i < 10; ++i) {
    auto leases = ledger->lease_refs(asking(200)).leases;
    auto backwards = leases;
    std::reverse(backwards.begin(), backwards.end());
    auto other = std::async(std::launch::async, [&] { again->ack_refs(kQueue, backwards); });
    ledger->ack_refs(kQueue, leases);
    other.get();
  }
  EXPECT_EQ(ledger->status().of(kQueue).durable, 2000);
  EXPECT_EQ(ledger->status().of(kQueue).leased, 0);
  testing_support::expect_books_balance(*testing_support::as_sql(open_plain(url)));
}

// Row 0 lies behind the others in the table, where a statement that takes the rows as they lie would come to it last.
TEST(PostgresTurns, AnAckLocksItsRefsAndThenTheirSamplesByAscendingRow) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  for (const std::string table : {"queue_ref WHERE consumer = 1 AND", "sample WHERE"}) {
    SCOPED_TRACE(table);
    const std::string url = server.fresh_schema();
    const auto ledger = open_plain(url);
    for (const GroupId& queue : {kQueue, GroupId("second")}) {
      ledger->declare_group({.group = queue, .kind = GroupKind::kQueue});
    }
    commit(*ledger, 0, 6);
    auto leases = ledger->lease_refs(asking(6)).leases;
    std::reverse(leases.begin(), leases.end());
    Database other(url), third(url);
    other.script(
        "UPDATE sample SET bytes = bytes WHERE row = 0; UPDATE queue_ref SET attempts = attempts WHERE row = 0; ANALYZE");
    std::future<void> acking;
    {
      const sql::Transaction slow(other, sql::Turn::kShared);
      ASSERT_TRUE(other.find(fmt::format("SELECT row FROM {} row = 3 FOR UPDATE", table)));
      acking = std::async(std::launch::async, [&] { ledger->ack_refs(kQueue, leases); });
      const auto waits = [&] {
        return server.ask("SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'postgres'") !=
               "0";
      };
      for (int i = 0; i < 400 && !waits(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      std::vector<int> locked;
      for (int row = 0; row < 6; ++row) {
        if (!third.find(fmt::format("SELECT row FROM {} row = ?1 FOR UPDATE SKIP LOCKED", table), row)) locked.push_back(row);
      }
      EXPECT_EQ(locked, (std::vector<int>{0, 1, 2, 3}));
    }
    acking.get();
    EXPECT_EQ(ledger->status().of(kQueue).durable, 6);
  }
}

// Two queues over the same samples, clients of both, leases that run out, failures, commits, sweeps, all at once.
TEST(PostgresTurns, ManyClientsOfTwoQueuesTakeEachRefOnceAndCountRight) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  const std::vector<GroupId> queues{kQueue, GroupId("second")};
  constexpr int kClients = 3, kSamples = 3000;
  const auto ledger = open_plain(url);
  for (const GroupId& queue : queues) ledger->declare_group({.group = queue, .kind = GroupKind::kQueue, .max_attempts = 1000});
  std::mutex mutex;
  std::map<std::string, std::multiset<std::string>> acked;  // by queue
  std::atomic<int> left = static_cast<int>(queues.size()) * kSamples;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);  // wrong counts may hide refs for good
  std::vector<std::future<void>> threads;
  for (int client = 0; client < kClients * static_cast<int>(queues.size()); ++client) {
    threads.push_back(std::async(std::launch::async, [&, client] {
      const GroupId& queue = queues[static_cast<std::size_t>(client) % queues.size()];
      const auto mine = open_plain(url);
      for (int turn = 0; left > 0 && std::chrono::steady_clock::now() < end; ++turn) {
        RefRequest request = asking(1 + (client * 31 + turn * 17) % 90, queue);
        request.holder = HolderId(fmt::format("c{}", client));
        const bool dies = turn % 7 == 3;
        if (dies) request.lease_ms = 1;  // and somebody else takes them back
        if (turn % 5 == 4) request.partition = Partition{turn % 2, 2};
        std::vector<RefLease> leases = mine->lease_refs(request).leases;
        if (leases.empty() || dies) continue;
        if (turn % 11 == 5) {
          mine->fail_refs(queue, leases, "not now", true);
        } else if (turn % 13 == 6) {
          mine->return_refs(queue, request.holder);
        } else {
          if (turn % 2 == 0) std::reverse(leases.begin(), leases.end());
          mine->ack_refs(queue, leases);
          const std::lock_guard lock(mutex);
          for (const RefLease& lease : leases) acked[queue.str()].insert(lease.ref.sample_id.str());
          left -= static_cast<int>(leases.size());
        }
      }
    }));
  }
  for (int i = 0; i < kSamples; i += 100) {
    commit(*ledger, i, i + 100);
    std::vector<SampleId> gone;
    for (const SampleRef& ref : ledger->freeable(50)) gone.push_back(ref.sample_id);
    ledger->freed(gone);
  }
  for (std::future<void>& thread : threads) thread.get();
  for (const GroupId& queue : queues) {
    const auto& mine = acked[queue.str()];
    EXPECT_EQ(mine.size(), static_cast<std::size_t>(kSamples));
    EXPECT_EQ(std::set<std::string>(mine.begin(), mine.end()).size(), mine.size()) << "a ref was acked twice";
    EXPECT_EQ(ledger->status().of(queue).durable, kSamples);
  }
  testing_support::expect_books_balance(*testing_support::as_sql(open_plain(url)));
  EXPECT_EQ(server.ask("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'"), "0");
}

}  // namespace
}  // namespace draftflow::postgres
