// SPDX-License-Identifier: Apache-2.0
//
// For tests only: counts a ledger's rows one by one and compares them with the counters it keeps, and checks the rules that
// tie the tables together.
#pragma once

#include <gtest/gtest.h>

#include "ledger/sqlite/sqlite_ledger.h"

namespace draftflow::testing_support {

inline void expect_books_balance(SqliteLedger& ledger) {
  sqlite::Database& db = ledger.database();
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

  EXPECT_EQ(status.available, count("SELECT COUNT(*) FROM sample WHERE row NOT IN (SELECT row FROM window_ref) AND row NOT IN "
                                    "(SELECT row FROM dropped)"));
  EXPECT_EQ(status.windowed, count("SELECT COUNT(*) FROM window_ref JOIN window ON window.number = window_ref.window"
                                   " WHERE window.step IS NULL"));
  EXPECT_EQ(status.trained,
            count("SELECT COUNT(*) FROM window_ref JOIN window ON window.number = window_ref.window JOIN consumer"
                  " WHERE window.step > durable_step AND reason IS NULL"));
  EXPECT_EQ(status.durable,
            count("SELECT COUNT(*) FROM window_ref JOIN window ON window.number = window_ref.window JOIN consumer"
                  " WHERE window.step <= durable_step AND reason IS NULL"));
  EXPECT_EQ(status.failed, count("SELECT COUNT(*) FROM window_ref WHERE reason IS NOT NULL"));
  EXPECT_EQ(status.dropped, count("SELECT COUNT(*) FROM dropped"));
  EXPECT_EQ(status.committed,
            status.available + status.windowed + status.trained + status.durable + status.failed + status.dropped);

  // No sample that training still needs may go, and no row belongs to two windows.
  EXPECT_EQ(
      0, count("SELECT COUNT(*) FROM window_ref JOIN window ON window.number = window_ref.window JOIN consumer"
               " JOIN sample ON sample.row = window_ref.row WHERE sample.state > 0 AND (step IS NULL OR step > durable_step)"));
  EXPECT_EQ(0, count("SELECT COUNT(*) FROM (SELECT row FROM window_ref GROUP BY row HAVING COUNT(*) > 1)"));
  EXPECT_EQ(count("SELECT SUM(going) FROM window"),
            count("SELECT COUNT(*) FROM window_ref JOIN sample ON sample.row = window_ref.row WHERE sample.state >= 2"));
  EXPECT_EQ(count("SELECT trained_windows FROM consumer"), count("SELECT COUNT(*) FROM window WHERE step IS NOT NULL"));
  EXPECT_EQ(count("SELECT MAX(trained_windows - 1, 0) FROM consumer"),
            count("SELECT MAX(number) FROM window WHERE step IS NOT NULL"));
}

// For runs whose samples all come from prompts.
inline void expect_prompts_match_samples(SqliteLedger& ledger) {
  sqlite::Database& db = ledger.database();
  EXPECT_EQ(0, db.find("SELECT COUNT(*) FROM sample LEFT JOIN prompt ON task_id = sample_id WHERE prompt.state IS NOT 2"));
  EXPECT_EQ(0, db.find("SELECT COUNT(*) FROM prompt LEFT JOIN sample ON task_id = sample_id"
                       " WHERE prompt.state = 2 AND sample.row IS NULL"));
}

}  // namespace draftflow::testing_support
