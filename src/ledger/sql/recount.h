// SPDX-License-Identifier: Apache-2.0
//
// For tests only: counts a ledger's rows one by one and compares them with the counters it keeps, and checks the rules that
// tie the tables together.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "draftflow/ledger/partition.h"
#include "ledger/sql/rows.h"

namespace draftflow::testing_support {

// The same ledger, for looking into its tables.
inline std::unique_ptr<SqlLedger> as_sql(std::unique_ptr<Ledger> ledger) {
  return std::unique_ptr<SqlLedger>(&dynamic_cast<SqlLedger&>(*ledger.release()));
}

inline void expect_queue_balances(sql::Database& db, std::int64_t id, const GroupStatus& queue) {
  const auto of = [&](const std::string& sql) { return db.find(sql, id).value_or(0); };
  const auto refs = [&](const std::string& where) {
    return of("SELECT COUNT(*) FROM queue_ref q JOIN sample s ON s.row = q.row WHERE q.consumer = ?1 AND " + where);
  };
  EXPECT_EQ(queue.available, refs("q.state = 0"));
  EXPECT_EQ(queue.leased, refs("q.state = 1"));
  EXPECT_EQ(queue.durable, refs("q.state = 2"));
  EXPECT_EQ(queue.failed, refs("q.state = 3"));
  EXPECT_EQ(queue.dropped, of("SELECT COUNT(*) FROM dropped WHERE consumer = ?1"));
  EXPECT_EQ(queue.windowed + queue.trained, 0);
  EXPECT_EQ(0, of("SELECT COUNT(*) FROM window_ref WHERE consumer = ?1"));
  EXPECT_EQ(0, of("SELECT COUNT(*) FROM queue_ref q JOIN dropped d ON d.consumer = q.consumer AND d.row = q.row"
                  " WHERE q.consumer = ?1"));
  // No sample that may still be leased may go, and each that is there is in the queue, or was.
  EXPECT_EQ(0, refs("q.state < 2 AND s.state > 0"));
  if (queue.open) {
    EXPECT_EQ(0, of("SELECT COUNT(*) FROM sample s WHERE s.state = 0"
                    " AND NOT EXISTS (SELECT 1 FROM queue_ref q WHERE q.row = s.row AND q.consumer = ?1)"
                    " AND NOT EXISTS (SELECT 1 FROM dropped d WHERE d.row = s.row AND d.consumer = ?1)"));
  } else {
    EXPECT_EQ(0, refs("q.state < 2"));
  }
  // What a lease leaves behind, by state.
  EXPECT_EQ(0, refs("q.state = 0 AND q.expires_ms IS NOT NULL"));
  EXPECT_EQ(0, refs("q.state = 1 AND (q.holder IS NULL OR q.token IS NULL OR q.expires_ms IS NULL)"));
  EXPECT_EQ(0, refs("q.state > 1 AND (q.holder IS NOT NULL OR q.token IS NOT NULL OR q.expires_ms IS NOT NULL)"));
  EXPECT_EQ(0, refs("q.state > 1 AND q.ended_token IS NULL"));
  EXPECT_EQ(0, refs("q.state = 2 AND q.reason IS NOT NULL"));
  EXPECT_EQ(0, refs("q.state = 3 AND (q.reason IS NULL OR q.attempts = 0)"));
  sql::Query shards =
      db.query("SELECT s.sample_id, q.shard FROM queue_ref q JOIN sample s ON s.row = q.row WHERE q.consumer = ?1", id);
  while (shards.step()) EXPECT_EQ(shards.integer(1), dp_partition(shards.text(0), kShardModulus)) << shards.text(0);
}

inline void expect_books_balance(SqlLedger& ledger) {
  sql::Database& db = ledger.database();
  const LedgerStatus status = ledger.status();
  const auto count = [&](const char* sql) { return db.find(sql).value_or(0); };

  EXPECT_EQ(status.prompts, count("SELECT COUNT(*) FROM prompt"));
  EXPECT_EQ(status.prompts, count("SELECT COUNT(*) FROM prompt_task"));
  EXPECT_EQ(status.prompts_pending, count("SELECT COUNT(*) FROM prompt WHERE state = 0"));
  EXPECT_EQ(status.prompts_leased, count("SELECT COUNT(*) FROM prompt WHERE state = 1"));
  EXPECT_EQ(status.prompts_done, count("SELECT COUNT(*) FROM prompt WHERE state = 2"));
  EXPECT_EQ(status.prompts_failed, count("SELECT COUNT(*) FROM prompt WHERE state = 3"));
  EXPECT_EQ(status.committed, count("SELECT COUNT(*) FROM sample"));
  EXPECT_EQ(status.committed, count("SELECT COUNT(*) FROM sample_ref"));
  EXPECT_EQ(status.committed, count("SELECT MAX(row) + 1 FROM sample"));
  EXPECT_EQ(status.committed_tokens, count("SELECT SUM(tokens) FROM sample"));
  EXPECT_EQ(status.freed, count("SELECT COUNT(*) FROM sample WHERE state = 3"));
  EXPECT_EQ(static_cast<std::int64_t>(status.resident_bytes),
            count("SELECT SUM(bytes) FROM sample WHERE state < 3 AND in_place = 0"));

  std::int64_t groups = 0;
  for (const GroupStatus& group : status.groups) {
    const std::int64_t id = ++groups;  // in the order of their ids
    const auto of = [&](const char* sql) { return db.find(sql, id).value_or(0); };
    constexpr const char* kRefs =
        " FROM window_ref w JOIN training_window t ON t.consumer = w.consumer AND t.number = w.number JOIN consumer c ON c.id ="
        " w.consumer JOIN sample s ON s.row = w.row WHERE w.consumer = ?1";
    const auto refs = [&](const std::string& where) { return db.find("SELECT COUNT(*)" + (kRefs + where), id).value_or(0); };
    SCOPED_TRACE(group.group);
    if (group.kind == GroupKind::kQueue) {
      expect_queue_balances(db, id, group);
      continue;
    }
    EXPECT_EQ(0, of("SELECT COUNT(*) FROM queue_ref WHERE consumer = ?1"));
    EXPECT_EQ(group.windowed, refs(" AND t.step IS NULL"));
    EXPECT_EQ(group.trained, refs(" AND t.step > c.durable_step AND reason IS NULL"));
    EXPECT_EQ(group.durable, refs(" AND t.step <= c.durable_step AND reason IS NULL"));
    EXPECT_EQ(group.failed, refs(" AND t.step IS NOT NULL AND reason IS NOT NULL"));
    EXPECT_EQ(group.dropped, of("SELECT COUNT(*) FROM dropped WHERE consumer = ?1"));
    EXPECT_EQ(group.available,
              !group.open
                  ? 0
                  : of("SELECT COUNT(*) FROM sample s JOIN consumer c ON c.id = ?1 WHERE s.row >= c.next_row AND s.state = 0"
                       " AND s.row NOT IN (SELECT row FROM dropped WHERE consumer = ?1)"));
    // No sample that training still needs may go, and no row belongs to two windows.
    EXPECT_EQ(0, group.open ? refs(" AND s.state > 0 AND (t.step IS NULL OR t.step > c.durable_step)") : 0);
    EXPECT_EQ(0, of("SELECT COUNT(*) FROM (SELECT row FROM window_ref WHERE consumer = ?1 GROUP BY row HAVING COUNT(*) > "
                    "(SELECT passes FROM consumer WHERE id = ?1)) AS x"));
    EXPECT_EQ(
        0, of("SELECT COUNT(*) FROM window_ref w JOIN consumer c ON c.id = w.consumer JOIN sample s ON s.row = w.row"
              " WHERE w.consumer = ?1 AND c.open = 1 AND s.state > 0 AND c.passes > 1"
              " AND (c.pass_windows = 0 OR c.durable_windows <= (c.passes - 1) * c.pass_windows + w.number % c.pass_windows)"))
        << "bytes went that another pass needs";
    EXPECT_EQ(of("SELECT SUM(going) FROM training_window WHERE consumer = ?1"), refs(" AND s.state >= 2"));
    EXPECT_EQ(of("SELECT trained_windows FROM consumer WHERE id = ?1"),
              of("SELECT COUNT(*) FROM training_window WHERE consumer = ?1 AND step IS NOT NULL"));
    EXPECT_EQ(of("SELECT CASE WHEN trained_windows > 1 THEN trained_windows - 1 ELSE 0 END FROM consumer WHERE id = ?1"),
              of("SELECT MAX(number) FROM training_window WHERE consumer = ?1 AND step IS NOT NULL"));
  }
  // A sample is claimed by each open group that has it in a window not released, or may still deal it, and by each queue in
  // which it is available or leased.
  EXPECT_EQ(0,
            count("SELECT COUNT(*) FROM sample s WHERE s.state = 0 AND s.claims <>"
                  " (SELECT COUNT(*) FROM queue_ref q JOIN consumer c ON c.id = q.consumer WHERE q.row = s.row AND c.open = 1"
                  "  AND q.state < 2) + (SELECT COUNT(*) FROM consumer c WHERE c.open = 1 AND c.kind = 0 AND"
                  "  (EXISTS (SELECT 1 FROM window_ref w WHERE w.row = s.row AND w.consumer = c.id AND"
                  "           w.number >= c.released_windows AND (c.pass_windows = 0 OR w.number < c.pass_windows))"
                  "   OR (s.row >= c.next_row AND NOT EXISTS (SELECT 1 FROM dropped d WHERE d.row = s.row AND"
                  "                                           d.consumer = c.id))))"));
  EXPECT_EQ(0, count("SELECT COUNT(*) FROM sample WHERE state > 0 AND claims <> 0"));
}

// For runs whose samples all come from prompts.
inline void expect_prompts_match_samples(SqlLedger& ledger) {
  sql::Database& db = ledger.database();
  EXPECT_EQ(
      0, db.find("SELECT COUNT(*) FROM sample LEFT JOIN prompt ON task_id = sample_id WHERE COALESCE(prompt.state, -1) <> 2"));
  EXPECT_EQ(0, db.find("SELECT COUNT(*) FROM prompt LEFT JOIN sample ON task_id = sample_id"
                       " WHERE prompt.state = 2 AND sample.row IS NULL"));
}

}  // namespace draftflow::testing_support
