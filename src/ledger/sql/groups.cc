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
constexpr int kMaxAttempts = 1 << 20;

const char* tail_name(std::int64_t tail) {
  return tail == 0 ? "drop" : "carry";
}

const char* kind_name(std::int64_t kind) {
  return kind == kWindowGroup ? "group of windows" : "queue";
}

}  // namespace

void check_config(const GroupConfig& config) {
  const auto check = [&](const char* name, int value, int least, int most) {
    if (value >= least && value <= most) return;
    throw InvalidArgument(
        fmt::format("group '{}': {} is {}: {} to {} are allowed", printable(config.group.str()), name, value, least, most));
  };
  check("resumable_checkpoints", config.resumable_checkpoints, 1, kMaxResumable);
  check("max_attempts", config.max_attempts, 1, kMaxAttempts);
  if (config.kind == GroupKind::kWindows) return check("window", config.window, 1, kMaxWindow);
  if (config.window != 0) {
    throw InvalidArgument(fmt::format("group '{}' is a queue with a window of {}: a queue has none, 0 is allowed",
                                      printable(config.group.str()), config.window));
  }
}

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
        "INSERT INTO consumer(id, name, window_size, resumable_checkpoints, tail, next_row, kind, max_attempts) VALUES (?1, ?2,"
        " ?3, ?4, ?5, 0, ?6, ?7)",
        id, config.group.str(), config.window, config.resumable_checkpoints, tail, kind, config.max_attempts);
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
  const std::string name = printable(group.name);
  if (group.open == 0) {
    throw InvalidArgument(fmt::format("group '{}' of ledger {} was closed: declare one of another name", name, db_->name()));
  }
  const std::int64_t kind = config.kind == GroupKind::kWindows ? kWindowGroup : kQueueGroup;
  if (group.kind != kind) {
    throw InvalidArgument(
        fmt::format("group '{}' was declared as a {}, not as a {}: the kind is fixed for the run; declare one of "
                    "another name",
                    name, kind_name(group.kind), kind_name(kind)));
  }
  if (kind == kQueueGroup) return;
  if (group.window_size != config.window) {
    throw InvalidArgument(
        fmt::format("group '{}' was declared with a window of {}, not {}: W is fixed for the run; use {} again or"
                    " start another run",
                    name, group.window_size, config.window, group.window_size));
  }
  if (const std::int64_t tail = config.tail == TailPolicy::kDrop ? 0 : 1; group.tail != tail) {
    throw InvalidArgument(fmt::format("group '{}' was declared with the tail policy '{}', not '{}': it is fixed for the run",
                                      name, tail_name(group.tail), tail_name(tail)));
  }
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
  db_->run(std::string(kEndClaims) + "(SELECT row FROM window_ref WHERE consumer = ?1 AND number >= ?2)", group.id,
           group.released_windows);
  end_claims_of_undealt(group);
  group.released_windows = group.windows;
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
      " dropped, kind, max_attempts, leased, acked, failed FROM consumer WHERE name = ?1",
      group.str());
  if (!query.step()) {
    throw InvalidArgument(
        fmt::format("group '{}' is not declared in ledger {}: call declare_group first", printable(group.str()), db_->name()));
  }
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
                              &found.failed}) {
    *field = query.integer(column++);
  }
  return found;
}

SqlLedger::Group SqlLedger::find_windows(const GroupId& group, const char* verb) {
  Group found = find_group(group);
  if (found.kind == kWindowGroup) return found;
  throw InvalidArgument(
      fmt::format("{} on group '{}': it is a queue, which has no windows; its verbs are lease_refs, ack_refs and "
                  "fail_refs",
                  verb, printable(found.name)));
}

SqlLedger::Group SqlLedger::find_queue(const GroupId& group, const char* verb) {
  Group found = find_group(group);
  if (found.kind == kQueueGroup) return found;
  throw InvalidArgument(
      fmt::format("{} on group '{}': it is a group of windows, which leases no refs; its verbs are open_timeline, "
                  "read_window and trained",
                  verb, printable(found.name)));
}

void SqlLedger::save(const Group& group) {
  db_->run(
      "UPDATE consumer SET open = ?2, next_row = ?3, available = ?4, windows = ?5, trained_windows = ?6, durable_windows = ?7,"
      " released_windows = ?8, timeline = ?9, width = ?10, trained_step = ?11, durable_step = ?12, failed_trained = ?13,"
      " failed_durable = ?14, dropped = ?15, leased = ?16, acked = ?17, failed = ?18 WHERE id = ?1",
      group.id, group.open, group.next_row, group.available, group.windows, group.trained_windows, group.durable_windows,
      group.released_windows, group.timeline, group.width, group.trained_step, group.durable_step, group.failed_trained,
      group.failed_durable, group.dropped, group.leased, group.acked, group.failed);
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
