// SPDX-License-Identifier: Apache-2.0
//
// Timelines: how the ranks of a launch enter, and what a resume takes back.
#include <algorithm>
#include <utility>

#include "ledger/memory/memory_ledger.h"

namespace draftflow {

using memory::Timeline;

void MemoryLedger::check_on_line(const Group& group, const CheckpointMark& mark) {
  if (mark.ledger_id != books_->id) throw refusals::of_other_ledger(mark, books_->id, books_->name);
  if (mark.group.str() != group.name) throw refusals::of_other_group(mark, group.name);
  std::string line;
  std::int64_t limit = group.windows.trained_step;
  for (std::int64_t number = group.windows.timeline(); number > 0;) {
    const Timeline& timeline = group.windows.timelines[static_cast<std::size_t>(number - 1)];
    if (number == mark.timeline && mark.step >= timeline.first_step && mark.step <= limit) return;
    refusals::add_to_line(line, number, timeline.first_step, limit);
    limit = std::min(limit, timeline.first_step);
    number = timeline.parent;
  }
  throw refusals::off_the_line(mark, books_->name, line);
}

// How many samples trained after the checkpoint have lost their bytes: 0, unless the request accepts that.
std::int64_t MemoryLedger::check_bytes_are_there(const Group& group, std::int64_t keep, const TimelineRequest& request) {
  std::int64_t lost = 0;
  for (std::int64_t number = keep; number < group.windows.dealt(); ++number) {
    lost += group.windows.windows[static_cast<std::size_t>(number)].going;
  }
  if (lost == 0 || (request.accept_loss && group.config.passes == 1)) return lost;
  throw refusals::bytes_lost(group.name, group.config.passes, request, lost, group.windows.durable_step);
}

void MemoryLedger::rewind(Group& group, std::int64_t keep, std::int64_t step) {
  auto& windows = group.windows;
  windows.reasons.erase(windows.reasons.lower_bound(static_cast<std::uint64_t>(windows.first_of(keep))), windows.reasons.end());
  std::int64_t failed = 0;
  for (std::int64_t number = keep; number < windows.dealt(); ++number) {
    memory::Window& window = windows.windows[static_cast<std::size_t>(number)];
    failed += window.failed;
    window = {.refs_through = window.refs_through, .going = window.going};
  }
  // Everything kept is in the checkpoint, so it is durable.
  windows.failed_durable += std::exchange(windows.failed_trained, 0) - failed;
  windows.trained_windows = windows.durable_windows = keep;
  windows.trained_step = windows.durable_step = std::max<std::int64_t>(step, 0);
}

// Of the windows from `keep` on: what has lost its bytes is dropped, and the rest waits to be dealt again, in order.
void MemoryLedger::drop_lost(Group& group, std::int64_t keep) {
  auto& windows = group.windows;
  const auto kept = static_cast<std::size_t>(windows.first_of(keep));
  for (std::size_t at = kept; at < windows.rows.size(); ++at) {
    if (books_->samples[windows.rows[at]].state < kGoing) continue;
    windows.dropped_rows.insert(windows.rows[at]);
    ++group.dropped;
  }
  if (kept < windows.rows.size()) windows.next_row = windows.rows[kept];
  windows.rows.resize(kept);
  windows.windows.resize(static_cast<std::size_t>(keep));
  group.available = 0;
  for_each_undealt(group, [&](std::int64_t row) { group.available += books_->samples[row].state == kNeeded ? 1 : 0; });
}

std::optional<TimelineInfo> MemoryLedger::find_launch(const Group& group, const TimelineRequest& request) {
  const auto& windows = group.windows;
  const auto launch = request.launch.empty() ? windows.launches.end() : windows.launches.find(request.launch);
  if (launch == windows.launches.end()) return std::nullopt;
  const std::int64_t number = launch->second;
  if (number != windows.timeline()) throw refusals::launch_ended(request, windows.timeline(), number);
  const Timeline& timeline = windows.timelines.back();
  const std::int64_t parent = request.resume ? request.resume->timeline : 0, step = request.resume ? request.resume->step : 0;
  if (timeline.parent != parent || timeline.first_step != step) {
    throw refusals::other_checkpoint(request, timeline.parent, timeline.first_step);
  }
  if (timeline.width != request.width) throw refusals::other_width(request, timeline.width);
  const auto entered = windows.ranks.find(request.rank);
  if (entered != windows.ranks.end() && entered->second != self_) throw refusals::entered_before(request, number);
  return TimelineInfo{.number = number,
                      .first_step = timeline.first_step,
                      .first_window = timeline.first_window,
                      .lost = timeline.lost,
                      .ledger_id = books_->id};
}

TimelineInfo MemoryLedger::open_timeline(const TimelineRequest& request) {
  check_ranks(request);
  const std::lock_guard lock(books_->mutex);
  Group& group = find_windows(request.group, "open_timeline");
  auto& windows = group.windows;
  if (!group.open) throw refusals::closed_for_good(group.name);
  if (group.config.window % request.width != 0) throw refusals::uneven(group.name, request.width, group.config.window);
  if (auto joined = find_launch(group, request)) {
    windows.ranks.emplace(request.rank, self_);
    return *joined;
  }
  if (request.resume) check_on_line(group, *request.resume);
  const std::int64_t step = request.resume ? request.resume->step : -1;
  const std::int64_t keep = windows_through(group, step);
  const std::int64_t lost = check_bytes_are_there(group, keep, request);
  TimelineInfo info{.first_window = keep, .lost = lost, .ledger_id = books_->id};
  make_whole([&] {
    if (request.resume) windows.checkpoints.insert(step);
    windows.checkpoints.erase(windows.checkpoints.upper_bound(step), windows.checkpoints.end());
    rewind(group, keep, step);
    move_release(group, releasable_windows(group));
    if (lost > 0) drop_lost(group, keep);
    info.first_step = windows.trained_step;
    windows.timelines.push_back({.parent = request.resume ? request.resume->timeline : 0,
                                 .first_step = info.first_step,
                                 .first_window = keep,
                                 .width = request.width,
                                 .lost = lost,
                                 .launch = request.launch});
    info.number = windows.timeline();
    if (!request.launch.empty()) windows.launches[request.launch] = info.number;
    windows.ranks = {{request.rank, self_}};
  });
  return info;
}

}  // namespace draftflow
