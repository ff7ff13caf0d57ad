// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "ledger/sql/rows.h"

namespace draftflow {

void SqlLedger::declare_group(const GroupConfig& config) {
  check_config(config);
  const std::int64_t tail = config.tail == TailPolicy::kDrop ? 0 : 1;
  const std::int64_t kind = config.kind == GroupKind::kWindows ? kWindowGroup : kQueueGroup;
  sql::Transaction transaction(*db_);
  if (db_->find("SELECT id FROM consumer WHERE name = ?1", config.group.str())) {
    const Group group = find_group(config.group);
    check_same(group, config);
    db_->run("UPDATE consumer SET resumable_checkpoints = ?2, max_attempts = ?3 WHERE id = ?1", group.id,
             config.resumable_checkpoints, config.max_attempts);
  } else {
    const std::int64_t id = db_->find("SELECT COALESCE(MAX(id), 0) + 1 FROM consumer").value_or(1);
    db_->run(
        "INSERT INTO consumer(id, name, window_size, resumable_checkpoints, tail, next_row, kind, max_attempts,"
        " passes, max_window_tokens) VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, ?8, ?9)",
        id, config.group.str(), config.window, config.resumable_checkpoints, tail, kind, config.max_attempts, config.passes,
        config.max_window_tokens);
    Group group = find_group(config.group);
    if (kind == kQueueGroup) {
      fill_queue(group);
    } else {
      join_oldest(group);
    }
  }
  transaction.commit();
}

void SqlLedger::check_same(const Group& group, const GroupConfig& config) {
  if (group.open == 0) throw refusals::declared_closed(group.name, db_->name());
  const GroupKind kind = group.kind == kQueueGroup ? GroupKind::kQueue : GroupKind::kWindows;
  if (kind != config.kind) throw refusals::other_kind(group.name, kind, config.kind);
  if (kind == GroupKind::kQueue) return;
  if (group.window_size != config.window) throw refusals::other_window(group.name, group.window_size, config.window);
  if (group.max_window_tokens != config.max_window_tokens) {
    throw refusals::other_cap(group.name, group.max_window_tokens, config.max_window_tokens);
  }
  const TailPolicy tail = group.tail == 0 ? TailPolicy::kDrop : TailPolicy::kCarry;
  if (tail != config.tail) throw refusals::other_tail(group.name, tail, config.tail);
  if (group.passes != config.passes) throw refusals::other_passes(group.name, group.passes, config.passes);
}

// What was not handed to a sweeper yet is there.
void SqlLedger::join_oldest(Group& group) {
  const std::int64_t committed = db_->find("SELECT committed FROM run WHERE id = 1").value_or(0);
  group.next_row = db_->find("SELECT row FROM sample WHERE state < 2 ORDER BY row LIMIT 1").value_or(committed);
  group.available = db_->run("UPDATE sample SET claims = claims + 1, state = 0 WHERE state < 2 AND row >= ?1", group.next_row);
  save(group);
}

void SqlLedger::close_group(const GroupId& group_id) {
  sql::Transaction transaction(*db_);
  Group group = find_group(group_id);
  if (group.open == 0) return;
  if (group.kind == kQueueGroup) {
    empty_queue(group);
  } else {
    end_claims_of_windows(group);
  }
  group.open = 0;
  group.available = 0;
  save(group);
  transaction.commit();
}

void SqlLedger::end_claims_of_windows(Group& group) {
  db_->run(std::string(kEndClaims) + "(SELECT row FROM window_ref WHERE consumer = ?1 AND number >= ?2 AND number < ?3)",
           group.id, group.released_windows, group.first_pass_windows());
  end_claims_of_undealt(group);
  group.released_windows = group.first_pass_windows();
}

std::vector<FailedSample> SqlLedger::failed_refs(const GroupId& group_id, int limit) {
  const Group group = find_group(group_id);
  sql::Query query =
      group.kind == kQueueGroup
          ? db_->query(
                "SELECT s.sample_id, q.reason FROM queue_ref q JOIN sample s ON s.row = q.row WHERE q.consumer = ?1"
                " AND q.state = 3 ORDER BY q.row LIMIT ?2",
                group.id, std::max(limit, 0))
          : db_->query(
                "SELECT s.sample_id, w.reason FROM window_ref w JOIN sample s ON s.row = w.row WHERE w.consumer = ?1"
                " AND w.reason IS NOT NULL AND w.number < ?3 ORDER BY w.number, w.position LIMIT ?2",
                group.id, std::max(limit, 0), group.trained_windows);
  std::vector<FailedSample> failed;
  while (query.step()) failed.push_back({.sample_id = SampleId(query.text(0)), .reason = query.text(1)});
  return failed;
}

SqlLedger::Group SqlLedger::find_group(const GroupId& group) {
  sql::Query query = db_->query(
      "SELECT id, window_size, resumable_checkpoints, tail, open, next_row, available, windows, trained_windows,"
      " durable_windows, released_windows, timeline, width, trained_step, durable_step, failed_trained, failed_durable,"
      " dropped, kind, max_attempts, leased, acked, failed, passes, pass_windows, max_window_tokens FROM consumer WHERE"
      " name = ?1",
      group.str());
  if (!query.step()) throw refusals::undeclared(group, db_->name());
  Group found;
  found.name = group.str();
  int column = 0;
  for (std::int64_t* field : {&found.id,
                              &found.window_size,
                              &found.resumable_checkpoints,
                              &found.tail,
                              &found.open,
                              &found.next_row,
                              &found.available,
                              &found.windows,
                              &found.trained_windows,
                              &found.durable_windows,
                              &found.released_windows,
                              &found.timeline,
                              &found.width,
                              &found.trained_step,
                              &found.durable_step,
                              &found.failed_trained,
                              &found.failed_durable,
                              &found.dropped,
                              &found.kind,
                              &found.max_attempts,
                              &found.leased,
                              &found.acked,
                              &found.failed,
                              &found.passes,
                              &found.pass_windows,
                              &found.max_window_tokens}) {
    *field = query.integer(column++);
  }
  return found;
}

SqlLedger::Group SqlLedger::find_windows(const GroupId& group, const char* verb) {
  Group found = find_group(group);
  if (found.kind == kWindowGroup) return found;
  throw refusals::is_queue(verb, found.name);
}

SqlLedger::Group SqlLedger::find_queue(const GroupId& group, const char* verb) {
  Group found = find_group(group);
  if (found.kind == kQueueGroup) return found;
  throw refusals::is_windows(verb, found.name);
}

void SqlLedger::save(const Group& group) {
  db_->run(
      "UPDATE consumer SET open = ?2, next_row = ?3, available = ?4, windows = ?5, trained_windows = ?6, durable_windows = ?7,"
      " released_windows = ?8, timeline = ?9, width = ?10, trained_step = ?11, durable_step = ?12, failed_trained = ?13,"
      " failed_durable = ?14, dropped = ?15, leased = ?16, acked = ?17, failed = ?18, pass_windows = ?19 WHERE id = ?1",
      group.id, group.open, group.next_row, group.available, group.windows, group.trained_windows, group.durable_windows,
      group.released_windows, group.timeline, group.width, group.trained_step, group.durable_step, group.failed_trained,
      group.failed_durable, group.dropped, group.leased, group.acked, group.failed, group.pass_windows);
}

// What a queue has more or less of than `before`, on top of what others counted meanwhile: they may share the turn.
bool SqlLedger::add_counts(const Group& before, const Group& after) {
  const std::optional<std::int64_t> left = db_->find(
      "UPDATE consumer SET available = available + ?2, leased = leased + ?3, acked = acked + ?4, failed = failed + ?5"
      " WHERE id = ?1 RETURNING available + leased",
      after.id, after.available - before.available, after.leased - before.leased, after.acked - before.acked,
      after.failed - before.failed);
  return left.value_or(0) > 0;
}

void SqlLedger::check_newest(const Group& group, std::int64_t timeline, const char* verb) {
  if (group.open == 0) throw refusals::timeline_closed(verb, timeline, group.name);
  if (timeline == group.timeline && timeline != 0) return;
  throw refusals::not_newest(verb, timeline, group.name, group.timeline);
}

}  // namespace draftflow
