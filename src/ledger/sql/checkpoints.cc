// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints and what they let go.
#include <algorithm>
#include <utility>

#include "ledger/sql/rows.h"

namespace draftflow {

// How many windows, from the first on, were trained at or before the step.
std::int64_t SqlLedger::windows_through(const Group& group, std::int64_t step) {
  return db_
      ->find("SELECT number + 1 FROM training_window WHERE consumer = ?1 AND step <= ?2 ORDER BY step DESC LIMIT 1", group.id,
             step)
      .value_or(0);
}

void SqlLedger::record_checkpoint(const Group& group, std::int64_t timeline, std::int64_t step) {
  db_->run("INSERT INTO checkpoint(consumer, timeline, step) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING", group.id, timeline,
           step);
}

// The windows of the first pass that each of the newest resumable checkpoints holds for the last time.
std::int64_t SqlLedger::releasable_windows(const Group& group) {
  const std::optional<std::int64_t> oldest = db_->find(
      "SELECT DISTINCT step FROM checkpoint WHERE consumer = ?1 AND abandoned = 0 ORDER BY step DESC LIMIT 1 OFFSET ?2",
      group.id, group.resumable_checkpoints - 1);
  if (!oldest || (group.passes > 1 && group.pass_windows == 0)) return 0;
  return std::max<std::int64_t>(windows_through(group, *oldest) - (group.passes - 1) * group.pass_windows, 0);
}

// Ends the group's claims on the samples of newly released windows, or makes them anew.
void SqlLedger::move_release(Group& group, std::int64_t target) {
  if (target > group.released_windows) {
    db_->run(std::string(kEndClaims) + "(SELECT row FROM window_ref WHERE consumer = ?1 AND number >= ?2 AND number < ?3)",
             group.id, group.released_windows, target);
  } else if (target < group.released_windows) {
    db_->run(
        "UPDATE sample SET claims = claims + 1, state = 0 WHERE state < 2 AND row IN"
        " (SELECT row FROM window_ref WHERE consumer = ?1 AND number >= ?2 AND number < ?3)",
        group.id, target, group.released_windows);
  }
  group.released_windows = target;
}

void SqlLedger::checkpointed(const GroupId& group_id, std::int64_t timeline, std::int64_t step) {
  sql::Transaction transaction(*db_);
  Group group = find_windows(group_id, "checkpointed");
  check_newest(group, timeline, "checkpointed");
  if (step < 0 || step > group.trained_step) {
    throw refusals::not_trained(step, timeline, group.name, group.trained_step);
  }
  const std::int64_t first_step =
      db_->find("SELECT first_step FROM timeline WHERE consumer = ?1 AND number = ?2", group.id, timeline).value_or(0);
  if (step < first_step) throw refusals::before_timeline(step, timeline, group.name, first_step);
  record_checkpoint(group, timeline, step);
  if (step > group.durable_step) {
    const std::int64_t through = windows_through(group, step);
    const std::int64_t failed =
        db_->find("SELECT SUM(failed) FROM training_window WHERE consumer = ?1 AND number >= ?2 AND number < ?3", group.id,
                  group.durable_windows, through)
            .value_or(0);
    group.durable_step = step;
    group.durable_windows = std::max(group.durable_windows, through);
    group.failed_trained -= failed;
    group.failed_durable += failed;
  }
  move_release(group, std::max(group.released_windows, releasable_windows(group)));
  save(group);
  transaction.commit();
}

}  // namespace draftflow
