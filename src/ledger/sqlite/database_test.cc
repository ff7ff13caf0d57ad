// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/database.h"

#include <gtest/gtest.h>

#include "ledger/ledger_story.h"

namespace draftflow::sqlite {
namespace {

using testing_support::expect_error;

class DatabaseTest : public ::testing::Test {
 protected:
  DatabaseTest() { db_.script("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)"); }
  std::int64_t rows() { return db_.find("SELECT COUNT(*) FROM t").value_or(-1); }

  const testing_support::TempFolder folder_;
  Database db_{folder_.path() / "d.sqlite3", Database::Mode::kReadWrite};
};

TEST_F(DatabaseTest, ATransactionThatIsNotCommittedChangesNothing) {
  {
    sql::Transaction transaction(db_);
    db_.run("INSERT INTO t(b) VALUES (?1)", std::string("x"));
  }
  EXPECT_EQ(rows(), 0);
  {
    sql::Transaction transaction(db_);
    EXPECT_EQ(db_.run("INSERT INTO t(b) VALUES (?1)", std::string("x")), 1);
    transaction.commit();
  }
  EXPECT_EQ(rows(), 1);
}

TEST_F(DatabaseTest, TextKeepsItsBytesAndNullIsTold) {
  db_.run("INSERT INTO t(a, b) VALUES (1, ?1)", std::string("a\n\"'\xF0\x9F\x98\x80"));
  db_.run("INSERT INTO t(a, b) VALUES (2, ?1)", nullptr);
  db_.run("INSERT INTO t(a, b) VALUES (3, ?1)", std::string());
  sql::Query query = db_.query("SELECT b FROM t ORDER BY a");
  ASSERT_TRUE(query.step());
  EXPECT_EQ(query.text(0), "a\n\"'\xF0\x9F\x98\x80");
  ASSERT_TRUE(query.step());
  EXPECT_TRUE(query.is_null(0));
  ASSERT_TRUE(query.step());
  EXPECT_FALSE(query.is_null(0));
  EXPECT_FALSE(query.step());
}

TEST_F(DatabaseTest, AStatementWithinItselfIsABug) {
  db_.run("INSERT INTO t(b) VALUES (?1)", std::string("x"));
  constexpr const char* kSql = "SELECT b FROM t";
  sql::Query outer = db_.query(kSql);
  ASSERT_TRUE(outer.step());
  expect_error<std::logic_error>([&] { db_.query(kSql); }, "within itself");
}

TEST_F(DatabaseTest, BadSqlIsABugThatNamesIt) {
  expect_error<std::logic_error>([&] { db_.run("SELECT * FROM nowhere"); }, "nowhere");
  EXPECT_EQ(rows(), 0);
}

TEST_F(DatabaseTest, ReadOnlyRefusesTransactions) {
  Database reader(folder_.path() / "d.sqlite3", Database::Mode::kReadOnly);
  expect_error<PermissionDenied>([&] { sql::Transaction transaction(reader); }, "was opened read-only");
  expect_error<PermissionDenied>([&] { reader.script("INSERT INTO t(b) VALUES (1)"); }, "cannot be written");
}

}  // namespace
}  // namespace draftflow::sqlite
