// SPDX-License-Identifier: Apache-2.0
#include "chaos/tables.h"

#include <algorithm>

#include "draftflow/base/error.h"
#include "ledger/clock.h"
#include "ledger/sql/recount.h"

namespace draftflow::chaos {

Tables::Tables(const std::string& ledger)
    : ledger_(testing_support::as_sql(is_ledger_url(ledger) ? open_postgres_ledger(ledger, std::nullopt)
                                                            : open_sqlite_ledger_read_only(ledger))) {}

std::int64_t Tables::id_of(const std::string& group) {
  const auto id = ledger_->database().find("SELECT id FROM consumer WHERE name = ?1", group);
  if (!id) throw NotFound("group " + group + " is not declared");
  return *id;
}

bool Tables::has_group(const std::string& group) {
  return ledger_->database().find("SELECT id FROM consumer WHERE name = ?1", group).has_value();
}

std::int64_t Tables::trained_step(const std::string& group) {
  return ledger_->database().find("SELECT MAX(step) FROM training_window WHERE consumer = ?1", id_of(group)).value_or(0);
}

std::vector<TimelineRow> Tables::timelines(const std::string& group) {
  sql::Query query = ledger_->database().query(
      "SELECT number, parent, first_step FROM timeline WHERE consumer = ?1 ORDER BY number DESC", id_of(group));
  std::vector<TimelineRow> rows;
  while (query.step()) rows.push_back({query.integer(0), query.integer(1), query.integer(2)});
  return rows;
}

std::vector<std::int64_t> Tables::checkpoint_steps(const std::string& group) {
  sql::Query query = ledger_->database().query(
      "SELECT DISTINCT step FROM checkpoint WHERE consumer = ?1 AND abandoned = 0 ORDER BY step DESC", id_of(group));
  std::vector<std::int64_t> steps;
  while (query.step()) steps.push_back(query.integer(0));
  return steps;
}

std::vector<WindowRow> Tables::windows(const std::string& group) {
  sql::Query query = ledger_->database().query(
      "SELECT w.number, t.step, s.sample_id, w.reason FROM window_ref w JOIN training_window t ON t.consumer = w.consumer AND"
      " t.number = w.number JOIN sample s ON s.row = w.row WHERE w.consumer = ?1 ORDER BY w.number, w.position",
      id_of(group));
  std::vector<WindowRow> rows;
  while (query.step()) {
    if (rows.empty() || rows.back().number != query.integer(0)) rows.push_back({.number = query.integer(0)});
    WindowRow& row = rows.back();
    if (!query.is_null(1)) row.step = query.integer(1);
    row.ids.push_back(query.text(2));
    if (!query.is_null(3)) row.reasons[row.ids.back()] = query.text(3);
  }
  return rows;
}

std::map<std::string, std::string> Tables::dropped(const std::string& group) {
  sql::Query query = ledger_->database().query(
      "SELECT s.sample_id, d.reason FROM dropped d JOIN sample s ON s.row = d.row WHERE d.consumer = ?1", id_of(group));
  std::map<std::string, std::string> rows;
  while (query.step()) rows[query.text(0)] = query.text(1);
  return rows;
}

std::vector<QueueRow> Tables::queue(const std::string& group) {
  sql::Query query = ledger_->database().query(
      "SELECT s.sample_id, q.ended_token, q.reason, q.state, q.attempts FROM queue_ref q JOIN sample s ON s.row = q.row"
      " WHERE q.consumer = ?1 ORDER BY q.row",
      id_of(group));
  std::vector<QueueRow> rows;
  while (query.step()) rows.push_back({query.text(0), query.text(1), query.text(2), query.integer(3), query.integer(4)});
  return rows;
}

bool Tables::is_claimed(const std::string& queue, const std::string& id) {
  return ledger_->database()
      .find(
          "SELECT 1 FROM queue_ref q JOIN sample s ON s.row = q.row WHERE q.consumer = ?1 AND s.sample_id = ?2 AND q.state < 2",
          id_of(queue), id)
      .has_value();
}

std::vector<SampleRow> Tables::samples() {
  sql::Query query = ledger_->database().query("SELECT sample_id, generation, state FROM sample ORDER BY row");
  std::vector<SampleRow> rows;
  while (query.step()) {
    const std::int64_t state = query.integer(2);
    rows.push_back({query.text(0), static_cast<std::uint64_t>(query.integer(1)), state == 0, state >= 2});
  }
  return rows;
}

std::vector<PromptRow> Tables::prompts() {
  sql::Query query = ledger_->database().query("SELECT task_id, reason, state FROM prompt ORDER BY row");
  std::vector<PromptRow> rows;
  while (query.step()) rows.push_back({query.text(0), query.text(1), query.integer(2)});
  return rows;
}

bool Tables::is_on_line(const std::string& group, std::int64_t timeline, std::int64_t step) {
  std::int64_t limit = trained_step(group), at = 0;
  for (const TimelineRow& row : timelines(group)) {
    if (at != 0 && row.number != at) continue;  // not an ancestor
    if (row.number == timeline) return step >= row.first_step && step <= limit;
    limit = std::min(limit, row.first_step);
    at = row.parent;
    if (at == 0) return false;  // that one began from nothing
  }
  return false;
}

std::int64_t Tables::lost_after(const std::string& group, std::int64_t step) {
  return ledger_->database()
      .find(
          "SELECT COUNT(*) FROM window_ref w JOIN training_window t ON t.consumer = w.consumer AND t.number = w.number"
          " JOIN sample s ON s.row = w.row WHERE w.consumer = ?1 AND (t.step IS NULL OR t.step > ?2) AND s.state >= 2",
          id_of(group), step)
      .value_or(0);
}

}  // namespace draftflow::chaos
