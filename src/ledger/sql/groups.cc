// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "ledger/sql/rows.h"

namespace draftflow {
namespace {

constexpr int kMaxWindow = 1 << 20;
constexpr int kMaxResumable = 1 << 20;

const char* tail_name(std::int64_t tail) {
  return tail == 0 ? "drop" : "carry";
}

}  // namespace

void SqlLedger::declare_group(const GroupConfig& config) {
  const std::string& name = config.group.str();
  if (config.window < 1 || config.window > kMaxWindow) {
    throw InvalidArgument(
        fmt::format("group '{}': window is {}: 1 to {} are allowed", printable(name), config.window, kMaxWindow));
  }
  if (config.resumable_checkpoints < 1 || config.resumable_checkpoints > kMaxResumable) {
    throw InvalidArgument(fmt::format("group '{}': resumable_checkpoints is {}: 1 to {} are allowed", printable(name),
                                      config.resumable_checkpoints, kMaxResumable));
  }
  const std::int64_t tail = config.tail == TailPolicy::kDrop ? 0 : 1;
  sql::Transaction transaction(*db_);
  if (db_->find("SELECT id FROM consumer WHERE name = ?1", name)) {
    const Group group = find_group(config.group);
    if (group.open == 0) {
      throw InvalidArgument(
          fmt::format("group '{}' of ledger {} was closed: declare one of another name", printable(name), db_->name()));
    }
    if (group.window_size != config.window) {
      throw InvalidArgument(
          fmt::format("group '{}' was declared with a window of {}, not {}: W is fixed for the run; use {} again or"
                      " start another run",
                      printable(name), group.window_size, config.window, group.window_size));
    }
    if (group.tail != tail) {
      throw InvalidArgument(fmt::format("group '{}' was declared with the tail policy '{}', not '{}': it is fixed for the run",
                                        printable(name), tail_name(group.tail), tail_name(tail)));
    }
    db_->run("UPDATE consumer SET resumable_checkpoints = ?2 WHERE id = ?1", group.id, config.resumable_checkpoints);
  } else {
    const std::int64_t id = db_->find("SELECT COALESCE(MAX(id), 0) + 1 FROM consumer").value_or(1);
    db_->run(
        "INSERT INTO consumer(id, name, window_size, resumable_checkpoints, tail, next_row) VALUES (?1, ?2, ?3, ?4, ?5, 0)", id,
        name, config.window, config.resumable_checkpoints, tail);
    Group group = find_group(config.group);
    join_oldest(group);
  }
  transaction.commit();
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
  db_->run(
      "UPDATE sample SET claims = claims - 1, state = CASE WHEN claims = 1 AND in_place = 0 THEN 1 ELSE state END"
      " WHERE state = 0 AND row IN (SELECT row FROM window_ref WHERE consumer = ?1 AND number >= ?2)",
      group.id, group.released_windows);
  db_->run(
      "UPDATE sample SET claims = claims - 1, state = CASE WHEN claims = 1 AND in_place = 0 THEN 1 ELSE state END"
      " WHERE state = 0 AND row >= ?2 AND NOT EXISTS (SELECT 1 FROM dropped WHERE dropped.consumer = ?1 AND dropped.row ="
      " sample.row)",
      group.id, group.next_row);
  group.open = 0;
  group.available = 0;
  group.released_windows = group.windows;
  save(group);
  transaction.commit();
}

SqlLedger::Group SqlLedger::find_group(const GroupId& group) {
  sql::Query query = db_->query(
      "SELECT id, window_size, resumable_checkpoints, tail, open, next_row, available, windows, trained_windows, "
      "durable_windows,"
      " released_windows, timeline, width, trained_step, durable_step, failed_trained, failed_durable, dropped FROM consumer"
      " WHERE name = ?1",
      group.str());
  if (!query.step()) {
    throw InvalidArgument(
        fmt::format("group '{}' is not declared in ledger {}: call declare_group first", printable(group.str()), db_->name()));
  }
  Group found;
  found.name = group.str();
  int column = 0;
  for (std::int64_t* field : {&found.id, &found.window_size, &found.resumable_checkpoints, &found.tail, &found.open,
                              &found.next_row, &found.available, &found.windows, &found.trained_windows, &found.durable_windows,
                              &found.released_windows, &found.timeline, &found.width, &found.trained_step, &found.durable_step,
                              &found.failed_trained, &found.failed_durable, &found.dropped}) {
    *field = query.integer(column++);
  }
  return found;
}

void SqlLedger::save(const Group& group) {
  db_->run(
      "UPDATE consumer SET open = ?2, next_row = ?3, available = ?4, windows = ?5, trained_windows = ?6, durable_windows = ?7,"
      " released_windows = ?8, timeline = ?9, width = ?10, trained_step = ?11, durable_step = ?12, failed_trained = ?13,"
      " failed_durable = ?14, dropped = ?15 WHERE id = ?1",
      group.id, group.open, group.next_row, group.available, group.windows, group.trained_windows, group.durable_windows,
      group.released_windows, group.timeline, group.width, group.trained_step, group.durable_step, group.failed_trained,
      group.failed_durable, group.dropped);
}

void SqlLedger::check_newest(const Group& group, std::int64_t timeline, const char* verb) {
  if (group.open == 0) {
    throw Conflict(
        fmt::format("{} on timeline {} of group '{}': the group was closed; stop", verb, timeline, printable(group.name)));
  }
  if (timeline == group.timeline && timeline != 0) return;
  throw Conflict(
      fmt::format("{} on timeline {} of group '{}': the newest timeline is {}; stop, another trainer took over (or open a "
                  "timeline first)",
                  verb, timeline, printable(group.name), group.timeline));
}

}  // namespace draftflow
