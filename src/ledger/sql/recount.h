// SPDX-License-Identifier: Apache-2.0
//
// For tests only: the books must balance (Ledger::check), and a look into the tables.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "ledger/sql/rows.h"

namespace draftflow::testing_support {

// The same ledger, for looking into its tables.
inline std::unique_ptr<SqlLedger> as_sql(std::unique_ptr<Ledger> ledger) {
  return std::unique_ptr<SqlLedger>(&dynamic_cast<SqlLedger&>(*ledger.release()));
}

inline void expect_books_balance(SqlLedger& ledger) {
  for (const std::string& finding : ledger.check()) ADD_FAILURE() << finding;
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
