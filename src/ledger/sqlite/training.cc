// SPDX-License-Identifier: Apache-2.0
//
// Groups, timelines, windows and checkpoints. Windows are dealt in commit order and trained in the order of their numbers, so
// the released, durable and trained ones are prefixes of one sequence and a rewind moves their ends back.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "ledger/sqlite/rows.h"

namespace draftflow {
namespace {

constexpr int kMaxWindow = 1 << 20;
constexpr int kMaxResumable = 1 << 20;
constexpr std::size_t kMaxReasonBytes = 2000;
constexpr const char* kTailReason = "tail shorter than a window";

}  // namespace

void SqliteLedger::declare_group(const GroupConfig& config) {
  const std::string& name = config.group.str();
  if (config.window < 1 || config.window > kMaxWindow) {
    throw InvalidArgument(
        fmt::format("group '{}': window is {}: 1 to {} are allowed", printable(name), config.window, kMaxWindow));
  }
  if (config.resumable_checkpoints < 1 || config.resumable_checkpoints > kMaxResumable) {
    throw InvalidArgument(fmt::format("group '{}': resumable_checkpoints is {}: 1 to {} are allowed", printable(name),
                                      config.resumable_checkpoints, kMaxResumable));
  }
  sqlite::Transaction transaction(db_);
  {
    sqlite::Query found = db_.query("SELECT name, window_size FROM consumer WHERE id = 1");
    if (found.step()) {
      if (found.text(0) != name) {
        throw InvalidArgument(
            fmt::format("group '{}': ledger {} has the group '{}', and this version keeps one group in a ledger",
                        printable(name), db_.path().string(), printable(found.text(0))));
      }
      if (found.integer(1) != config.window) {
        throw InvalidArgument(
            fmt::format("group '{}' was declared with a window of {}, not {}: W is fixed for the run; use {} again or"
                        " start another run",
                        printable(name), found.integer(1), config.window, found.integer(1)));
      }
    }
  }
  db_.run(
      "INSERT INTO consumer(id, name, window_size, resumable_checkpoints, next_row) VALUES (1, ?1, ?2, ?3, 0)"
      " ON CONFLICT(id) DO UPDATE SET resumable_checkpoints = excluded.resumable_checkpoints",
      name, config.window, config.resumable_checkpoints);
  transaction.commit();
}

SqliteLedger::Group SqliteLedger::find_group(const GroupId& group) {
  sqlite::Query query = db_.query(
      "SELECT id, window_size, resumable_checkpoints, next_row, windows, trained_windows, durable_windows, released_windows,"
      " timeline, trained_step, durable_step, failed_trained, failed_durable, dropped FROM consumer WHERE name = ?1",
      group.str());
  if (!query.step()) {
    throw InvalidArgument(fmt::format("group '{}' is not declared in ledger {}: call declare_group first",
                                      printable(group.str()), db_.path().string()));
  }
  Group found;
  found.name = group.str();
  int column = 0;
  for (std::int64_t* field :
       {&found.id, &found.window_size, &found.resumable_checkpoints, &found.next_row, &found.windows, &found.trained_windows,
        &found.durable_windows, &found.released_windows, &found.timeline, &found.trained_step, &found.durable_step,
        &found.failed_trained, &found.failed_durable, &found.dropped}) {
    *field = query.integer(column++);
  }
  return found;
}

void SqliteLedger::save(const Group& group) {
  db_.run(
      "UPDATE consumer SET next_row = ?2, windows = ?3, trained_windows = ?4, durable_windows = ?5, released_windows = ?6,"
      " timeline = ?7, trained_step = ?8, durable_step = ?9, failed_trained = ?10, failed_durable = ?11, dropped = ?12 WHERE "
      "id = ?1",
      group.id, group.next_row, group.windows, group.trained_windows, group.durable_windows, group.released_windows,
      group.timeline, group.trained_step, group.durable_step, group.failed_trained, group.failed_durable, group.dropped);
}

void SqliteLedger::check_newest(const Group& group, std::int64_t timeline, const char* verb) {
  if (timeline == group.timeline && timeline != 0) return;
  throw Conflict(
      fmt::format("{} on timeline {} of group '{}': the newest timeline is {}; stop, another trainer took over (or open a "
                  "timeline first)",
                  verb, timeline, printable(group.name), group.timeline));
}

// --- resume

void SqliteLedger::check_on_line(const Group& group, const CheckpointMark& mark) {
  const std::string named =
      fmt::format("checkpoint (timeline {}, step {}) of group '{}'", mark.timeline, mark.step, printable(mark.group.str()));
  if (const std::string mine = id(); mark.ledger_id != mine) {
    throw Conflict(fmt::format("{} is of ledger {}, not of ledger {} in {}: resume with its own ledger", named,
                               printable(mark.ledger_id), mine, db_.path().string()));
  }
  if (mark.group.str() != group.name) {
    throw Conflict(fmt::format("{} cannot be resumed by group '{}'", named, printable(group.name)));
  }
  std::string line;
  std::int64_t limit = group.trained_step;
  for (std::int64_t number = group.timeline; number > 0;) {
    sqlite::Query query =
        db_.query("SELECT parent, first_step FROM timeline WHERE consumer = ?1 AND number = ?2", group.id, number);
    if (!query.step()) throw Corrupt(fmt::format("ledger {} has lost timeline {}", db_.path().string(), number));
    const std::int64_t parent = query.integer(0), first_step = query.integer(1);
    if (number == mark.timeline && mark.step >= first_step && mark.step <= limit) return;
    if (line.size() < 400)
      line += fmt::format("{}timeline {} steps {} to {}", line.empty() ? "" : ", ", number, first_step, limit);
    limit = std::min(limit, first_step);
    number = parent;
  }
  throw Conflict(
      fmt::format("{} is not on the line of ledger {} ({}): what it was trained on has been taken back; resume from a "
                  "checkpoint of that line",
                  named, db_.path().string(), line.empty() ? "nothing was trained" : line));
}

void SqliteLedger::check_bytes_are_there(const Group& group, std::int64_t keep, const std::optional<CheckpointMark>& resume) {
  const std::int64_t lost =
      db_.find("SELECT SUM(going) FROM window WHERE consumer = ?1 AND number >= ?2", group.id, keep).value_or(0);
  if (lost == 0) return;
  const std::string from = resume ? fmt::format("the checkpoint (timeline {}, step {})", resume->timeline, resume->step)
                                  : std::string("nothing (no checkpoint was presented)");
  throw InvalidArgument(
      fmt::format("group '{}' cannot start from {}: {} samples trained after it are freed and would be lost; resume "
                  "from the checkpoint at step {}, or start another run",
                  printable(group.name), from, lost, group.durable_step));
}

// How many windows, from the first on, were trained at or before the step.
std::int64_t SqliteLedger::windows_through(const Group& group, std::int64_t step) {
  return db_.find("SELECT number + 1 FROM window WHERE consumer = ?1 AND step <= ?2 ORDER BY step DESC LIMIT 1", group.id, step)
      .value_or(0);
}

void SqliteLedger::rewind(Group& group, std::int64_t keep, std::int64_t step) {
  db_.run("UPDATE window_ref SET reason = NULL WHERE consumer = ?1 AND window >= ?2 AND window < ?3 AND reason IS NOT NULL",
          group.id, keep, group.trained_windows);
  const std::int64_t failed = db_.find("SELECT SUM(failed) FROM window WHERE consumer = ?1 AND number >= ?2 AND number < ?3",
                                       group.id, keep, group.trained_windows)
                                  .value_or(0);
  db_.run("UPDATE window SET timeline = NULL, step = NULL, failed = 0 WHERE consumer = ?1 AND number >= ?2 AND number < ?3",
          group.id, keep, group.trained_windows);
  // Everything kept is in the checkpoint, so it is durable.
  group.failed_durable = group.failed_trained + group.failed_durable - failed;
  group.failed_trained = 0;
  group.trained_windows = group.durable_windows = keep;
  group.trained_step = group.durable_step = std::max<std::int64_t>(step, 0);
}

TimelineInfo SqliteLedger::open_timeline(const GroupId& group_id, const std::optional<CheckpointMark>& resume) {
  sqlite::Transaction transaction(db_);
  Group group = find_group(group_id);
  if (resume) check_on_line(group, *resume);
  const std::int64_t step = resume ? resume->step : -1;
  const std::int64_t keep = windows_through(group, step);
  check_bytes_are_there(group, keep, resume);
  if (resume) record_checkpoint(group, resume->timeline, resume->step);
  db_.run("UPDATE checkpoint SET abandoned = 1 WHERE consumer = ?1 AND abandoned = 0 AND step > ?2", group.id, step);
  rewind(group, keep, step);
  move_release(group, releasable_windows(group));
  ++group.timeline;
  const TimelineInfo info{.number = group.timeline, .first_step = group.trained_step, .ledger_id = id()};
  db_.run("INSERT INTO timeline(consumer, number, parent, first_step) VALUES (?1, ?2, ?3, ?4)", group.id, info.number,
          resume ? resume->timeline : 0, info.first_step);
  save(group);
  transaction.commit();
  handed_.erase(group.name);
  return info;
}

// --- windows

void SqliteLedger::deal(Group& group) {
  db_.run("INSERT INTO window(consumer, number) VALUES (?1, ?2)", group.id, group.windows);
  for (std::int64_t position = 0; position < group.window_size; ++position) {
    db_.run("INSERT INTO window_ref(consumer, window, position, row) VALUES (?1, ?2, ?3, ?4)", group.id, group.windows,
            position, group.next_row + position);
  }
  group.next_row += group.window_size;
  ++group.windows;
  save(group);
}

void SqliteLedger::drop_tail(Group& group) {
  const std::int64_t dropped =
      db_.run("INSERT INTO dropped(consumer, row, reason) SELECT ?1, row, ?3 FROM sample WHERE row >= ?2", group.id,
              group.next_row, kTailReason);
  db_.run("UPDATE sample SET state = 1 WHERE row >= ?1 AND state = 0 AND in_place = 0", group.next_row);
  group.next_row += dropped;
  group.dropped += dropped;
  save(group);
}

Window SqliteLedger::read_window(const Group& group, std::int64_t number) {
  Window window{.number = number, .refs = {}};
  std::vector<std::int64_t> rows;
  {
    sqlite::Query refs =
        db_.query("SELECT row FROM window_ref WHERE consumer = ?1 AND window = ?2 ORDER BY position", group.id, number);
    while (refs.step()) rows.push_back(refs.integer(0));
  }
  for (const std::int64_t row : rows) window.refs.push_back(read_ref(row));
  if (static_cast<std::int64_t>(window.refs.size()) != group.window_size) {
    throw Corrupt(fmt::format("ledger {}: window {} of group '{}' has {} refs, not {}", db_.path().string(), number,
                              printable(group.name), window.refs.size(), group.window_size));
  }
  return window;
}

WindowAnswer SqliteLedger::hand_out(const Group& group, std::int64_t number) {
  WindowAnswer answer{.state = WindowState::kWindow, .window = read_window(group, number)};
  handed_[group.name] = {.timeline = group.timeline, .next = number + 1};
  return answer;
}

WindowAnswer SqliteLedger::next_window(const GroupId& group_id, std::int64_t timeline) {
  const WindowAnswer end{.state = WindowState::kEndOfStream, .window = std::nullopt};
  constexpr const char* kPrompts =
      "SELECT committed, prompts_closed AND prompts_pending = 0 AND prompts_leased = 0 FROM run WHERE id = 1";
  const auto next_of = [&](const Group& group) {
    const auto handed = handed_.find(group.name);
    const bool mine = handed != handed_.end() && handed->second.timeline == timeline;
    return std::max(group.trained_windows, mine ? handed->second.next : 0);
  };
  const auto no_tail = [&](const Group& group) { return db_.find("SELECT committed FROM run WHERE id = 1") == group.next_row; };
  // Each decision is taken twice: first on a read view, so that a waiting trainer does not queue for the write turn.
  const auto look = [&](const Group& group) {
    sqlite::Query run = db_.query(kPrompts);
    run.step();
    const std::int64_t left = run.integer(0) - group.next_row;
    if (left >= group.window_size) return WindowState::kWindow;
    return run.integer(1) != 0 ? WindowState::kEndOfStream : WindowState::kWaiting;
  };
  {
    const sqlite::Snapshot snapshot(db_);
    const Group group = find_group(group_id);
    check_newest(group, timeline, "next_window");
    if (next_of(group) < group.windows) return hand_out(group, next_of(group));
    const WindowState found = look(group);
    if (found == WindowState::kWaiting) return {};
    if (found == WindowState::kEndOfStream && no_tail(group)) return end;
  }
  sqlite::Transaction transaction(db_);
  Group group = find_group(group_id);
  check_newest(group, timeline, "next_window");
  const std::int64_t next = next_of(group);
  if (next >= group.windows) {
    const WindowState found = look(group);
    if (found == WindowState::kWaiting) return {};
    if (found == WindowState::kEndOfStream) {
      drop_tail(group);
      transaction.commit();
      return end;
    }
    deal(group);
  }
  WindowAnswer answer{.state = WindowState::kWindow, .window = read_window(group, next)};
  transaction.commit();
  handed_[group.name] = {.timeline = timeline, .next = next + 1};
  return answer;
}

std::int64_t SqliteLedger::mark_failed(const Group& group, std::int64_t window, const std::vector<FailedSample>& failed) {
  std::int64_t marked = 0;
  for (const FailedSample& one : failed) {
    const std::int64_t row = db_.find("SELECT row FROM sample WHERE sample_id = ?1", one.sample_id.str()).value_or(-1);
    const std::optional<std::int64_t> home =
        db_.find("SELECT window FROM window_ref WHERE row = ?1 AND consumer = ?2", row, group.id);
    if (home != window) {
      throw InvalidArgument(fmt::format("sample '{}' is not in window {} of group '{}': its failure was not written",
                                        printable(one.sample_id.str()), window, printable(group.name)));
    }
    marked += db_.run(
        "UPDATE window_ref SET reason = ?4 WHERE reason IS NULL AND (consumer, window, position) ="
        " (SELECT consumer, window, position FROM window_ref WHERE row = ?1 AND consumer = ?2 AND window = ?3)",
        row, group.id, window, printable(one.reason, kMaxReasonBytes));
  }
  return marked;
}

void SqliteLedger::trained(const GroupId& group_id, std::int64_t timeline, std::int64_t window, std::int64_t step,
                           const std::vector<FailedSample>& failed) {
  sqlite::Transaction transaction(db_);
  Group group = find_group(group_id);
  check_newest(group, timeline, "trained");
  if (window >= 0 && window < group.trained_windows) {
    sqlite::Query before = db_.query("SELECT timeline, step FROM window WHERE consumer = ?1 AND number = ?2", group.id, window);
    before.step();
    if (before.integer(0) == timeline && before.integer(1) == step) return;  // said before
    throw Conflict(fmt::format("window {} of group '{}' was trained at step {} of timeline {}, not at step {} of timeline {}",
                               window, printable(group.name), before.integer(1), before.integer(0), step, timeline));
  }
  if (window != group.trained_windows || window >= group.windows) {
    throw InvalidArgument(
        fmt::format("window {} of group '{}' cannot be trained now: {} windows are dealt and the next to train is {}", window,
                    printable(group.name), group.windows, group.trained_windows));
  }
  if (step <= group.trained_step) {
    throw InvalidArgument(
        fmt::format("window {} of group '{}' at step {}: step {} is done already, and one step trains one window", window,
                    printable(group.name), step, group.trained_step));
  }
  const std::int64_t marked = mark_failed(group, window, failed);
  db_.run("UPDATE window SET timeline = ?3, step = ?4, failed = ?5 WHERE consumer = ?1 AND number = ?2", group.id, window,
          timeline, step, marked);
  ++group.trained_windows;
  group.trained_step = step;
  group.failed_trained += marked;
  save(group);
  transaction.commit();
}

std::vector<std::string> SqliteLedger::trained_ids() {
  std::vector<std::string> ids;
  sqlite::Query query = db_.query(
      "SELECT sample.sample_id FROM consumer"
      " JOIN window_ref ON window_ref.consumer = consumer.id AND window_ref.window < consumer.trained_windows"
      " JOIN sample ON sample.row = window_ref.row WHERE consumer.id = 1 AND window_ref.reason IS NULL"
      " ORDER BY window_ref.window, window_ref.position");
  while (query.step()) ids.push_back(query.text(0));
  return ids;
}

// --- checkpoints and what they let go

void SqliteLedger::record_checkpoint(const Group& group, std::int64_t timeline, std::int64_t step) {
  db_.run("INSERT OR IGNORE INTO checkpoint(consumer, timeline, step) VALUES (?1, ?2, ?3)", group.id, timeline, step);
}

// The windows that each of the newest resumable checkpoints holds.
std::int64_t SqliteLedger::releasable_windows(const Group& group) {
  const std::optional<std::int64_t> oldest = db_.find(
      "SELECT DISTINCT step FROM checkpoint WHERE consumer = ?1 AND abandoned = 0 ORDER BY step DESC LIMIT 1 OFFSET ?2",
      group.id, group.resumable_checkpoints - 1);
  return oldest ? windows_through(group, *oldest) : 0;
}

void SqliteLedger::move_release(Group& group, std::int64_t target) {
  if (target > group.released_windows) {
    db_.run(
        "UPDATE sample SET state = 1 WHERE state = 0 AND in_place = 0 AND row IN"
        " (SELECT row FROM window_ref WHERE consumer = ?1 AND window >= ?2 AND window < ?3)",
        group.id, group.released_windows, target);
  } else if (target < group.released_windows) {
    db_.run(
        "UPDATE sample SET state = 0 WHERE state = 1 AND row IN"
        " (SELECT row FROM window_ref WHERE consumer = ?1 AND window >= ?2 AND window < ?3)",
        group.id, target, group.released_windows);
  }
  group.released_windows = target;
}

void SqliteLedger::checkpointed(const GroupId& group_id, std::int64_t timeline, std::int64_t step) {
  sqlite::Transaction transaction(db_);
  Group group = find_group(group_id);
  check_newest(group, timeline, "checkpointed");
  if (step < 0 || step > group.trained_step) {
    throw InvalidArgument(
        fmt::format("checkpoint at step {} of timeline {}, group '{}': the newest trained step is {}; write a "
                    "checkpoint after its step is acknowledged",
                    step, timeline, printable(group.name), group.trained_step));
  }
  const std::int64_t first_step =
      db_.find("SELECT first_step FROM timeline WHERE consumer = ?1 AND number = ?2", group.id, timeline).value_or(0);
  if (step < first_step) {
    throw InvalidArgument(fmt::format("checkpoint at step {} of timeline {}, group '{}': the timeline starts at step {}", step,
                                      timeline, printable(group.name), first_step));
  }
  record_checkpoint(group, timeline, step);
  if (step > group.durable_step) {
    const std::int64_t through = windows_through(group, step);
    const std::int64_t failed = db_.find("SELECT SUM(failed) FROM window WHERE consumer = ?1 AND number >= ?2 AND number < ?3",
                                         group.id, group.durable_windows, through)
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
