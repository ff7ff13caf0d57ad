// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "ledger/memory/memory_ledger.h"

namespace draftflow {

using memory::Group;

namespace {

void check_same(const Group& group, const GroupConfig& config, const std::string& ledger) {
  if (!group.open) throw refusals::declared_closed(group.name, ledger);
  if (group.config.kind != config.kind) throw refusals::other_kind(group.name, group.config.kind, config.kind);
  if (group.is_queue()) return;
  if (group.config.window != config.window) throw refusals::other_window(group.name, group.config.window, config.window);
  if (group.config.max_window_tokens != config.max_window_tokens) {
    throw refusals::other_cap(group.name, group.config.max_window_tokens, config.max_window_tokens);
  }
  if (group.config.tail != config.tail) throw refusals::other_tail(group.name, group.config.tail, config.tail);
  if (group.config.passes != config.passes) throw refusals::other_passes(group.name, group.config.passes, config.passes);
}

}  // namespace

void MemoryLedger::declare_group(const GroupConfig& config) {
  check_config(config);
  const std::lock_guard lock(books_->mutex);
  if (const auto known = books_->group_names.find(config.group.str()); known != books_->group_names.end()) {
    Group& group = *known->second;
    check_same(group, config, books_->name);
    group.config.resumable_checkpoints = config.resumable_checkpoints;
    group.config.max_attempts = config.max_attempts;
    return;
  }
  make_whole([&] {
    Group& group = books_->groups.emplace_back();
    group.name = config.group.str();
    group.config = config;
    books_->group_names.emplace(group.name, &group);
    if (group.is_queue()) {
      fill_queue(group);
    } else {
      join_oldest(group);
    }
  });
}

// What was not handed to a sweeper yet is there.
void MemoryLedger::join_oldest(Group& group) {
  group.windows.next_row = books_->committed;
  for (std::int64_t row = 0; row < books_->committed; ++row) {
    if (books_->samples[row].state >= kGoing) continue;
    group.windows.next_row = std::min(group.windows.next_row, row);
    ++group.available;
    claim(row);
  }
}

void MemoryLedger::close_group(const GroupId& group_id) {
  const std::lock_guard lock(books_->mutex);
  Group& group = find_group(group_id);
  if (!group.open) return;
  make_whole([&] {
    if (group.is_queue()) {
      empty_queue(group);
    } else {
      auto& windows = group.windows;
      const std::int64_t end = windows.first_of(windows.first_pass());
      for (std::int64_t at = windows.first_of(windows.released_windows); at < end; ++at) {
        end_claim(windows.rows[static_cast<std::size_t>(at)]);
      }
      for_each_undealt(group, [&](std::int64_t row) { end_claim(row); });
      windows.released_windows = windows.first_pass();
    }
    group.open = false;
    group.available = 0;
  });
}

std::vector<FailedSample> MemoryLedger::failed_refs(const GroupId& group_id, int limit) {
  const std::lock_guard lock(books_->mutex);
  const Group& group = find_group(group_id);
  std::vector<FailedSample> failed;
  const auto add = [&](std::int64_t row, const std::string& reason) {
    if (static_cast<std::int64_t>(failed.size()) >= limit) return false;
    failed.push_back({.sample_id = books_->samples[row].ref.sample_id, .reason = reason});
    return true;
  };
  for (const auto& [row, reason] : group.queue.failed) {
    if (!add(row, reason)) break;
  }
  const auto trained = static_cast<std::uint64_t>(group.windows.first_of(group.windows.trained_windows));
  for (const auto& [place, reason] : group.windows.reasons) {
    if (place >= trained || !add(group.windows.rows[place], reason)) break;
  }
  return failed;
}

Group& MemoryLedger::find_group(const GroupId& group) {
  const auto found = books_->group_names.find(group.str());
  if (found == books_->group_names.end()) throw refusals::undeclared(group, books_->name);
  return *found->second;
}

Group& MemoryLedger::find_windows(const GroupId& group, const char* verb) {
  Group& found = find_group(group);
  if (found.is_queue()) throw refusals::is_queue(verb, found.name);
  return found;
}

Group& MemoryLedger::find_queue(const GroupId& group, const char* verb) {
  Group& found = find_group(group);
  if (!found.is_queue()) throw refusals::is_windows(verb, found.name);
  return found;
}

Group& MemoryLedger::find_open_queue(const GroupId& group, const char* verb) {
  Group& found = find_queue(group, verb);
  if (!found.open) throw refusals::group_closed(verb, found.name);
  return found;
}

void MemoryLedger::check_newest(const Group& group, std::int64_t timeline, const char* verb) {
  if (!group.open) throw refusals::timeline_closed(verb, timeline, group.name);
  const std::int64_t newest = group.windows.timeline();
  if (timeline != newest || timeline == 0) throw refusals::not_newest(verb, timeline, group.name, newest);
}

}  // namespace draftflow
