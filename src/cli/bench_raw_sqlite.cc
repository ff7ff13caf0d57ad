// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_raw_sqlite.h"

#include <fmt/format.h>

#include <stdexcept>

#include "draftflow/base/error.h"

namespace draftflow::cli {
namespace {

// The queue's indexes are those that the ledger's queue has.
constexpr const char* kTables =
    "CREATE TABLE IF NOT EXISTS raw(row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);"
    "CREATE TABLE IF NOT EXISTS raw_ref(row INTEGER PRIMARY KEY, packed TEXT NOT NULL);"
    "CREATE TABLE IF NOT EXISTS raw_queue(row INTEGER PRIMARY KEY, state INTEGER NOT NULL, holder TEXT, token TEXT,"
    " expires_ms INTEGER, ended_token TEXT);"
    "CREATE INDEX IF NOT EXISTS raw_available ON raw_queue(row) WHERE state = 0;"
    "CREATE INDEX IF NOT EXISTS raw_expiry ON raw_queue(expires_ms) WHERE state = 1;"
    "CREATE INDEX IF NOT EXISTS raw_holder ON raw_queue(holder) WHERE state = 1;"
    "CREATE TABLE IF NOT EXISTS raw_claim(row INTEGER PRIMARY KEY, state INTEGER NOT NULL, claims INTEGER NOT NULL);"
    "CREATE INDEX IF NOT EXISTS raw_may_go ON raw_claim(row) WHERE state = 1";

}  // namespace

RawSqlite::RawSqlite(const std::filesystem::path& file) {
  sqlite3* handle = nullptr;
  sqlite3_open_v2(file.c_str(), &handle, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
  handle_.reset(handle);
  run("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY");
  run(kTables);
  insert_ = prepare("INSERT INTO raw(id) VALUES (?1)");
  insert_ref_ = prepare("INSERT INTO raw_ref(packed) VALUES (?1)");
  select_ = prepare("SELECT id || packed FROM raw JOIN raw_ref USING (row) WHERE row >= ?1 AND row < ?2 AND row % ?3 = ?4");
  enqueue_ = prepare("INSERT INTO raw_queue(state, ended_token) VALUES (?1, CASE WHEN ?1 = 2 THEN HEX(RANDOMBLOB(16)) END)");
  claim_ = prepare("INSERT INTO raw_claim(state, claims) VALUES (?1, 1 - ?1 / 3)");
  pick_ = prepare("SELECT MIN(row), MAX(row) FROM (SELECT row FROM raw_queue WHERE state = 0 ORDER BY row LIMIT ?1)");
  lease_ = prepare(
      "UPDATE raw_queue SET state = 1, holder = 'bench', token = HEX(RANDOMBLOB(16)), expires_ms = 60000"
      " WHERE row >= ?1 AND row <= ?2");
  read_ = prepare("SELECT id || packed FROM raw JOIN raw_ref USING (row) WHERE row >= ?1 AND row <= ?2");
  ack_ = prepare(
      "UPDATE raw_queue SET state = 2, ended_token = token, token = NULL, holder = NULL, expires_ms = NULL"
      " WHERE row >= ?1 AND row <= ?2");
  end_claims_ = prepare("UPDATE raw_claim SET state = 1, claims = claims - 1 WHERE row >= ?1 AND row <= ?2");
}

RawSqlite::Rows RawSqlite::rows_of(const std::vector<SampleRef>& refs) {
  Rows rows;
  for (const SampleRef& ref : refs) rows.emplace_back(ref.sample_id.str(), "100=" + *ref.find_metadata("source"));
  return rows;
}

void RawSqlite::commit(const Rows& rows) {
  run("BEGIN IMMEDIATE");
  for (const auto& [id, json] : rows) {
    sqlite3_bind_text(insert_.get(), 1, id.data(), static_cast<int>(id.size()), SQLITE_STATIC);
    step(insert_);
    sqlite3_bind_text(insert_ref_.get(), 1, json.data(), static_cast<int>(json.size()), SQLITE_STATIC);
    step(insert_ref_);
  }
  run("COMMIT");
}

std::size_t RawSqlite::read_share(std::int64_t first, std::int64_t end, int width, int rank) {
  std::size_t bytes = 0;
  bind(select_, {first, end, width, rank});
  while (sqlite3_step(select_.get()) == SQLITE_ROW) bytes += static_cast<std::size_t>(sqlite3_column_bytes(select_.get(), 0));
  sqlite3_reset(select_.get());
  return bytes;
}

void RawSqlite::scan() {
  run("SELECT SUM(LENGTH(id)) FROM raw");
}

void RawSqlite::enqueue(std::int64_t count, bool finished) {
  run("BEGIN IMMEDIATE");
  for (std::int64_t i = 0; i < count; ++i) {
    bind(enqueue_, {finished ? 2 : 0});
    step(enqueue_);
    bind(claim_, {finished ? 3 : 0});
    step(claim_);
  }
  run("COMMIT");
}

RawSqlite::Span RawSqlite::lease(std::int64_t count) {
  run("BEGIN IMMEDIATE");
  bind(pick_, {count});
  check(sqlite3_step(pick_.get()));
  const Span rows{sqlite3_column_int64(pick_.get(), 0), sqlite3_column_int64(pick_.get(), 1)};
  sqlite3_reset(pick_.get());
  bind(lease_, {rows.first, rows.last});
  step(lease_);
  run("COMMIT");
  std::size_t bytes = 0;
  bind(read_, {rows.first, rows.last});
  while (sqlite3_step(read_.get()) == SQLITE_ROW) bytes += static_cast<std::size_t>(sqlite3_column_bytes(read_.get(), 0));
  sqlite3_reset(read_.get());
  if (bytes == 0) throw std::logic_error("bench: the raw queue is empty");
  return rows;
}

void RawSqlite::ack(const Span& rows) {
  run("BEGIN IMMEDIATE");
  for (const Prepared* statement : {&ack_, &end_claims_}) {
    bind(*statement, {rows.first, rows.last});
    step(*statement);
  }
  run("COMMIT");
}

void RawSqlite::check(int code) {
  if (code != SQLITE_OK && code != SQLITE_DONE && code != SQLITE_ROW) {
    throw Unavailable(fmt::format("bench: SQLite alone: {}", sqlite3_errmsg(handle_.get())));
  }
}

void RawSqlite::run(const char* sql) {
  check(sqlite3_exec(handle_.get(), sql, nullptr, nullptr, nullptr));
}

RawSqlite::Prepared RawSqlite::prepare(const char* sql) {
  sqlite3_stmt* made = nullptr;
  check(sqlite3_prepare_v2(handle_.get(), sql, -1, &made, nullptr));
  return Prepared(made);
}

void RawSqlite::bind(const Prepared& statement, std::initializer_list<std::int64_t> values) {
  int at = 0;
  for (const std::int64_t value : values) check(sqlite3_bind_int64(statement.get(), ++at, value));
}

void RawSqlite::step(const Prepared& statement) {
  check(sqlite3_step(statement.get()));
  sqlite3_reset(statement.get());
}

}  // namespace draftflow::cli
