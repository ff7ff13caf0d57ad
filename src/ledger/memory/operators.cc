// SPDX-License-Identifier: Apache-2.0
//
// What a person does by hand while a run goes on: who holds what, prompts tried again or given up, samples dropped.
#include <algorithm>
#include <utility>

#include "draftflow/base/text.h"
#include "ledger/memory/memory_ledger.h"

namespace draftflow {

using memory::Prompt;
using memory::QueueRef;

namespace {

// Leases by holder, as one asks for them at `now`.
class Holders {
 public:
  Holders(const MemoryBooks& books, std::int64_t now) : books_(books), now_(now) {}

  void add(const std::string& holder, std::int64_t count, std::int64_t expires_ms) {
    const auto [at, first] = by_holder_.try_emplace(holder, HolderLeases{.holder = holder});
    HolderLeases& one = at->second;
    one.count += count;
    if (books_.ran_out(expires_ms, now_)) one.expired += count;
    one.expires_in_ms = first ? expires_ms - now_ : std::max(one.expires_in_ms, expires_ms - now_);
  }
  void tell(const std::string& group, std::vector<HolderLeases>& all) && {
    for (auto& [holder, one] : by_holder_) {
      one.group = group;
      all.push_back(std::move(one));
    }
  }

 private:
  const MemoryBooks& books_;
  const std::int64_t now_;
  std::map<std::string, HolderLeases> by_holder_;
};

}  // namespace

std::vector<HolderLeases> MemoryLedger::leases() {
  const std::lock_guard lock(books_->mutex);
  const std::int64_t now = clock_.now_ms();
  std::vector<HolderLeases> all;
  Holders prompts(*books_, now);
  for (const auto& [holder, rows] : books_->prompt_holders) {
    for (const std::int64_t row : rows) prompts.add(holder, 1, books_->holds.at(row).expires_ms);
  }
  std::move(prompts).tell("", all);
  for (const Group& group : books_->groups) {
    Holders refs(*books_, now);
    for (const memory::LeaseNumber number : group.queue.leases.all()) {
      const memory::RefLeaseOf& lease = group.queue.leases.of(number);
      refs.add(lease.holder, static_cast<std::int64_t>(lease.held), lease.expires_ms);
    }
    std::move(refs).tell(group.name, all);
  }
  return all;
}

// --- prompts

std::int64_t MemoryLedger::retry_prompts(const std::vector<TaskId>& ids) {
  const std::lock_guard lock(books_->mutex);
  std::int64_t again = 0;
  make_whole([&] {
    for (const TaskId& id : ids) {
      const std::int64_t row = find_prompt_row(id.str());
      if (row < 0 || books_->prompts[row].state != kPromptFailed) continue;
      Prompt& prompt = books_->prompts[row];
      prompt.state = kPending;
      prompt.attempts = 0;
      // An expiry is not forgotten: who held the prompt then may still be writing (PromptLease::taken_over).
      prompt.expiries = std::min<std::int16_t>(prompt.expiries, 1);
      books_->failed_prompts.erase(row);
      books_->pending_prompts.insert(row);
      ++books_->pending;
      ++again;
    }
  });
  return again;
}

// False if it has failed before, or does when it is taken back from a lease that ran out.
bool MemoryLedger::may_drop_prompt(std::int64_t row, std::int64_t now) const {
  const Prompt& prompt = books_->prompts[row];
  if (prompt.state == kDone) throw refusals::undroppable_prompt(prompt.task_id, kDone, "");
  if (prompt.state != kLeased) return prompt.state == kPending;
  const memory::PromptHold& hold = books_->holds.at(row);
  if (!books_->ran_out(hold.expires_ms, now)) throw refusals::undroppable_prompt(prompt.task_id, kLeased, hold.holder);
  return prompt.expiries + 1 < kMaxExpiries;
}

std::int64_t MemoryLedger::drop_prompts(const std::vector<TaskId>& ids, const std::string& reason, bool dry_run) {
  const std::lock_guard lock(books_->mutex);
  const std::int64_t now = clock_.now_ms();
  std::set<std::int64_t> rows;
  for (const TaskId& id : ids) {
    const std::int64_t row = find_prompt_row(id.str());
    if (row < 0) throw refusals::no_prompt_to_drop(id.str(), books_->name);
    if (may_drop_prompt(row, now)) rows.insert(row);
  }
  if (dry_run) return static_cast<std::int64_t>(rows.size());
  const std::string why = printable(reason, kMaxReasonBytes);
  make_whole([&] {
    take_back_expired(now);
    for (const std::int64_t row : rows) {
      end_lease(row, books_->prompts[row].ended_token);
      books_->prompts[row].state = kPromptFailed;
      books_->pending_prompts.erase(row);
      --books_->pending;
      books_->failed_prompts[row] = why;
    }
  });
  return static_cast<std::int64_t>(rows.size());
}

// --- samples

// False if the group has dropped it before.
bool MemoryLedger::may_drop_ref(Group& group, const SampleId& id, std::int64_t row, std::int64_t now) {
  if (group.is_queue()) {
    if (group.queue.dropped_rows.contains(row)) return false;
    const QueueRef* const ref = group.queue.find(row);
    if (ref == nullptr) throw refusals::undroppable_ref(id, group.name, -1, "");
    if (ref->state == kAvailable) return true;
    if (ref->state != kRefLeased) throw refusals::undroppable_ref(id, group.name, ref->state, "");
    const memory::RefLeaseOf& lease = group.queue.leases.of(ref->token);
    if (!books_->ran_out(lease.expires_ms, now)) throw refusals::undroppable_ref(id, group.name, kRefLeased, lease.holder);
    return true;
  }
  const auto& windows = group.windows;
  if (windows.dropped_rows.contains(row)) return false;
  if (const auto window = find_window_of(group, row)) {  // of several passes, the first one's
    throw refusals::in_window(id, group.name, *window, *window < windows.trained_windows);
  }
  const bool waits = row >= windows.next_row && books_->samples[row].state == kNeeded;
  if (!waits) throw refusals::never_the_groups(id, group.name);
  return true;
}

void MemoryLedger::drop_ref(Group& group, std::int64_t row) {
  if (group.is_queue()) {
    group.queue.refs[row] = {};
    make_available(group.queue, row, false);
    group.queue.shards.gone();
    group.queue.dropped_rows.insert(row);
  } else {
    group.windows.dropped_rows.insert(row);
  }
  end_claim(row);
  --group.available;
  ++group.dropped;
}

// The reason is kept nowhere: no verb tells it, and there is no export.
std::int64_t MemoryLedger::drop_refs(const GroupId& group_id, const std::vector<SampleId>& ids, const std::string&,
                                     bool dry_run) {
  const std::lock_guard lock(books_->mutex);
  Group& group = find_group(group_id);
  if (!group.open) throw refusals::group_closed("drop_refs", group.name);
  const std::int64_t now = clock_.now_ms();
  std::set<std::int64_t> rows;
  for (const SampleId& id : ids) {
    const std::int64_t row = find_sample(id.str());
    if (row < 0) throw refusals::no_sample_to_drop(id, books_->name);
    if (may_drop_ref(group, id, row, now)) rows.insert(row);
  }
  if (dry_run) return static_cast<std::int64_t>(rows.size());
  make_whole([&] {
    if (group.is_queue()) take_back_expired(group, now);
    for (const std::int64_t row : rows) drop_ref(group, row);
    if (group.is_queue()) group.queue.shards.tidy([&](std::int64_t row) { return group.queue.refs[row].is_gone(); });
  });
  return static_cast<std::int64_t>(rows.size());
}

// --- export, import

void MemoryLedger::export_to(const std::function<void(const std::string& line)>&) {
  throw refusals::no_export(books_->name);
}

void MemoryLedger::import_from(const std::function<std::optional<std::string>()>&) {
  throw refusals::no_export(books_->name);
}

}  // namespace draftflow
