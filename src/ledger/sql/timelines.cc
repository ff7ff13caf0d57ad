// SPDX-License-Identifier: Apache-2.0
//
// Timelines: how the ranks of a launch enter, and what a resume takes back. Windows are trained in the order of their numbers,
// so the released, durable and trained ones are prefixes of one sequence and a rewind moves their ends back.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "draftflow/base/error.h"
#include "ledger/sql/rows.h"

namespace draftflow {

void SqlLedger::check_on_line(const Group& group, const CheckpointMark& mark) {
  if (const std::string mine = id(); mark.ledger_id != mine) throw refusals::of_other_ledger(mark, mine, db_->name());
  if (mark.group.str() != group.name) throw refusals::of_other_group(mark, group.name);
  std::string line;
  std::int64_t limit = group.trained_step;
  for (std::int64_t number = group.timeline; number > 0;) {
    sql::Query query =
        db_->query("SELECT parent, first_step FROM timeline WHERE consumer = ?1 AND number = ?2", group.id, number);
    if (!query.step()) throw Corrupt(fmt::format("ledger {} has lost timeline {}", db_->name(), number));
    const std::int64_t parent = query.integer(0), first_step = query.integer(1);
    if (number == mark.timeline && mark.step >= first_step && mark.step <= limit) return;
    refusals::add_to_line(line, number, first_step, limit);
    limit = std::min(limit, first_step);
    number = parent;
  }
  throw refusals::off_the_line(mark, db_->name(), line);
}

// How many samples trained after the checkpoint have lost their bytes: 0, unless the request accepts that.
std::int64_t SqlLedger::check_bytes_are_there(const Group& group, std::int64_t keep, const TimelineRequest& request) {
  const std::int64_t lost =
      db_->find("SELECT SUM(going) FROM training_window WHERE consumer = ?1 AND number >= ?2", group.id, keep).value_or(0);
  if (lost == 0 || (request.accept_loss && group.passes == 1)) return lost;
  throw refusals::bytes_lost(group.name, group.passes, request, lost, group.durable_step);
}

void SqlLedger::rewind(Group& group, std::int64_t keep, std::int64_t step) {
  db_->run("UPDATE window_ref SET reason = NULL WHERE consumer = ?1 AND number >= ?2 AND reason IS NOT NULL", group.id, keep);
  const std::int64_t failed =
      db_->find("SELECT SUM(failed) FROM training_window WHERE consumer = ?1 AND number >= ?2", group.id, keep).value_or(0);
  db_->run("UPDATE training_window SET timeline = NULL, step = NULL, failed = 0 WHERE consumer = ?1 AND number >= ?2", group.id,
           keep);
  // Everything kept is in the checkpoint, so it is durable.
  group.failed_durable = group.failed_trained + group.failed_durable - failed;
  group.failed_trained = 0;
  group.trained_windows = group.durable_windows = keep;
  group.trained_step = group.durable_step = std::max<std::int64_t>(step, 0);
}

// Of the windows from `keep` on: what has lost its bytes is dropped, and the rest waits to be dealt again, in order.
void SqlLedger::drop_lost(Group& group, std::int64_t keep) {
  const std::int64_t first = db_->find("SELECT MIN(row) FROM window_ref WHERE consumer = ?1 AND number >= ?2", group.id, keep)
                                 .value_or(group.next_row);
  group.dropped += db_->run(
      "INSERT INTO dropped(consumer, row, reason) SELECT window_ref.consumer, window_ref.row, 'rewound' FROM window_ref"
      " JOIN sample ON sample.row = window_ref.row WHERE window_ref.consumer = ?1 AND window_ref.number >= ?2"
      " AND sample.state >= 2",
      group.id, keep);
  db_->run("DELETE FROM window_ref WHERE consumer = ?1 AND number >= ?2", group.id, keep);
  db_->run("DELETE FROM training_window WHERE consumer = ?1 AND number >= ?2", group.id, keep);
  group.windows = keep;
  group.next_row = first;
  group.available = db_->find(
                           "SELECT COUNT(*) FROM sample WHERE row >= ?2 AND state = 0 AND NOT EXISTS"
                           " (SELECT 1 FROM dropped WHERE dropped.consumer = ?1 AND dropped.row = sample.row)",
                           group.id, group.next_row)
                        .value_or(0);
}

std::optional<TimelineInfo> SqlLedger::find_launch(const Group& group, const TimelineRequest& request) {
  if (request.launch.empty()) return std::nullopt;
  sql::Query found = db_->query(
      "SELECT number, parent, first_step, first_window, width, lost FROM timeline WHERE consumer = ?1 AND launch = ?2"
      " ORDER BY number DESC LIMIT 1",
      group.id, request.launch);
  if (!found.step()) return std::nullopt;
  if (found.integer(0) != group.timeline) throw refusals::launch_ended(request, group.timeline, found.integer(0));
  const std::int64_t parent = request.resume ? request.resume->timeline : 0, step = request.resume ? request.resume->step : 0;
  if (found.integer(1) != parent || found.integer(2) != step) {
    throw refusals::other_checkpoint(request, found.integer(1), found.integer(2));
  }
  if (found.integer(4) != request.width) throw refusals::other_width(request, found.integer(4));
  TimelineInfo info{.number = found.integer(0), .first_step = found.integer(2), .first_window = found.integer(3)};
  info.lost = found.integer(5);
  return info;
}

void SqlLedger::enter(const Group& group, const TimelineRequest& request, std::int64_t timeline) {
  if (db_->run("INSERT INTO trainer_rank(consumer, timeline, number, holder) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
               group.id, timeline, request.rank, self_) == 1) {
    return;
  }
  if (db_->find("SELECT 1 FROM trainer_rank WHERE consumer = ?1 AND timeline = ?2 AND number = ?3 AND holder = ?4", group.id,
                timeline, request.rank, self_)) {
    return;  // said before
  }
  throw refusals::entered_before(request, timeline);
}

TimelineInfo SqlLedger::open_timeline(const TimelineRequest& request) {
  check_ranks(request);
  sql::Transaction transaction(*db_);
  Group group = find_windows(request.group, "open_timeline");
  if (group.open == 0) throw refusals::closed_for_good(group.name);
  if (group.window_size % request.width != 0) throw refusals::uneven(group.name, request.width, group.window_size);
  if (auto joined = find_launch(group, request)) {
    enter(group, request, joined->number);
    transaction.commit();
    joined->ledger_id = id();
    return *joined;
  }
  if (request.resume) check_on_line(group, *request.resume);
  const std::int64_t step = request.resume ? request.resume->step : -1;
  const std::int64_t keep = windows_through(group, step);
  const std::int64_t lost = check_bytes_are_there(group, keep, request);
  if (request.resume) record_checkpoint(group, request.resume->timeline, request.resume->step);
  db_->run("UPDATE checkpoint SET abandoned = 1 WHERE consumer = ?1 AND abandoned = 0 AND step > ?2", group.id, step);
  rewind(group, keep, step);
  move_release(group, releasable_windows(group));
  if (lost > 0) drop_lost(group, keep);
  ++group.timeline;
  group.width = request.width;
  const TimelineInfo info{
      .number = group.timeline, .first_step = group.trained_step, .first_window = keep, .lost = lost, .ledger_id = id()};
  db_->run(
      "INSERT INTO timeline(consumer, number, parent, first_step, first_window, width, launch, lost) VALUES (?1, ?2, ?3, ?4, "
      "?5,"
      " ?6, ?7, ?8)",
      group.id, info.number, request.resume ? request.resume->timeline : 0, info.first_step, info.first_window, request.width,
      request.launch, lost);
  enter(group, request, info.number);
  save(group);
  transaction.commit();
  return info;
}

}  // namespace draftflow
