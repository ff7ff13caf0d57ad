// SPDX-License-Identifier: Apache-2.0
//
// What the ledger's SQL needs of an engine: kept statements, typed columns, write transactions that take turns, consistent
// views, and errors of our family that name the ledger. SQL is written once, with ?1, ?2 ... as placeholders and nothing that
// only one engine knows. Knows nothing of the ledger's tables. Private to this room; one object is used by one thread at a
// time.
//
//   Transaction transaction(db);
//   db.run("UPDATE prompt SET state = ?1 WHERE row = ?2", 2, row);
//   transaction.commit();                                            // else rolled back
//   Query query = db.query("SELECT row FROM prompt WHERE task_id = ?1", id);
//   while (query.step()) rows.push_back(query.integer(0));           // the statement is reset when the query goes
//   db.run("DELETE FROM fact WHERE key IN (?1, ?2)", std::vector<sql::Value>{"a", "b"});   // a list: lists.h makes such texts
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace draftflow::sql {

// Of a write transaction: alone among all writers, or beside others that share their turn too. Who shares one must lock the
// rows that it decides by (SELECT ... FOR UPDATE), take locks in the order queue_ref, sample, consumer and in each by ascending
// row, and add to counters instead of setting them.
enum class Turn { kAlone, kShared };

// Whom a commit concerns: whoever waits for something to do (Database::wait), or nobody else, as when a lease is taken.
enum class Wakes { kWaiters, kNobody };

// Of a list, which takes as many placeholders as it has values. Text must outlive its use.
using Value = std::variant<std::int64_t, std::string_view, std::nullptr_t>;

// One kept statement. What is bound must outlive its use.
class Statement {
 public:
  virtual ~Statement() = default;
  virtual void bind_text(int at, std::string_view text) = 0;  // from 1
  virtual void bind_integer(int at, std::int64_t value) = 0;
  virtual void bind_null(int at) = 0;
  virtual bool step() = 0;                             // true: there is a row
  virtual std::int64_t changes() const = 0;            // rows that the statement has changed, when it is done
  virtual std::int64_t integer(int column) const = 0;  // 0 for NULL
  virtual std::string text(int column) const = 0;      // empty for NULL
  virtual bool is_null(int column) const = 0;
  virtual void reset() noexcept = 0;
};

class Query {
 public:
  explicit Query(Statement& statement) : statement_(&statement) {}
  Query(Query&& other) noexcept : statement_(std::exchange(other.statement_, nullptr)) {}
  Query(const Query&) = delete;
  Query& operator=(const Query&) = delete;
  ~Query() {
    if (statement_ != nullptr) statement_->reset();
  }

  bool step() { return statement_->step(); }
  std::int64_t integer(int column) const { return statement_->integer(column); }
  std::string text(int column) const { return statement_->text(column); }
  bool is_null(int column) const { return statement_->is_null(column); }

 private:
  Statement* statement_;
};

class Database {
 public:
  Database() = default;
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;
  virtual ~Database() = default;

  // The statement is prepared once and kept by its text.
  template <class... Args>
  Query query(std::string_view sql, const Args&... args) {
    return Query(bound(sql, args...));
  }

  // For statements without rows. Returns how many rows changed.
  template <class... Args>
  std::int64_t run(std::string_view sql, const Args&... args) {
    Statement& statement = bound(sql, args...);
    const Query resets(statement);
    statement.step();
    return statement.changes();
  }

  // The first column of the first row, or nothing if there is no row or it is NULL.
  template <class... Args>
  std::optional<std::int64_t> find(std::string_view sql, const Args&... args) {
    Query found = query(sql, args...);
    if (!found.step() || found.is_null(0)) return std::nullopt;
    return found.integer(0);
  }

  virtual void script(const std::string& sql) = 0;          // several statements, uncached, without placeholders
  virtual const std::string& name() const = 0;              // for messages: the file, or the server and its database
  virtual std::vector<std::string> cached_sql() const = 0;  // as it was given
  // The time of the ledger in milliseconds: leases of all its processes are measured by it.
  virtual std::int64_t now_ms() = 0;
  // Names the life of the clock: a lease that was written in another one has ended.
  virtual std::string clock_id() const = 0;
  // What the engine finds wrong with its own bytes, within a view of the caller's; a few texts at most.
  virtual std::vector<std::string> damage() { return {}; }
  // As Ledger::wait. Not within a transaction. An engine may wake for commits that concern nobody, too.
  virtual bool wait(std::int64_t timeout_ms) = 0;
  // Whether turns are really shared: then the engine knows FOR UPDATE OF ... SKIP LOCKED. Without, each is alone.
  virtual bool shares_turns() const { return false; }

 protected:
  virtual Statement& prepare(std::string_view sql) = 0;  // std::logic_error if it is in use
  friend class Transaction;
  friend class Snapshot;
  // All writers of a ledger take turns, fairly, from here to the end of the transaction; who waits to be alone is not
  // overtaken. PermissionDenied on a ledger that was opened to be read.
  virtual void begin_write(Turn turn) = 0;
  // InDoubt if whether it holds is unknown; after any other error nothing was changed.
  virtual void commit(Wakes wakes) = 0;
  virtual void begin_read() = 0;  // one consistent view over several reads
  virtual void roll_back() noexcept = 0;

 private:
  template <class... Args>
  Statement& bound(std::string_view sql, const Args&... args) {
    Statement& statement = prepare(sql);
    try {
      [[maybe_unused]] int at = 0;  // the last placeholder that has its value
      (bind(statement, at, args), ...);
    } catch (...) {
      statement.reset();
      throw;
    }
    return statement;
  }
  template <std::integral T>
  static void bind(Statement& statement, int& at, T value) {
    statement.bind_integer(++at, static_cast<std::int64_t>(value));
  }
  static void bind(Statement& statement, int& at, std::string_view text) { statement.bind_text(++at, text); }
  static void bind(Statement& statement, int& at, std::nullptr_t) { statement.bind_null(++at); }
  static void bind(Statement& statement, int& at, const std::vector<Value>& values) {
    for (const Value& value : values) std::visit([&](auto one) { bind(statement, at, one); }, value);
  }
};

class Transaction {
 public:
  explicit Transaction(Database& database, Turn turn = Turn::kAlone) : database_(database) { database_.begin_write(turn); }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  ~Transaction() { database_.roll_back(); }  // does nothing after a commit
  void commit(Wakes wakes = Wakes::kWaiters) { database_.commit(wakes); }

 private:
  Database& database_;
};

class Snapshot {
 public:
  explicit Snapshot(Database& database) : database_(database) { database_.begin_read(); }
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;
  ~Snapshot() { database_.roll_back(); }

 private:
  Database& database_;
};

}  // namespace draftflow::sql
