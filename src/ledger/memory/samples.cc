// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <unordered_map>
#include <utility>

#include "ledger/memory/memory_ledger.h"

namespace draftflow {

using memory::PackedRef;
using memory::Sample;

std::int64_t MemoryLedger::find_sample(std::string_view id) const {
  return books_->sample_index.find(id, [&](std::int64_t row) -> std::string_view { return id_of(row); });
}

// --- claims

void MemoryLedger::set_state(std::int64_t row, int state) {
  Sample& sample = books_->samples[row];
  if (sample.state == kMayGo) books_->may_go.erase(row);
  if (sample.state == kGoing) books_->going.erase(row);
  sample.state = static_cast<std::int8_t>(state);
  if (state == kMayGo) books_->may_go.insert(row);
  if (state == kGoing) books_->going.insert(row);
  if (state == kFreed) books_->resident.erase(row);
}

// Of a sample that was handed to no sweeper.
void MemoryLedger::claim(std::int64_t row) {
  ++books_->samples[row].claims;
  if (books_->samples[row].state != kNeeded) set_state(row, kNeeded);
}

// What an open group claims no more may go, once no other does.
void MemoryLedger::end_claim(std::int64_t row) {
  Sample& sample = books_->samples[row];
  if (sample.state != kNeeded) return;
  if (--sample.claims == 0 && !sample.in_place) set_state(row, kMayGo);
}

// --- commits

// As the newest rows, and last in every open queue.
void MemoryLedger::insert_samples(std::vector<PackedRef> refs, const std::vector<bool>& in_place) {
  std::int64_t claims = 0;
  for (const Group& group : books_->groups) claims += group.open ? 1 : 0;
  for (std::size_t i = 0; i < refs.size(); ++i) {
    const std::int64_t row = books_->committed++;
    Sample& sample = books_->samples.write(row);
    sample.ref = std::move(refs[i]);
    sample.claims = static_cast<std::int32_t>(claims);
    sample.in_place = in_place[i];
    books_->sample_index.insert(id_of(row), row);
    books_->committed_tokens += sample.ref.tokens;
    if (!sample.in_place) {
      books_->resident.insert(row);
      books_->resident_bytes += static_cast<std::int64_t>(sample.ref.bytes);
    }
    for (Group& group : books_->groups) {
      if (!group.open) continue;
      ++group.available;
      if (group.is_queue()) enqueue(group.queue, row);
    }
  }
}

void MemoryLedger::check_replaceable(const SampleRef& ref, std::int64_t row) {
  const std::uint64_t committed = books_->samples[row].ref.generation;
  if (ref.generation <= committed) throw refusals::no_newer(ref, committed);
  // What every group has dropped, or was closed over, may be gone already; of files in place no state tells it.
  const Sample& old = books_->samples[row];
  if (old.state != kNeeded || (old.in_place && old.claims == 0 && !books_->groups.empty()))
    throw refusals::taken_already(ref, committed);
  for (Group& group : books_->groups) {
    // A lease that ran out may still be acked: its ref is taken, too.
    const memory::QueueRef* queued = group.is_queue() ? group.queue.find(row) : nullptr;
    if (group.windows.next_row > row || (queued != nullptr && (queued->state > kAvailable || queued->token != 0))) {
      throw refusals::taken_already(ref, committed);
    }
  }
}

void MemoryLedger::replace_sample(PackedRef ref, bool in_place, std::int64_t row) {
  Sample& sample = books_->samples[row];
  books_->committed_tokens += ref.tokens - sample.ref.tokens;
  books_->resident_bytes += in_place ? 0 : static_cast<std::int64_t>(ref.bytes);
  books_->resident_bytes -= sample.in_place ? 0 : static_cast<std::int64_t>(sample.ref.bytes);
  sample.ref = std::move(ref);
  sample.in_place = in_place;
  if (in_place) {
    books_->resident.erase(row);
  } else {
    books_->resident.insert(row);
  }
}

void MemoryLedger::commit_sample(const SampleRef& ref, const PromptLease& lease) {
  check_ref(ref);
  check_completes(ref, lease.task);
  ref_json(ref);  // what cannot be written is refused here as elsewhere
  const bool in_place = is_in_place(ref);
  const std::lock_guard lock(books_->mutex);
  const std::int64_t row = find_sample(ref.sample_id.str());
  if (row >= 0) {
    const PackedRef& known = books_->samples[row].ref;
    if (known.generation == ref.generation && known.incarnation() == ref.incarnation) return;
  }
  std::int64_t prompt_row = 0;
  const memory::Prompt& prompt = find_prompt(lease, prompt_row);
  const bool completed = prompt.state == kDone && said_before(lease, prompt);
  if (!completed) check_held(lease, prompt, prompt_row);
  if (row >= 0) check_replaceable(ref, row);
  std::vector<PackedRef> packed;
  packed.push_back(books_->patterns.pack(ref));
  make_whole([&] {
    if (!completed) complete_prompt(prompt_row);
    if (row >= 0) return replace_sample(std::move(packed.front()), in_place, row);
    if (books_->committed == 0) note_run_id(ref.run_id);
    insert_samples(std::move(packed), {in_place});
  });
}

std::int64_t MemoryLedger::commit_samples(const std::vector<SampleRef>& refs,
                                          const std::vector<std::vector<TokenCount>>& counts) {
  check_counts(refs.size(), "refs", counts.size());
  for (const SampleRef& ref : refs) {
    check_ref(ref);
    ref_json(ref);
  }
  const std::lock_guard lock(books_->mutex);
  std::vector<const SampleRef*> fresh;
  std::unordered_map<std::string_view, const SampleRef*> of_this_call;
  std::vector<std::pair<std::int64_t, const SampleRef*>> newer;  // row of the sample
  TokenSums sums;
  for (std::size_t i = 0; i < refs.size(); ++i) {
    const SampleRef& ref = refs[i];
    const auto [before, first] = of_this_call.try_emplace(ref.sample_id.str(), &ref);
    if (!first) {
      const SampleRef& other = *before->second;
      if (other.generation == ref.generation && other.incarnation == ref.incarnation) continue;
      throw refusals::comes_twice(ref, other.generation);
    }
    if (const std::int64_t row = find_sample(ref.sample_id.str()); row >= 0) {
      const PackedRef& known = books_->samples[row].ref;
      if (known.generation == ref.generation && known.incarnation() == ref.incarnation) continue;
      check_replaceable(ref, row);
      newer.emplace_back(row, &ref);
      continue;
    }
    if (!counts.empty()) sums.add(counts[i], books_->committed + static_cast<std::int64_t>(fresh.size()));
    fresh.push_back(&ref);
  }
  if (fresh.empty() && newer.empty()) return 0;
  if (books_->committed + static_cast<std::int64_t>(fresh.size()) > memory::kMostRows) {
    throw Exhausted("a ledger in memory holds at most 2^32 samples: start another run");
  }
  std::int64_t tokens = 0, bytes = 0;
  std::vector<PackedRef> packed, packed_newer;
  std::vector<bool> in_place;
  for (const SampleRef* ref : fresh) {
    in_place.push_back(is_in_place(*ref));
    add_within(tokens, ref->num_tokens, "tokens");
    add_within(bytes, in_place.back() ? 0 : static_cast<std::int64_t>(ref->estimated_bytes), "bytes");
    packed.push_back(books_->patterns.pack(*ref));
  }
  for (const auto& [row, ref] : newer) packed_newer.push_back(books_->patterns.pack(*ref));
  make_whole([&] {
    for (std::size_t i = 0; i < newer.size(); ++i) {
      replace_sample(std::move(packed_newer[i]), is_in_place(*newer[i].second), newer[i].first);
    }
    if (fresh.empty()) return;
    if (books_->committed == 0) note_run_id(fresh.front()->run_id);
    insert_samples(std::move(packed), in_place);
    add_token_counts(sums);
  });
  return static_cast<std::int64_t>(fresh.size());
}

// --- what is asked

bool MemoryLedger::is_committed(const SampleId& id) {
  const std::lock_guard lock(books_->mutex);
  return find_sample(id.str()) >= 0;
}

std::optional<SampleRef> MemoryLedger::get_committed(const SampleId& id) {
  const std::lock_guard lock(books_->mutex);
  const std::int64_t row = find_sample(id.str());
  if (row < 0) return std::nullopt;
  return books_->samples[row].ref.unpack();
}

std::vector<std::string> MemoryLedger::all_committed_ids() {
  const std::lock_guard lock(books_->mutex);
  std::vector<std::string> ids;
  ids.reserve(static_cast<std::size_t>(books_->committed));
  for (std::int64_t row = 0; row < books_->committed; ++row) ids.push_back(id_of(row));
  return ids;
}

RefPage MemoryLedger::resident_refs(std::int64_t from, int limit) {
  const std::lock_guard lock(books_->mutex);
  RefPage page;
  const auto most = static_cast<std::size_t>(std::max(limit, 1));
  for (std::int64_t row = books_->resident.next(std::max<std::int64_t>(from, 0)); row >= 0;
       row = books_->resident.next(row + 1)) {
    page.refs.push_back(books_->samples[row].ref.unpack());
    if (page.refs.size() < most) continue;
    page.next = row + 1;
    break;
  }
  return page;
}

// --- freeing

std::vector<SampleRef> MemoryLedger::freeable(int limit) {
  const std::lock_guard lock(books_->mutex);
  std::vector<SampleRef> refs;
  const auto most = static_cast<std::size_t>(std::max(limit, 0));
  for (std::int64_t row = books_->going.next(0); row >= 0 && refs.size() < most; row = books_->going.next(row + 1)) {
    refs.push_back(books_->samples[row].ref.unpack());
  }
  std::vector<std::int64_t> fresh;
  for (std::int64_t row = books_->may_go.next(0); row >= 0 && refs.size() < most; row = books_->may_go.next(row + 1)) {
    refs.push_back(books_->samples[row].ref.unpack());
    fresh.push_back(row);
  }
  // Written down before the sweeper removes the first byte: a later rewind must know what may be gone.
  make_whole([&] {
    for (const std::int64_t row : fresh) {
      set_state(row, kGoing);
      for (Group& group : books_->groups) {
        const auto window = find_window_of(group, row);  // of the first pass
        if (!window) continue;
        for (std::int64_t pass = *window; pass < group.windows.dealt(); pass += group.windows.first_pass()) {
          ++group.windows.windows[static_cast<std::size_t>(pass)].going;
        }
      }
    }
    return !fresh.empty();
  });
  return refs;
}

void MemoryLedger::freed(const std::vector<SampleId>& ids) {
  const std::lock_guard lock(books_->mutex);
  std::vector<std::int64_t> rows;
  for (const SampleId& id : ids) {
    const std::int64_t row = find_sample(id.str());
    if (row < 0) throw refusals::unknown_sample(id, books_->name);
    if (books_->samples[row].state == kFreed) continue;
    if (books_->samples[row].state != kGoing) throw refusals::not_handed_out(id);
    rows.push_back(row);
  }
  make_whole([&] {
    for (const std::int64_t row : rows) {
      if (books_->samples[row].state == kFreed) continue;  // named twice
      set_state(row, kFreed);
      ++books_->freed;
      books_->resident_bytes -= static_cast<std::int64_t>(books_->samples[row].ref.bytes);
    }
  });
}

}  // namespace draftflow
