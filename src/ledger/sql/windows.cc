// SPDX-License-Identifier: Apache-2.0
//
// Windows: dealt in commit order, read by the ranks of a timeline, trained in the order of their numbers.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "ledger/sql/rows.h"

namespace draftflow {

// How many refs the first windows have, this many of them.
std::int64_t SqlLedger::refs_through(const Group& group, std::int64_t windows) {
  if (windows == 0) return 0;
  if (const auto through =
          db_->find("SELECT refs_through FROM training_window WHERE consumer = ?1 AND number = ?2", group.id, windows - 1)) {
    return *through;
  }
  throw Corrupt(fmt::format("ledger {} has lost window {} of group '{}'", db_->name(), windows - 1, printable(group.name)));
}

// How many refs the next window has, or 0 while it is not known to be full.
std::int64_t SqlLedger::next_window_refs(const Group& group) {
  if (group.available == 0 || group.pass_windows > 0) return 0;
  if (group.max_window_tokens == 0) return group.available >= group.window_size ? group.window_size : 0;
  WindowMeasure measure(group.window_size, group.max_window_tokens);
  sql::Query next = db_->query(
      "SELECT tokens FROM sample WHERE row >= ?2 AND state = 0 AND NOT EXISTS (SELECT 1 FROM dropped WHERE dropped.consumer ="
      " ?1 AND dropped.row = sample.row) ORDER BY row LIMIT ?3",
      group.id, group.next_row, group.window_size);
  while (next.step()) {
    if (measure.add(next.integer(0))) return measure.refs();
  }
  return 0;
}

void SqlLedger::begin_window(Group& group, std::int64_t refs) {
  db_->run("INSERT INTO training_window(consumer, number, refs_through) VALUES (?1, ?2, ?3)", group.id, group.windows,
           refs_through(group, group.windows) + refs);
}

void SqlLedger::deal(Group& group, std::int64_t refs) {
  begin_window(group, refs);
  const std::int64_t dealt = db_->run(
      "INSERT INTO window_ref(consumer, number, position, row) SELECT ?1, ?2, ROW_NUMBER() OVER (ORDER BY row) - 1, row FROM"
      " (SELECT row FROM sample WHERE row >= ?3 AND state = 0 AND NOT EXISTS (SELECT 1 FROM dropped WHERE dropped.consumer = ?1"
      " AND dropped.row = sample.row) ORDER BY row LIMIT ?4) AS next",
      group.id, group.windows, group.next_row, refs);
  if (dealt != refs) {
    throw Corrupt(fmt::format("ledger {}: group '{}' should have {} samples to deal from sample {} on, but {} are there",
                              db_->name(), printable(group.name), group.available, group.next_row, dealt));
  }
  group.next_row =
      db_->find("SELECT MAX(row) + 1 FROM window_ref WHERE consumer = ?1 AND number = ?2", group.id, group.windows).value_or(0);
  group.available -= dealt;
  ++group.windows;
  save(group);
}

// Of the samples that wait in no window of the group.
void SqlLedger::end_claims_of_undealt(const Group& group) {
  db_->run(std::string(kEndClaims) +
               "(SELECT s.row FROM sample s WHERE s.row >= ?2 AND NOT EXISTS (SELECT 1 FROM dropped WHERE dropped.consumer = ?1"
               " AND dropped.row = s.row))",
           group.id, group.next_row);
}

void SqlLedger::drop_tail(Group& group) {
  const std::int64_t committed = db_->find("SELECT committed FROM run WHERE id = 1").value_or(0);
  if (group.windows == 0) {
    throw refusals::no_step(group.name, group.available, group.window_size, group.max_window_tokens);
  }
  end_claims_of_undealt(group);
  // What was handed to a sweeper when a late group joined never was the group's.
  db_->run(
      "INSERT INTO dropped(consumer, row, reason) SELECT ?1, row, ?3 FROM sample WHERE row >= ?2 AND state < 2"
      " ON CONFLICT DO NOTHING",
      group.id, group.next_row, group.pass_windows == 0 ? kTailReason : kLateReason);
  group.next_row = committed;
  group.dropped += std::exchange(group.available, 0);
  save(group);
}

// The window of the first pass that is next in this one.
void SqlLedger::deal_again(Group& group) {
  const std::int64_t original = group.windows % group.pass_windows;
  begin_window(group, refs_through(group, original + 1) - refs_through(group, original));
  db_->run(
      "INSERT INTO window_ref(consumer, number, position, row) SELECT ?1, ?2, position, row FROM window_ref"
      " WHERE consumer = ?1 AND number = ?3",
      group.id, group.windows, original);
  ++group.windows;
  save(group);
}

// No sample will come any more that a window could still take. True if a window was dealt for another pass.
bool SqlLedger::end_stream(Group& group) {
  if (group.available > 0 && group.tail == 0) drop_tail(group);
  if (!group.has_passes_left()) return false;
  if (group.pass_windows == 0) group.pass_windows = group.windows;
  deal_again(group);
  return true;
}

Window SqlLedger::load_window(const Group& group, std::int64_t number, const WindowShare& share) {
  Window window{.number = number, .refs = {}};
  static const std::string kRefs = fmt::format(
      "SELECT {} FROM window_ref w JOIN sample s ON s.row = w.row JOIN sample_ref r ON r.row = w.row"
      " WHERE w.consumer = ?1 AND w.number = ?2 AND w.position % ?3 = ?4 ORDER BY w.position",
      kRefColumns);
  sql::Query refs = db_->query(kRefs, group.id, number, share.width, share.rank);
  while (refs.step()) window.refs.push_back(ref_of(refs, 0));
  const std::int64_t refs_of_all = refs_through(group, number + 1) - refs_through(group, number);
  if (static_cast<std::int64_t>(window.refs.size()) != (refs_of_all - share.rank + share.width - 1) / share.width) {
    throw Corrupt(fmt::format("ledger {}: rank {} of {} finds {} refs in window {} of group '{}', which has {}", db_->name(),
                              share.rank, share.width, window.refs.size(), number, printable(group.name), refs_of_all));
  }
  return window;
}

WindowAnswer SqlLedger::read_window(const GroupId& group_id, std::int64_t timeline, std::int64_t number,
                                    const WindowShare& share) {
  const WindowAnswer end{.state = WindowState::kEndOfStream, .window = std::nullopt};
  const auto check = [&](const Group& group) {
    check_newest(group, timeline, "read_window");
    if (share.width != group.width || share.rank < 0 || share.rank >= share.width) {
      throw refusals::not_the_share(share, timeline, group.name, group.width);
    }
    if (number < 0 || number > group.windows) throw refusals::not_dealt(number, group.name, group.windows);
  };
  // Each decision is taken twice: first on a read view, so that a waiting trainer does not queue for the write turn.
  {
    const sql::Snapshot snapshot(*db_);
    const Group group = find_windows(group_id, "read_window");
    check(group);
    if (number < group.windows) return {.state = WindowState::kWindow, .window = load_window(group, number, share)};
    if (next_window_refs(group) == 0) {
      if (db_->find(kPromptsFinished) != 1) return {};
      const bool tail = group.available > 0 && group.tail == 0;
      if (!tail && !group.has_passes_left()) return end;
    }
  }
  sql::Transaction transaction(*db_);
  Group group = find_windows(group_id, "read_window");
  check(group);
  if (number >= group.windows) {
    const std::int64_t refs = next_window_refs(group);
    if (refs > 0) {
      deal(group, refs);
    } else if (db_->find(kPromptsFinished) != 1) {
      return {};
    } else if (!end_stream(group)) {
      transaction.commit();
      return end;
    }
  }
  WindowAnswer answer{.state = WindowState::kWindow, .window = load_window(group, number, share)};
  transaction.commit(sql::Wakes::kNobody);  // who waits for it was woken by the last of its refs
  return answer;
}

std::int64_t SqlLedger::mark_failed(const Group& group, std::int64_t window, const std::vector<FailedSample>& failed) {
  for (const FailedSample& one : failed) {
    const std::int64_t row = db_->find("SELECT row FROM sample WHERE sample_id = ?1", one.sample_id.str()).value_or(-1);
    const std::optional<std::int64_t> position =
        db_->find("SELECT position FROM window_ref WHERE row = ?1 AND consumer = ?2 AND number = ?3", row, group.id, window);
    if (!position) throw refusals::not_in_window(one.sample_id, window, group.name);
    db_->run("UPDATE window_ref SET reason = ?4 WHERE reason IS NULL AND consumer = ?1 AND number = ?2 AND position = ?3",
             group.id, window, *position, printable(one.reason, kMaxReasonBytes));
  }
  return db_
      ->find("SELECT COUNT(*) FROM window_ref WHERE consumer = ?1 AND number = ?2 AND reason IS NOT NULL", group.id, window)
      .value_or(0);
}

void SqlLedger::report_failed(const GroupId& group_id, std::int64_t timeline, std::int64_t window,
                              const std::vector<FailedSample>& failed) {
  if (failed.empty()) return;
  sql::Transaction transaction(*db_);
  const Group group = find_windows(group_id, "report_failed");
  check_newest(group, timeline, "report_failed");
  if (window < group.trained_windows || window >= group.windows) {
    throw refusals::failed_too_late(window, group.name, group.trained_windows, group.windows);
  }
  mark_failed(group, window, failed);
  transaction.commit(sql::Wakes::kNobody);
}

void SqlLedger::trained(const GroupId& group_id, std::int64_t timeline, std::int64_t window, std::int64_t step,
                        const std::vector<FailedSample>& failed) {
  sql::Transaction transaction(*db_);
  Group group = find_windows(group_id, "trained");
  check_newest(group, timeline, "trained");
  if (window >= 0 && window < group.trained_windows) {
    sql::Query before =
        db_->query("SELECT timeline, step FROM training_window WHERE consumer = ?1 AND number = ?2", group.id, window);
    before.step();
    if (before.integer(0) == timeline && before.integer(1) == step) return;  // said before
    throw refusals::trained_before(window, group.name, before.integer(1), before.integer(0), step, timeline);
  }
  if (window != group.trained_windows || window >= group.windows) {
    throw refusals::not_the_next(window, group.name, group.windows, group.trained_windows);
  }
  if (step <= group.trained_step) throw refusals::step_is_done(window, group.name, step, group.trained_step);
  const std::int64_t marked = mark_failed(group, window, failed);
  db_->run("UPDATE training_window SET timeline = ?3, step = ?4, failed = ?5 WHERE consumer = ?1 AND number = ?2", group.id,
           window, timeline, step, marked);
  ++group.trained_windows;
  group.trained_step = step;
  group.failed_trained += marked;
  save(group);
  transaction.commit();
}

std::vector<std::string> SqlLedger::trained_ids(const GroupId& group_id) {
  std::vector<std::string> ids;
  if (!db_->find("SELECT id FROM consumer WHERE name = ?1", group_id.str())) return ids;
  const Group group = find_group(group_id);
  if (group.kind == kQueueGroup) return acked_ids(group);
  sql::Query query = db_->query(
      "SELECT sample.sample_id FROM window_ref JOIN sample ON sample.row = window_ref.row WHERE window_ref.consumer = ?1"
      " AND window_ref.number < ?2 AND window_ref.reason IS NULL ORDER BY window_ref.number, window_ref.position",
      group.id, group.trained_windows);
  while (query.step()) ids.push_back(query.text(0));
  return ids;
}

}  // namespace draftflow
