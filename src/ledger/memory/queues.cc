// SPDX-License-Identifier: Apache-2.0
//
// Queues: refs leased in commit order to whoever asks, acked or failed by the token of their lease. A call costs what it gives
// or takes, whatever waits.
#include <algorithm>
#include <utility>

#include "draftflow/base/text.h"
#include "draftflow/ledger/partition.h"
#include "ledger/memory/memory_ledger.h"

namespace draftflow {

using memory::LeaseNumber;
using memory::Queue;
using memory::QueueRef;

// A ref that a lease holds, with the lease's number.
struct MemoryLedger::HeldRef {
  std::int64_t row = 0;
  QueueRef* ref = nullptr;
};

namespace {

// Refs that a call has seen before. The marks go with it.
class Marks {
 public:
  explicit Marks(std::size_t most) { marked_.reserve(most); }
  Marks(const Marks&) = delete;
  Marks& operator=(const Marks&) = delete;
  ~Marks() {
    for (QueueRef* ref : marked_) ref->marked = false;
  }
  void add(QueueRef& ref) {
    marked_.push_back(&ref);
    ref.marked = true;
  }

 private:
  std::vector<QueueRef*> marked_;
};

}  // namespace

// --- what a queue holds

void MemoryLedger::enqueue(Queue& queue, std::int64_t row) {
  if (queue.end_row == 0) queue.first_row = row;
  // A piece of rows between two that were there when the queue was made is written, too, so that any row can be read.
  for (std::int64_t at = std::max(queue.first_row, queue.end_row); at <= row; ++at) queue.refs.write(at) = {};
  queue.end_row = row + 1;
  queue.refs[row].state = kAvailable;
  queue.available.insert(row);
  queue.shards.append(row, id_of(row));
}

// A new queue begins with every sample that was not handed to a sweeper yet.
void MemoryLedger::fill_queue(Group& group) {
  for (std::int64_t row = 0; row < books_->committed; ++row) {
    if (books_->samples[row].state >= kGoing) continue;
    enqueue(group.queue, row);
    ++group.available;
    claim(row);
  }
}

void MemoryLedger::empty_queue(Group& group) {
  Queue& queue = group.queue;
  for (const LeaseNumber number : queue.leases.all()) give_back(group, number, /*ended=*/false);
  for (std::int64_t row = queue.available.next(0); row >= 0; row = queue.available.next(row + 1)) {
    queue.refs[row] = {};
    end_claim(row);
    ++group.dropped;
  }
  queue.available.clear();
  queue.shards.clear();
}

void MemoryLedger::make_available(Queue& queue, std::int64_t row, bool available) {
  available ? queue.available.insert(row) : queue.available.erase(row);
  queue.shards.set_available(row, available);
}

// What the lease still holds is available again; it ended for good, or its token stays with the refs.
void MemoryLedger::give_back(Group& group, LeaseNumber number, bool ended) {
  Queue& queue = group.queue;
  for (const std::int64_t row : queue.leases.take(number).rows) {
    QueueRef& ref = queue.refs[row];
    if (ref.state != kRefLeased || ref.token != number) continue;
    ref.state = kAvailable;
    if (ended) ref.ended_token = std::exchange(ref.token, 0);
    make_available(queue, row, true);
    --queue.leased;
    ++group.available;
  }
}

// An expired lease keeps its token until somebody else takes the ref: its holder may still ack, if only slow.
bool MemoryLedger::take_back_expired(Group& group, std::int64_t now) {
  const auto ran_out = [&](std::int64_t expires_ms) { return books_->ran_out(expires_ms, now); };
  bool any = false;
  while (const LeaseNumber number = group.queue.leases.find_expired(ran_out)) {
    give_back(group, number, /*ended=*/false);
    any = true;
  }
  return any;
}

// --- lease

// The first available refs of the partition, in commit order, at most as many as asked for and as the cap on tokens admits.
std::vector<std::int64_t> MemoryLedger::pick(Group& group, const RefRequest& request) {
  Queue& queue = group.queue;
  const std::size_t limit = std::min(static_cast<std::size_t>(request.max_refs), kMaxRefs);
  const std::int64_t width = request.partition ? request.partition->count : 1;
  if (group.available == 0) return {};
  if (width > kMostIndexed) return pick_filtered(queue, request, limit);
  std::vector<std::int64_t> picked;
  std::int64_t tokens = 0;
  const auto take = [&](std::int64_t row) {
    if (picked.size() == limit) return false;
    if (request.max_tokens > 0) {
      tokens += books_->samples[row].ref.tokens;
      if (!picked.empty() && tokens > request.max_tokens) return false;
    }
    picked.push_back(row);
    return true;
  };
  if (width == 1) {
    for (std::int64_t row = queue.available.next(0); row >= 0 && take(row); row = queue.available.next(row + 1)) {
    }
    return picked;
  }
  const memory::Shard& shard = queue.shards.of(width, request.partition->index, [&](const memory::Shards::Visit& visit) {
    for (std::int64_t row = queue.first_row; row < queue.end_row; ++row) {
      if (!queue.refs[row].is_gone()) visit(row, id_of(row), queue.refs[row].state == kAvailable);
    }
  });
  for (std::int64_t at = shard.available.next(0); at >= 0; at = shard.available.next(at + 1)) {
    if (!take(shard.rows[static_cast<std::size_t>(at)])) break;
  }
  return picked;
}

// Where no index knows the partition: by looking at every available ref.
std::vector<std::int64_t> MemoryLedger::pick_filtered(const Queue& queue, const RefRequest& request, std::size_t limit) const {
  std::vector<std::int64_t> picked;
  std::int64_t tokens = 0;
  for (std::int64_t row = queue.available.next(0); row >= 0; row = queue.available.next(row + 1)) {
    if (dp_partition(id_of(row), request.partition->count) != request.partition->index) continue;
    tokens += books_->samples[row].ref.tokens;
    if (!picked.empty() && request.max_tokens > 0 && tokens > request.max_tokens) break;
    picked.push_back(row);
    if (picked.size() == limit) break;
  }
  return picked;
}

QueueAnswer MemoryLedger::lease_refs(const RefRequest& request) {
  check_request(request);
  const std::lock_guard lock(books_->mutex);
  Group& group = find_open_queue(request.group, "lease_refs");
  Queue& queue = group.queue;
  const std::int64_t now = clock_.now_ms();
  make_whole([&] { return take_back_expired(group, now); });
  const std::vector<std::int64_t> picked = pick(group, request);
  if (picked.empty()) {
    const bool end = group.available == 0 && queue.leased == 0 && prompts_finished();
    return {.state = end ? QueueState::kEndOfStream : QueueState::kEmpty, .leases = {}};
  }
  // Where many wait these lie far from each other: they are fetched together.
  for (const std::int64_t row : picked) {
    const auto* sample = reinterpret_cast<const char*>(&books_->samples[row]);
    for (std::size_t line = 0; line < sizeof(memory::Sample); line += 64) __builtin_prefetch(sample + line);
    __builtin_prefetch(&queue.refs[row], 1);
  }
  for (const std::int64_t row : picked) __builtin_prefetch(books_->samples[row].ref.rest.data());
  const LeaseNumber number = books_->last_lease + 1;
  const std::string token = books_->tokens.text_of(number);
  QueueAnswer answer{.state = QueueState::kRefs, .leases = {}};
  answer.leases.reserve(picked.size());
  for (const std::int64_t row : picked) {
    answer.leases.push_back({.ref = books_->samples[row].ref.unpack(), .token = token, .attempt = queue.refs[row].attempts});
  }
  memory::RefLeaseOf lease{.holder = request.holder.str(), .expires_ms = now + request.lease_ms, .held = picked.size()};
  lease.rows.assign(picked.begin(), picked.end());
  make_whole([&] {
    books_->last_lease = number;
    books_->longest_lease_ms = std::max(books_->longest_lease_ms, request.lease_ms);
    queue.leases.add(number, std::move(lease));
    for (const std::int64_t row : picked) {
      QueueRef& ref = queue.refs[row];
      ref.state = kRefLeased;
      ref.token = number;
      make_available(queue, row, false);
    }
    group.available -= static_cast<std::int64_t>(picked.size());
    queue.leased += static_cast<std::int64_t>(picked.size());
  });
  return answer;
}

void MemoryLedger::extend_refs(const GroupId& group_id, const HolderId& holder, std::int64_t lease_ms) {
  check_lease_ms(lease_ms);
  const std::lock_guard lock(books_->mutex);
  Queue& queue = find_open_queue(group_id, "extend_refs").queue;
  const std::int64_t expires_ms = clock_.now_ms() + lease_ms;
  const std::vector<LeaseNumber> numbers = queue.leases.of_holder(holder.str());
  make_whole([&] {
    books_->longest_lease_ms = std::max(books_->longest_lease_ms, lease_ms);
    for (const LeaseNumber number : numbers) queue.leases.extend(number, expires_ms);
  });
}

void MemoryLedger::return_refs(const GroupId& group_id, const HolderId& holder) {
  const std::lock_guard lock(books_->mutex);
  Group& group = find_queue(group_id, "return_refs");
  const std::vector<LeaseNumber> numbers = group.queue.leases.of_holder(holder.str());
  make_whole([&] {
    for (const LeaseNumber number : numbers) give_back(group, number, /*ended=*/true);
  });
}

// --- ack, fail

void MemoryLedger::throw_lost(const Group& group, const RefLease& lease, const QueueRef& ref, int state) {
  throw refusals::lost_ref(lease, group.name, state, state == kRefLeased ? group.queue.leases.of(ref.token).holder : "");
}

// The refs that these leases hold, each once; those whose lease ended by the same call before are left out. Conflict if one is
// lost.
std::vector<MemoryLedger::HeldRef> MemoryLedger::find_held(Group& group, const std::vector<RefLease>& leases, bool to_ack) {
  std::vector<HeldRef> held;
  held.reserve(leases.size());
  Marks marks(leases.size());
  const memory::RefLeaseOf* known = nullptr;
  LeaseNumber last = 0;
  std::size_t at = 0;  // in the rows of `known`
  for (const RefLease& lease : leases) {
    const LeaseNumber number = books_->tokens.number_of(lease.token);
    if (std::exchange(last, number) != number) {
      known = group.queue.leases.find(number);
      at = 0;
    }
    // Mostly a lease comes back as it was given: then its rows are known without looking for the ids.
    const std::string& id = lease.ref.sample_id.str();
    const bool next = known != nullptr && at < known->rows.size() && id_of(known->rows[at]) == id;
    const std::int64_t row = next ? std::int64_t{known->rows[at]} : find_sample(id);
    ++at;
    QueueRef* const ref = row < 0 ? nullptr : group.queue.find(row);
    if (ref == nullptr) throw refusals::lost_ref(lease, group.name, -1, "");
    // One that is marked has ended by this call.
    const int ended = to_ack ? kAcked : kRefFailed;
    const int state = ref->marked ? ended : ref->state;
    if (number != 0 && ref->marked && ref->token == number) continue;
    if (number != 0 && !ref->marked && ref->ended_token == number && (state == kAcked) == to_ack) continue;  // said before
    if (state > kRefLeased || number == 0 || ref->token != number) throw_lost(group, lease, *ref, state);
    held.push_back({row, ref});
    marks.add(*ref);
  }
  return held;
}

// It is available again, acked or failed. The lease's time may have run out before.
void MemoryLedger::end_ref(Group& group, const HeldRef& held, int state) {
  Queue& queue = group.queue;
  QueueRef& ref = *held.ref;
  const bool was_leased = ref.state == kRefLeased;
  ref.ended_token = std::exchange(ref.token, 0);
  ref.state = static_cast<std::int8_t>(state);
  if (was_leased) {
    queue.leases.let_go(ref.ended_token);
    --queue.leased;
  } else {
    --group.available;
  }
  if (state == kAvailable) {
    ++group.available;
    if (was_leased) make_available(queue, held.row, true);
    return;
  }
  if (!was_leased) make_available(queue, held.row, false);
  end_claim(held.row);
  if (state != kAcked) return;
  ++queue.acked;
  queue.shards.gone();
}

void MemoryLedger::ack_refs(const GroupId& group_id, const std::vector<RefLease>& leases) {
  const std::lock_guard lock(books_->mutex);
  Group& group = find_open_queue(group_id, "ack_refs");
  const std::vector<HeldRef> all = find_held(group, leases, true);
  make_whole([&] {
    for (const HeldRef& held : all) end_ref(group, held, kAcked);
    group.queue.shards.tidy([&](std::int64_t row) { return group.queue.refs[row].is_gone(); });
  });
}

void MemoryLedger::fail_refs(const GroupId& group_id, const std::vector<RefLease>& leases, const std::string& reason,
                             bool retryable) {
  const std::lock_guard lock(books_->mutex);
  Group& group = find_open_queue(group_id, "fail_refs");
  const std::vector<HeldRef> all = find_held(group, leases, false);
  const std::string why = printable(reason, kMaxReasonBytes);
  make_whole([&] {
    for (const HeldRef& held : all) {
      const bool again = ++held.ref->attempts < group.config.max_attempts && retryable;
      end_ref(group, held, again ? kAvailable : kRefFailed);
      if (!again) group.queue.failed[held.row] = why;
    }
  });
}

std::int64_t MemoryLedger::retry_failed(const GroupId& group_id, const std::vector<SampleId>& ids) {
  const std::lock_guard lock(books_->mutex);
  Group& group = find_open_queue(group_id, "retry_failed");
  std::int64_t retried = 0;
  make_whole([&] {
    for (const SampleId& id : ids) {
      const std::int64_t row = find_sample(id.str());
      QueueRef* const ref = row < 0 ? nullptr : group.queue.find(row);
      if (ref == nullptr || ref->state != kRefFailed || books_->samples[row].state >= kGoing) continue;
      ref->state = kAvailable;
      ref->attempts = 0;
      group.queue.failed.erase(row);
      make_available(group.queue, row, true);
      claim(row);
      ++group.available;
      ++retried;
    }
  });
  return retried;
}

}  // namespace draftflow
