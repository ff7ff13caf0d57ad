// SPDX-License-Identifier: Apache-2.0
#include "ledger/sql/sql_ledger.h"

#include <fmt/format.h>

#include <utility>

#include "draftflow/base/error.h"
#include "ledger/sql/rows.h"

namespace draftflow {

std::string SqlLedger::id() {
  sql::Query query = db_->query("SELECT ledger_id FROM run WHERE id = 1");
  if (!query.step()) throw Corrupt(fmt::format("ledger {} has lost its row of the run", db_->name()));
  return query.text(0);
}

void SqlLedger::declare(const std::string& key, const std::string& value) {
  check_fact(key, value);
  std::optional<std::string> found = declared(key);
  if (!found) {
    sql::Transaction transaction(*db_);
    db_->run("INSERT INTO fact(key, value) VALUES (?1, ?2) ON CONFLICT DO NOTHING", key, value);
    transaction.commit();
    found = declared(key);
  }
  if (found != value) throw refusals::other_fact(db_->name(), key, found.value_or(""), value);
}

std::optional<std::string> SqlLedger::declared(const std::string& key) {
  sql::Query query = db_->query("SELECT value FROM fact WHERE key = ?1", key);
  if (!query.step()) return std::nullopt;
  return query.text(0);
}

LedgerStatus SqlLedger::status() {
  const sql::Snapshot snapshot(*db_);
  return read_status();
}

namespace {

// How many refs a group's first windows have, as many as the column says.
std::string refs_of(const char* windows) {
  return fmt::format(
      "(SELECT COALESCE(MAX(t.refs_through), 0) FROM training_window t WHERE t.consumer = consumer.id AND t.number = {} - 1)",
      windows);
}

}  // namespace

LedgerStatus SqlLedger::read_status() {
  LedgerStatus status;
  {
    sql::Query run = db_->query(
        "SELECT ledger_id, prompts, prompts_pending, prompts_leased, prompts_done, prompts_failed, prompts_closed, committed,"
        " committed_tokens, resident_bytes, freed FROM run WHERE id = 1");
    if (!run.step()) throw Corrupt(fmt::format("ledger {} has lost its row of the run", db_->name()));
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
  static const std::string kGroups = fmt::format(
      "SELECT name, window_size, open, available, {}, {}, {}, {}, failed_trained, failed_durable, dropped, timeline, width,"
      " trained_step, durable_step, kind, leased, acked, failed, passes, {}, max_window_tokens FROM consumer ORDER BY id",
      refs_of("windows"), refs_of("trained_windows"), refs_of("durable_windows"), refs_of("released_windows"),
      refs_of("pass_windows"));
  sql::Query group = db_->query(kGroups);
  while (group.step()) {
    GroupStatus found;
    found.group = group.text(0);
    found.window = static_cast<int>(group.integer(1));
    found.open = group.integer(2) != 0;
    found.available = group.integer(3);
    found.max_window_tokens = group.integer(21);
    const std::int64_t dealt = group.integer(4), trained = group.integer(5), durable = group.integer(6);
    found.windowed = dealt - trained;
    found.trained = trained - durable - group.integer(8);
    found.durable = durable - group.integer(9);
    found.failed = group.integer(8) + group.integer(9);
    found.dropped = group.integer(10);
    found.passes = static_cast<int>(group.integer(19));
    const std::int64_t first_pass = group.integer(20) > 0 ? group.integer(20) : dealt;
    found.pinned = found.open ? found.available + first_pass - group.integer(7) : 0;
    found.timeline = group.integer(11);
    found.width = group.integer(12);
    found.trained_step = group.integer(13);
    found.durable_step = group.integer(14);
    if (group.integer(15) == kQueueGroup) {
      found.kind = GroupKind::kQueue;
      found.leased = group.integer(16);
      found.durable = group.integer(17);
      found.failed = group.integer(18);
      found.pinned = found.open ? found.available + found.leased : 0;
    }
    status.groups.push_back(std::move(found));
  }
  return status;
}

GroupStatus LedgerStatus::of(const GroupId& group) const {
  for (const GroupStatus& known : groups) {
    if (known.group == group.str()) return known;
  }
  GroupStatus none;
  none.group = group.str();
  none.available = committed;
  return none;
}

}  // namespace draftflow
