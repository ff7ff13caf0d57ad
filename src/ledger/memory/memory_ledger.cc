// SPDX-License-Identifier: Apache-2.0
#include "ledger/memory/memory_ledger.h"

#include <algorithm>
#include <utility>

#include "draftflow/base/interrupt.h"

namespace draftflow {

using memory::Group;

MemoryLedger::MemoryLedger(std::shared_ptr<MemoryBooks> books, LedgerClock clock)
    : books_(std::move(books)), clock_(std::move(clock)), self_([this] {
        const std::lock_guard lock(books_->mutex);
        return ++books_->ledgers;
      }()) {
  const std::lock_guard lock(books_->mutex);
  if (books_->boot_id == clock_.boot_id) return;
  if (!books_->boot_id.empty()) make_whole([&] { end_leases_of_earlier_boots(); });
  books_->boot_id = clock_.boot_id;
}

// Its clock began anew. A lease that ran out before still names its token, so that a late commit can use it: not across a boot.
void MemoryLedger::end_leases_of_earlier_boots() {
  while (!books_->holds.empty())
    end_lease(books_->holds.begin()->first, books_->prompts[books_->holds.begin()->first].ended_token);
  for (Group& group : books_->groups) {
    for (const memory::LeaseNumber number : group.queue.leases.all()) give_back(group, number, /*ended=*/false);
    for (std::int64_t row = group.queue.first_row; row < group.queue.end_row; ++row) group.queue.refs[row].token = 0;
  }
}

void MemoryLedger::declare(const std::string& key, const std::string& value) {
  check_fact(key, value);
  const std::lock_guard lock(books_->mutex);
  const auto [found, is_new] = books_->facts.emplace(key, value);
  if (found->second != value) throw refusals::other_fact(books_->name, key, found->second, value);
  if (is_new) note_change();
}

void MemoryLedger::note_change() noexcept {
  if (seen_ == books_->changes) ++seen_;  // an object does not wake itself
  ++books_->changes;
  books_->changed.notify_all();
}

bool MemoryLedger::wait(std::int64_t timeout_ms) {
  const auto end = wait_end(timeout_ms);
  for (;;) {
    check_interrupt();
    std::unique_lock lock(books_->mutex);
    if (seen_ == books_->changes) {
      const auto part = until_next_check(end);
      if (part.count() == 0) return false;
      books_->changed.wait_for(lock, part);
      continue;
    }
    lock.unlock();
    if (!pace_.may_wake(end)) return false;
    lock.lock();
    seen_ = books_->changes;
    return true;
  }
}

std::optional<std::string> MemoryLedger::declared(const std::string& key) {
  const std::lock_guard lock(books_->mutex);
  const auto found = books_->facts.find(key);
  if (found == books_->facts.end()) return std::nullopt;
  return found->second;
}

void MemoryLedger::add_token_counts(const TokenSums& sums) {
  for (const auto& [token, sum] : sums.all()) {
    TokenCount& known = books_->token_counts.try_emplace(token, TokenCount{token, 0, sum.first_row}).first->second;
    known.count += sum.count;
    known.first_row = std::min(known.first_row, sum.first_row);
  }
}

std::vector<TokenCount> MemoryLedger::token_counts() {
  const std::lock_guard lock(books_->mutex);
  std::vector<TokenCount> counts;
  counts.reserve(books_->token_counts.size());
  for (const auto& [token, sum] : books_->token_counts) counts.push_back(sum);
  return counts;
}

bool MemoryLedger::prompts_finished() const {
  return books_->prompts_closed && books_->pending == 0 && books_->leased == 0;
}

namespace {

GroupStatus status_of(const Group& group) {
  GroupStatus status;
  status.group = group.name;
  status.kind = group.config.kind;
  status.window = group.config.window;
  status.max_window_tokens = group.config.max_window_tokens;
  status.open = group.open;
  status.available = group.available;
  status.dropped = group.dropped;
  const auto& windows = group.windows;
  status.timeline = windows.timeline();
  status.width = windows.width();
  if (group.is_queue()) {
    status.leased = group.queue.leased;
    status.durable = group.queue.acked;
    status.failed = static_cast<std::int64_t>(group.queue.failed.size());
    status.pinned = group.open ? group.available + group.queue.leased : 0;
    return status;
  }
  const std::int64_t trained = windows.first_of(windows.trained_windows), durable = windows.first_of(windows.durable_windows);
  status.windowed = windows.first_of(windows.dealt()) - trained;
  status.trained = trained - durable - windows.failed_trained;
  status.durable = durable - windows.failed_durable;
  status.failed = windows.failed_trained + windows.failed_durable;
  status.trained_step = windows.trained_step;
  status.durable_step = windows.durable_step;
  status.pinned =
      group.open ? group.available + windows.first_of(windows.first_pass()) - windows.first_of(windows.released_windows) : 0;
  status.passes = group.config.passes;
  return status;
}

}  // namespace

LedgerStatus MemoryLedger::status() {
  const std::lock_guard lock(books_->mutex);
  LedgerStatus status;
  status.ledger_id = books_->id;
  if (const auto run = books_->facts.find("run_id"); run != books_->facts.end()) status.run_id = run->second;
  status.prompts = books_->prompt_count;
  status.prompts_pending = books_->pending;
  status.prompts_leased = books_->leased;
  status.prompts_done = books_->done;
  status.prompts_failed = static_cast<std::int64_t>(books_->failed_prompts.size());
  status.prompts_closed = books_->prompts_closed;
  status.committed = books_->committed;
  status.freed = books_->freed;
  status.resident_bytes = static_cast<std::uint64_t>(books_->resident_bytes);
  status.committed_tokens = books_->committed_tokens;
  for (const Group& group : books_->groups) status.groups.push_back(status_of(group));
  return status;
}

std::shared_ptr<MemoryBooks> make_memory_ledger() {
  return std::make_shared<MemoryBooks>();
}

std::unique_ptr<Ledger> open_memory_ledger(std::shared_ptr<MemoryBooks> books, LedgerClock clock) {
  if (!books) throw InvalidArgument("a ledger in memory is opened without its books: make_memory_ledger() makes them");
  return std::make_unique<MemoryLedger>(std::move(books), std::move(clock));
}

std::unique_ptr<Ledger> open_memory_ledger(std::shared_ptr<MemoryBooks> books) {
  return open_memory_ledger(std::move(books), boot_clock());
}

}  // namespace draftflow
