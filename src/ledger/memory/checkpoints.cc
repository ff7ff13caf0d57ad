// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints and what they let go.
#include <algorithm>
#include <iterator>
#include <utility>

#include "ledger/memory/memory_ledger.h"

namespace draftflow {

// How many windows, from the first on, were trained at or before the step.
std::int64_t MemoryLedger::windows_through(const Group& group, std::int64_t step) {
  const auto& windows = group.windows.windows;
  const auto end = windows.begin() + group.windows.trained_windows;
  const auto after = std::upper_bound(windows.begin(), end, step,
                                      [](std::int64_t value, const memory::Window& window) { return value < window.step; });
  return after - windows.begin();
}

// The windows of the first pass that each of the newest resumable checkpoints holds for the last time.
std::int64_t MemoryLedger::releasable_windows(const Group& group) {
  const auto& steps = group.windows.checkpoints;
  const auto most = static_cast<std::size_t>(group.config.resumable_checkpoints);
  if (steps.size() < most || (group.config.passes > 1 && group.windows.pass_windows == 0)) return 0;
  const std::int64_t through = windows_through(group, *std::next(steps.rbegin(), static_cast<std::ptrdiff_t>(most) - 1));
  return std::max<std::int64_t>(through - (group.config.passes - 1) * group.windows.pass_windows, 0);
}

// Ends the group's claims on the samples of newly released windows, or makes them anew.
void MemoryLedger::move_release(Group& group, std::int64_t target) {
  auto& windows = group.windows;
  const std::int64_t released = windows.first_of(windows.released_windows), wanted = windows.first_of(target);
  for (std::int64_t at = released; at < wanted; ++at) {
    end_claim(windows.rows[static_cast<std::size_t>(at)]);
  }
  for (std::int64_t at = wanted; at < released; ++at) {
    const std::int64_t row = windows.rows[static_cast<std::size_t>(at)];
    if (books_->samples[row].state < kGoing) claim(row);
  }
  windows.released_windows = target;
}

void MemoryLedger::checkpointed(const GroupId& group_id, std::int64_t timeline, std::int64_t step) {
  const std::lock_guard lock(books_->mutex);
  Group& group = find_windows(group_id, "checkpointed");
  auto& windows = group.windows;
  check_newest(group, timeline, "checkpointed");
  if (step < 0 || step > windows.trained_step) throw refusals::not_trained(step, timeline, group.name, windows.trained_step);
  const std::int64_t first_step = windows.timelines.back().first_step;
  if (step < first_step) throw refusals::before_timeline(step, timeline, group.name, first_step);
  make_whole([&] {
    windows.checkpoints.insert(step);
    if (step > windows.durable_step) {
      const std::int64_t through = windows_through(group, step);
      for (std::int64_t number = windows.durable_windows; number < through; ++number) {
        const std::int64_t failed = windows.windows[static_cast<std::size_t>(number)].failed;
        windows.failed_trained -= failed;
        windows.failed_durable += failed;
      }
      windows.durable_step = step;
      windows.durable_windows = std::max(windows.durable_windows, through);
    }
    move_release(group, std::max(windows.released_windows, releasable_windows(group)));
  });
}

}  // namespace draftflow
