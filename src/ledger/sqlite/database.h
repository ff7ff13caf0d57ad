// SPDX-License-Identifier: Apache-2.0
//
// A thin owner of one SQLite connection: cached statements, typed columns, transactions, and errors of our family that name
// the file. Knows nothing of the ledger's tables. Private to this room; one object is used by one thread at a time.
//
//   Transaction transaction(db);                                     // BEGIN IMMEDIATE, after waiting for the write turn
//   db.run("UPDATE prompt SET state = ?1 WHERE row = ?2", 2, row);
//   transaction.commit();                                            // else rolled back
//   Query query = db.query("SELECT row FROM prompt WHERE task_id = ?1", id);
//   while (query.step()) rows.push_back(query.integer(0));           // the statement is reset when the query goes
#pragma once

#include <sqlite3.h>

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ledger/sqlite/write_turn.h"

namespace draftflow::sqlite {

class Database;

class Query {
 public:
  Query(Database& database, sqlite3_stmt* statement) : database_(&database), statement_(statement) {}
  Query(Query&& other) noexcept : database_(other.database_), statement_(std::exchange(other.statement_, nullptr)) {}
  Query(const Query&) = delete;
  Query& operator=(const Query&) = delete;
  ~Query();

  bool step();  // true: there is a row
  std::int64_t integer(int column) const { return sqlite3_column_int64(statement_, column); }
  std::string text(int column) const;
  bool is_null(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }

 private:
  friend class Database;
  void bind(int at, std::string_view text);
  void bind(int at, std::nullptr_t);
  template <std::integral T>
  void bind(int at, T value) {
    check(sqlite3_bind_int64(statement_, at, static_cast<sqlite3_int64>(value)));
  }
  void check(int code);

  Database* database_;
  sqlite3_stmt* statement_;
};

class Database {
 public:
  enum class Mode { kReadWrite, kReadOnly };

  // kReadWrite makes the file (0660) if it is not there. Nothing of the content is looked at yet.
  Database(std::filesystem::path path, Mode mode);

  // The statement is prepared once and kept. Text arguments must outlive the query.
  template <class... Args>
  Query query(const char* sql, const Args&... args) {
    Query query(*this, prepare(sql));
    int at = 0;
    (query.bind(++at, args), ...);
    return query;
  }

  // For statements without rows. Returns how many rows changed.
  template <class... Args>
  std::int64_t run(const char* sql, const Args&... args) {
    query(sql, args...).step();
    return sqlite3_changes64(handle_.get());
  }

  // The first column of the first row, or nothing if there is no row or it is NULL.
  template <class... Args>
  std::optional<std::int64_t> find(const char* sql, const Args&... args) {
    Query found = query(sql, args...);
    if (!found.step() || found.is_null(0)) return std::nullopt;
    return found.integer(0);
  }

  void script(const std::string& sql);  // several statements, uncached
  void use_wal();                       // write-ahead log, synced at each commit; does nothing to a file that has it
  const std::filesystem::path& path() const { return path_; }
  std::vector<std::string> cached_sql() const;

  [[noreturn]] void fail(int code, const std::string& doing);

 private:
  friend class Transaction;
  friend class Snapshot;
  struct CloseDatabase {
    void operator()(sqlite3* handle) const { sqlite3_close_v2(handle); }
  };
  struct FinalizeStatement {
    void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
  };
  sqlite3_stmt* prepare(const char* sql);
  void roll_back() noexcept;

  std::filesystem::path path_;
  std::optional<WriteTurn> turn_;  // absent when read-only
  std::unique_ptr<sqlite3, CloseDatabase> handle_;
  std::map<std::string, std::unique_ptr<sqlite3_stmt, FinalizeStatement>, std::less<>> statements_;
};

// One write transaction. PermissionDenied on a read-only database.
class Transaction {
 public:
  explicit Transaction(Database& database);
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  ~Transaction();
  // InDoubt if the file system failed while the commit was being written; after any other error nothing was changed.
  void commit();

 private:
  Database& database_;
};

// One consistent view over several reads.
class Snapshot {
 public:
  explicit Snapshot(Database& database);
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;
  ~Snapshot();

 private:
  Database& database_;
};

}  // namespace draftflow::sqlite
