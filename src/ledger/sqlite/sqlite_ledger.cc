// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/sqlite_ledger.h"

#include <fmt/format.h>

#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"
#include "ledger/sqlite/rows.h"
#include "ledger/sqlite/schema.h"

namespace draftflow {

SqliteLedger::SqliteLedger(const std::filesystem::path& path, LedgerClock clock, sqlite::Database::Mode mode)
    : clock_(std::move(clock)), db_(path, mode) {
  if (mode == sqlite::Database::Mode::kReadWrite) {
    sqlite::prepare_schema(db_, clock_.boot_id);
  } else {
    sqlite::check_schema(db_);
  }
}

std::string SqliteLedger::id() {
  sqlite::Query query = db_.query("SELECT ledger_id FROM run WHERE id = 1");
  if (!query.step()) throw Corrupt(fmt::format("ledger {} has lost its row of the run", db_.path().string()));
  return query.text(0);
}

void SqliteLedger::declare(const std::string& key, const std::string& value) {
  for (const std::string* text : {&key, &value}) {
    if (find_invalid_utf8(*text) != std::string::npos || text->find('\0') != std::string::npos) {
      throw InvalidArgument(fmt::format("fact '{}' of the ledger is not UTF-8 text without U+0000", printable(key)));
    }
  }
  std::optional<std::string> found = declared(key);
  if (!found) {
    sqlite::Transaction transaction(db_);
    db_.run("INSERT OR IGNORE INTO fact(key, value) VALUES (?1, ?2)", key, value);
    transaction.commit();
    found = declared(key);
  }
  if (found != value) {
    throw Conflict(fmt::format("ledger {} says {} = '{}', not '{}': use the same settings as before, or another ledger",
                               db_.path().string(), printable(key), printable(found.value_or("")), printable(value)));
  }
}

std::optional<std::string> SqliteLedger::declared(const std::string& key) {
  sqlite::Query query = db_.query("SELECT value FROM fact WHERE key = ?1", key);
  if (!query.step()) return std::nullopt;
  return query.text(0);
}

LedgerStatus SqliteLedger::status() {
  const sqlite::Snapshot snapshot(db_);
  LedgerStatus status;
  {
    sqlite::Query run = db_.query(
        "SELECT ledger_id, prompts, prompts_pending, prompts_leased, prompts_done, prompts_failed, prompts_closed, committed,"
        " committed_tokens, resident_bytes, freed FROM run WHERE id = 1");
    if (!run.step()) throw Corrupt(fmt::format("ledger {} has lost its row of the run", db_.path().string()));
    status.ledger_id = run.text(0);
    status.prompts = run.integer(1);
    status.prompts_pending = run.integer(2);
    status.prompts_leased = run.integer(3);
    status.prompts_done = run.integer(4);
    status.prompts_failed = run.integer(5);
    status.prompts_closed = run.integer(6) != 0;
    status.committed = run.integer(7);
    status.committed_tokens = run.integer(8);
    status.resident_bytes = static_cast<std::uint64_t>(run.integer(9));
    status.freed = run.integer(10);
  }
  status.run_id = declared("run_id").value_or("");
  status.available = status.committed;
  sqlite::Query group = db_.query(
      "SELECT next_row, window_size, windows, trained_windows, durable_windows, failed_trained, failed_durable, dropped, "
      "timeline,"
      " trained_step, durable_step FROM consumer WHERE id = 1");
  if (!group.step()) return status;
  const std::int64_t width = group.integer(1), trained = group.integer(3), durable = group.integer(4);
  status.available = status.committed - group.integer(0);
  status.windowed = (group.integer(2) - trained) * width;
  status.trained = (trained - durable) * width - group.integer(5);
  status.durable = durable * width - group.integer(6);
  status.failed = group.integer(5) + group.integer(6);
  status.dropped = group.integer(7);
  status.timeline = group.integer(8);
  status.trained_step = group.integer(9);
  status.durable_step = group.integer(10);
  return status;
}

std::unique_ptr<Ledger> open_sqlite_ledger(const std::filesystem::path& path, LedgerClock clock) {
  if (path.has_parent_path()) make_folders(path.parent_path());
  return std::make_unique<SqliteLedger>(path, std::move(clock), sqlite::Database::Mode::kReadWrite);
}

std::unique_ptr<Ledger> open_sqlite_ledger(const std::filesystem::path& path) {
  return open_sqlite_ledger(path, boot_clock());
}

std::unique_ptr<Ledger> open_sqlite_ledger_read_only(const std::filesystem::path& path) {
  return std::make_unique<SqliteLedger>(path, boot_clock(), sqlite::Database::Mode::kReadOnly);
}

}  // namespace draftflow
