// SPDX-License-Identifier: Apache-2.0
//
// Windows: dealt in commit order, read by the ranks of a timeline, trained in the order of their numbers.
#include <algorithm>
#include <utility>

#include "draftflow/base/text.h"
#include "ledger/memory/memory_ledger.h"

namespace draftflow {

// Samples that wait in no window of the group.
void MemoryLedger::for_each_undealt(const Group& group, const std::function<void(std::int64_t row)>& visit) {
  for (std::int64_t row = group.windows.next_row; row < books_->committed; ++row) {
    if (!group.windows.dropped_rows.contains(row)) visit(row);
  }
}

// The rows of the next window, or none while it is not known to be full.
std::vector<std::uint32_t> MemoryLedger::find_next_window(const Group& group) const {
  const std::int64_t size = group.config.window, cap = group.config.max_window_tokens;
  std::vector<std::uint32_t> rows;
  if (group.available == 0 || group.windows.pass_windows > 0 || (cap == 0 && group.available < size)) return rows;
  WindowMeasure measure(size, cap);
  rows.reserve(static_cast<std::size_t>(std::min(size, group.available)));
  for (std::int64_t row = group.windows.next_row, left = group.available; left > 0; ++row) {
    if (row == books_->committed)
      throw Corrupt("group '" + printable(group.name) + "' has fewer samples to deal than it counts");
    if (books_->samples[row].state != kNeeded || group.windows.dropped_rows.contains(row)) continue;
    const bool full = measure.add(books_->samples[row].ref.tokens);
    if (measure.refs() > static_cast<std::int64_t>(rows.size())) rows.push_back(static_cast<std::uint32_t>(row));
    if (full) return rows;
    --left;
  }
  return {};
}

void MemoryLedger::drop_tail(Group& group) {
  if (group.windows.windows.empty()) {
    throw refusals::no_step(group.name, group.available, group.config.window, group.config.max_window_tokens);
  }
  make_whole([&] {
    std::vector<std::int64_t> rows;
    for_each_undealt(group, [&](std::int64_t row) { rows.push_back(row); });
    for (const std::int64_t row : rows) end_claim(row);
    group.windows.dropped_rows.insert(rows.begin(), rows.end());
    group.windows.next_row = books_->committed;
    group.dropped += std::exchange(group.available, 0);
  });
}

// The window of the first pass that is next in this one.
void MemoryLedger::deal_again(Group& group) {
  auto& windows = group.windows;
  if (windows.pass_windows == 0) windows.pass_windows = windows.dealt();
  const std::int64_t original = windows.dealt() % windows.pass_windows;
  const std::int64_t first = windows.first_of(original), end = windows.first_of(original + 1);
  windows.rows.reserve(windows.rows.size() + static_cast<std::size_t>(end - first));
  for (std::int64_t at = first; at < end; ++at) windows.rows.push_back(windows.rows[static_cast<std::size_t>(at)]);
  windows.windows.push_back({.refs_through = static_cast<std::int64_t>(windows.rows.size())});
}

Window MemoryLedger::load_window(const Group& group, std::int64_t number, const WindowShare& share) {
  Window window{.number = number, .refs = {}};
  const std::int64_t first = group.windows.first_of(number), end = group.windows.first_of(number + 1);
  for (std::int64_t at = first + share.rank; at < end; at += share.width) {
    const std::int64_t row = group.windows.rows[static_cast<std::size_t>(at)];
    window.refs.push_back(books_->samples[row].ref.unpack());
  }
  return window;
}

WindowAnswer MemoryLedger::read_window(const GroupId& group_id, std::int64_t timeline, std::int64_t number,
                                       const WindowShare& share) {
  const std::lock_guard lock(books_->mutex);
  Group& group = find_windows(group_id, "read_window");
  auto& windows = group.windows;
  check_newest(group, timeline, "read_window");
  if (share.width != windows.width() || share.rank < 0 || share.rank >= share.width) {
    throw refusals::not_the_share(share, timeline, group.name, windows.width());
  }
  if (number < 0 || number > windows.dealt()) throw refusals::not_dealt(number, group.name, windows.dealt());
  if (number == windows.dealt()) {
    const std::vector<std::uint32_t> rows = find_next_window(group);
    if (rows.empty()) {
      if (!prompts_finished()) return {};
      if (group.available > 0 && group.config.tail == TailPolicy::kDrop) drop_tail(group);
      if (!group.has_passes_left()) return {.state = WindowState::kEndOfStream, .window = std::nullopt};
      make_whole([&] { deal_again(group); });
      return {.state = WindowState::kWindow, .window = load_window(group, number, share)};
    }
    make_whole([&] {
      windows.rows.insert(windows.rows.end(), rows.begin(), rows.end());
      windows.windows.push_back({.refs_through = static_cast<std::int64_t>(windows.rows.size())});
      windows.next_row = std::int64_t{rows.back()} + 1;
      group.available -= static_cast<std::int64_t>(rows.size());
    });
  }
  return {.state = WindowState::kWindow, .window = load_window(group, number, share)};
}

std::optional<std::int64_t> MemoryLedger::find_window_of(const Group& group, std::int64_t row) {
  const auto& rows = group.windows.rows;
  const auto end = rows.begin() + group.windows.first_of(group.windows.first_pass());
  const auto found = std::lower_bound(rows.begin(), end, row);
  if (found == end || *found != row) return std::nullopt;
  const auto& windows = group.windows.windows;
  const auto has_it = [](std::int64_t place, const memory::Window& window) { return place < window.refs_through; };
  return std::upper_bound(windows.begin(), windows.end(), found - rows.begin(), has_it) - windows.begin();
}

// --- trained

// Where in the window what failed is, with the reason as it is kept.
std::vector<std::pair<std::uint64_t, std::string>> MemoryLedger::find_places(const Group& group, std::int64_t window,
                                                                             const std::vector<FailedSample>& failed) {
  std::vector<std::pair<std::uint64_t, std::string>> places;
  const auto& rows = group.windows.rows;
  const auto first = rows.begin() + group.windows.first_of(window), end = rows.begin() + group.windows.first_of(window + 1);
  for (const FailedSample& one : failed) {
    const std::int64_t row = find_sample(one.sample_id.str());
    const auto found = std::lower_bound(first, end, row);
    if (row < 0 || found == end || *found != row) throw refusals::not_in_window(one.sample_id, window, group.name);
    places.emplace_back(found - rows.begin(), printable(one.reason, kMaxReasonBytes));
  }
  return places;
}

std::int64_t MemoryLedger::count_failed(const Group& group, std::int64_t window) {
  const auto& reasons = group.windows.reasons;
  return std::distance(reasons.lower_bound(static_cast<std::uint64_t>(group.windows.first_of(window))),
                       reasons.lower_bound(static_cast<std::uint64_t>(group.windows.first_of(window + 1))));
}

void MemoryLedger::report_failed(const GroupId& group_id, std::int64_t timeline, std::int64_t window,
                                 const std::vector<FailedSample>& failed) {
  if (failed.empty()) return;
  const std::lock_guard lock(books_->mutex);
  Group& group = find_windows(group_id, "report_failed");
  check_newest(group, timeline, "report_failed");
  if (window < group.windows.trained_windows || window >= group.windows.dealt()) {
    throw refusals::failed_too_late(window, group.name, group.windows.trained_windows, group.windows.dealt());
  }
  auto places = find_places(group, window, failed);
  make_whole([&] {
    for (auto& place : places) group.windows.reasons.insert(std::move(place));
  });
}

void MemoryLedger::trained(const GroupId& group_id, std::int64_t timeline, std::int64_t window, std::int64_t step,
                           const std::vector<FailedSample>& failed) {
  const std::lock_guard lock(books_->mutex);
  Group& group = find_windows(group_id, "trained");
  auto& windows = group.windows;
  check_newest(group, timeline, "trained");
  if (window >= 0 && window < windows.trained_windows) {
    const memory::Window& before = windows.windows[static_cast<std::size_t>(window)];
    if (before.timeline == timeline && before.step == step) return;  // said before
    throw refusals::trained_before(window, group.name, before.step, before.timeline, step, timeline);
  }
  if (window != windows.trained_windows || window >= windows.dealt()) {
    throw refusals::not_the_next(window, group.name, windows.dealt(), windows.trained_windows);
  }
  if (step <= windows.trained_step) throw refusals::step_is_done(window, group.name, step, windows.trained_step);
  auto places = find_places(group, window, failed);
  make_whole([&] {
    for (auto& place : places) windows.reasons.insert(std::move(place));
    memory::Window& now = windows.windows[static_cast<std::size_t>(window)];
    now.timeline = timeline;
    now.step = step;
    now.failed = static_cast<std::int32_t>(count_failed(group, window));
    ++windows.trained_windows;
    windows.trained_step = step;
    windows.failed_trained += now.failed;
  });
}

std::vector<std::string> MemoryLedger::trained_ids(const GroupId& group_id) {
  const std::lock_guard lock(books_->mutex);
  std::vector<std::string> ids;
  const auto known = books_->group_names.find(group_id.str());
  if (known == books_->group_names.end()) return ids;
  const Group& group = *known->second;
  for (std::int64_t row = group.queue.first_row; row < group.queue.end_row; ++row) {
    if (group.queue.refs[row].state == kAcked) ids.push_back(id_of(row));
  }
  const auto trained = static_cast<std::uint64_t>(group.windows.first_of(group.windows.trained_windows));
  auto failed = group.windows.reasons.begin();
  for (std::uint64_t place = 0; place < trained; ++place) {
    if (failed != group.windows.reasons.end() && failed->first == place) {
      ++failed;
    } else {
      ids.push_back(id_of(group.windows.rows[place]));
    }
  }
  return ids;
}

}  // namespace draftflow
