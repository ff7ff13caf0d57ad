// SPDX-License-Identifier: Apache-2.0
//
// What a person does by hand while a run goes on: who holds what, prompts tried again or given up, samples dropped.
#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "ledger/sql/lists.h"
#include "ledger/sql/rows.h"

namespace draftflow {
namespace {

// Ids as people repeat them: each once, in their order.
template <class Id>
std::vector<std::string_view> each_once(const std::vector<Id>& ids) {
  std::vector<std::string_view> once;
  std::unordered_set<std::string_view> seen;
  for (const Id& id : ids) {
    if (seen.insert(id.str()).second) once.push_back(id.str());
  }
  return once;
}

}  // namespace

std::vector<HolderLeases> SqlLedger::leases() {
  const sql::Snapshot snapshot(*db_);
  // Leases of an earlier boot have ended, though no writer has come yet to say so, and their times mean nothing.
  bool same_clock = false;
  {
    sql::Query run = db_->query("SELECT boot_id FROM run WHERE id = 1");
    same_clock = run.step() && run.text(0) == db_->clock_id();
  }
  const std::int64_t now = db_->now_ms();
  std::vector<HolderLeases> all;
  const auto take = [&](sql::Query found, const std::string& group) {
    while (found.step()) {
      HolderLeases one{.holder = found.text(0), .group = group, .count = found.integer(1), .expired = found.integer(3)};
      one.expires_in_ms = same_clock ? found.integer(2) - now : 0;
      if (!same_clock) one.expired = one.count;
      all.push_back(std::move(one));
    }
  };
  take(db_->query("SELECT holder, COUNT(*), MAX(expires_ms), SUM(CASE WHEN expires_ms <= ?1 OR expires_ms > ?1 + (SELECT"
                  " longest_lease_ms FROM run WHERE id = 1) THEN 1 ELSE 0 END) FROM prompt"
                  " WHERE state = 1 GROUP BY holder ORDER BY holder",
                  now),
       "");
  std::vector<std::pair<std::int64_t, std::string>> queues;
  {
    sql::Query found = db_->query("SELECT id, name FROM consumer WHERE leased > 0 ORDER BY id");
    while (found.step()) queues.emplace_back(found.integer(0), found.text(1));
  }
  for (const auto& [id, name] : queues) {
    take(db_->query("SELECT holder, COUNT(*), MAX(expires_ms), SUM(CASE WHEN expires_ms <= ?2 OR expires_ms > ?2 + (SELECT"
                    " longest_lease_ms FROM run WHERE id = 1) THEN 1 ELSE 0 END) FROM queue_ref"
                    " WHERE consumer = ?1 AND state = 1 GROUP BY holder ORDER BY holder",
                    id, now),
         name);
  }
  return all;
}

std::int64_t SqlLedger::retry_prompts(const std::vector<TaskId>& ids) {
  // An expiry is not forgotten: who held the prompt then may still be writing (PromptLease::taken_over).
  static const sql::InList kRetry(
      "UPDATE prompt SET state = 0, attempts = 0, expiries = CASE WHEN expiries > 0 THEN 1 ELSE 0 END, reason = NULL"
      " WHERE state = 3 AND task_id IN ",
      1);
  sql::Transaction transaction(*db_);
  std::int64_t again = 0;
  kRetry.for_parts(each_once(ids),
                   [&](const std::string& sql, const std::vector<sql::Value>& part) { again += db_->run(sql, part); });
  if (again == 0) return 0;
  db_->run("UPDATE run SET prompts_failed = prompts_failed - ?1, prompts_pending = prompts_pending + ?1 WHERE id = 1", again);
  transaction.commit();
  return again;
}

std::int64_t SqlLedger::drop_prompts(const std::vector<TaskId>& ids, const std::string& reason, bool dry_run) {
  sql::Transaction transaction(*db_);
  take_back_expired(db_->now_ms());
  std::int64_t dropped = 0;
  for (const std::string_view id : each_once(ids)) {
    std::int64_t row = 0;
    {
      sql::Query found = db_->query("SELECT row, state, holder FROM prompt WHERE task_id = ?1", id);
      if (!found.step()) throw refusals::no_prompt_to_drop(id, db_->name());
      row = found.integer(0);
      if (found.integer(1) == kPromptFailed) continue;
      if (found.integer(1) != kPending) throw refusals::undroppable_prompt(id, found.integer(1), found.text(2));
    }
    db_->run("UPDATE prompt SET state = 3, token = NULL, holder = NULL, expires_ms = NULL, reason = ?2 WHERE row = ?1", row,
             printable(reason, kMaxReasonBytes));
    ++dropped;
  }
  db_->run("UPDATE run SET prompts_pending = prompts_pending - ?1, prompts_failed = prompts_failed + ?1 WHERE id = 1", dropped);
  if (!dry_run) transaction.commit();
  return dropped;
}

// The sample's row, or -1 if the group has dropped it before.
std::int64_t SqlLedger::droppable_row(const Group& group, const SampleId& id) {
  std::int64_t row = 0, state = 0;
  {
    sql::Query found = db_->query("SELECT row, state FROM sample WHERE sample_id = ?1", id.str());
    if (!found.step()) throw refusals::no_sample_to_drop(id, db_->name());
    row = found.integer(0);
    state = found.integer(1);
  }
  if (db_->find("SELECT 1 FROM dropped WHERE consumer = ?1 AND row = ?2", group.id, row)) return -1;
  if (group.kind == kQueueGroup) {
    sql::Query found = db_->query("SELECT state, holder FROM queue_ref WHERE row = ?2 AND consumer = ?1", group.id, row);
    if (!found.step()) throw refusals::undroppable_ref(id, group.name, -1, "");
    if (found.integer(0) != kAvailable) throw refusals::undroppable_ref(id, group.name, found.integer(0), found.text(1));
    return row;
  }
  // Of several passes, the first one's.
  if (const auto window = db_->find("SELECT MIN(number) FROM window_ref WHERE row = ?2 AND consumer = ?1", group.id, row)) {
    throw refusals::in_window(id, group.name, *window, *window < group.trained_windows);
  }
  if (row < group.next_row || state != kNeeded) throw refusals::never_the_groups(id, group.name);
  return row;
}

std::int64_t SqlLedger::drop_refs(const GroupId& group_id, const std::vector<SampleId>& ids, const std::string& reason,
                                  bool dry_run) {
  static const sql::RowList kDrop("INSERT INTO dropped(consumer, row, reason) VALUES ", 3);
  static const sql::InList kForget("DELETE FROM queue_ref WHERE consumer = ?1 AND row IN ", 2);
  sql::Transaction transaction(*db_);
  Group group = find_group(group_id);
  if (group.open == 0) throw refusals::group_closed("drop_refs", group.name);
  if (group.kind == kQueueGroup) {
    const std::int64_t back = take_back_expired(group, db_->now_ms());
    group.available += back;
    group.leased -= back;
  }
  std::vector<std::int64_t> rows;
  for (const SampleId& id : ids) {
    if (const std::int64_t row = droppable_row(group, id); row >= 0) rows.push_back(row);
  }
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  const std::string why = printable(reason, kMaxReasonBytes);
  end_claims(rows);
  kDrop.for_parts(rows.size(), [&](const std::string& sql, std::size_t from, std::size_t to) {
    std::vector<sql::Value> values;
    for (std::size_t i = from; i < to; ++i) values.insert(values.end(), {group.id, rows[i], why});
    db_->run(sql, values);
  });
  if (group.kind == kQueueGroup) {
    kForget.for_parts(rows,
                      [&](const std::string& sql, const std::vector<sql::Value>& part) { db_->run(sql, group.id, part); });
  }
  const auto count = static_cast<std::int64_t>(rows.size());
  group.available -= count;
  group.dropped += count;
  save(group);
  if (!dry_run) transaction.commit();
  return count;
}

}  // namespace draftflow
