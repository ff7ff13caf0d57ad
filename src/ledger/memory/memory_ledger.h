// SPDX-License-Identifier: Apache-2.0
//
// The ledger in this process's memory: verbs over MemoryBooks (books.h), which other objects share. The functions stand in
// prompts.cc, samples.cc, groups.cc, timelines.cc, windows.cc, checkpoints.cc, queues.cc, operators.cc, check.cc and
// memory_ledger.cc (the rest). A verb checks everything before its first change, so that what it refuses changes nothing. One
// object is used by one thread at a time, any number of them at once. Private to this room.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "draftflow/ledger/ledger.h"
#include "ledger/clock.h"
#include "ledger/memory/books.h"
#include "ledger/wake_pace.h"

namespace draftflow {

class MemoryLedger final : public Ledger {
 public:
  MemoryLedger(std::shared_ptr<MemoryBooks> books, LedgerClock clock);

  std::string id() override { return books_->id; }
  void declare(const std::string& key, const std::string& value) override;
  std::optional<std::string> declared(const std::string& key) override;

  std::int64_t ingest_prompts(const std::vector<PromptTask>& tasks,
                              const std::vector<std::vector<TokenCount>>& counts) override;
  void close_prompts() override;
  PromptAnswer lease_prompts(const HolderId& holder, int max_tasks, std::int64_t lease_ms) override;
  void extend_leases(const HolderId& holder, std::int64_t lease_ms) override;
  bool extend_lease(const PromptLease& lease, std::int64_t lease_ms) override;
  void fail_prompt(const PromptLease& lease, const std::string& reason, bool retryable, int max_attempts) override;
  void return_leases(const HolderId& holder) override;
  std::vector<std::pair<std::string, std::string>> failed_prompts(int limit) override;

  void commit_sample(const SampleRef& ref, const PromptLease& lease) override;
  std::int64_t commit_samples(const std::vector<SampleRef>& refs, const std::vector<std::vector<TokenCount>>& counts) override;
  bool is_committed(const SampleId& id) override;
  std::optional<SampleRef> get_committed(const SampleId& id) override;
  std::vector<std::string> all_committed_ids() override;
  std::vector<std::string> trained_ids(const GroupId& group) override;
  std::vector<TokenCount> token_counts() override;
  RefPage resident_refs(std::int64_t from, int limit) override;

  void declare_group(const GroupConfig& config) override;
  void close_group(const GroupId& group) override;
  std::vector<FailedSample> failed_refs(const GroupId& group, int limit) override;
  TimelineInfo open_timeline(const TimelineRequest& request) override;
  WindowAnswer read_window(const GroupId& group, std::int64_t timeline, std::int64_t number, const WindowShare& share) override;
  void report_failed(const GroupId& group, std::int64_t timeline, std::int64_t window,
                     const std::vector<FailedSample>& failed) override;
  void trained(const GroupId& group, std::int64_t timeline, std::int64_t window, std::int64_t step,
               const std::vector<FailedSample>& failed) override;
  void checkpointed(const GroupId& group, std::int64_t timeline, std::int64_t step) override;

  QueueAnswer lease_refs(const RefRequest& request) override;
  void ack_refs(const GroupId& group, const std::vector<RefLease>& leases) override;
  void fail_refs(const GroupId& group, const std::vector<RefLease>& leases, const std::string& reason, bool retryable) override;
  void extend_refs(const GroupId& group, const HolderId& holder, std::int64_t lease_ms) override;
  void return_refs(const GroupId& group, const HolderId& holder) override;
  std::int64_t retry_failed(const GroupId& group, const std::vector<SampleId>& ids) override;

  std::vector<SampleRef> freeable(int limit) override;
  void freed(const std::vector<SampleId>& ids) override;

  LedgerStatus status() override;
  bool wait(std::int64_t timeout_ms) override;

  std::vector<HolderLeases> leases() override;
  std::vector<std::string> check() override;
  std::int64_t retry_prompts(const std::vector<TaskId>& ids) override;
  std::int64_t drop_prompts(const std::vector<TaskId>& ids, const std::string& reason, bool dry_run) override;
  std::int64_t drop_refs(const GroupId& group, const std::vector<SampleId>& ids, const std::string& reason,
                         bool dry_run) override;
  // InvalidArgument, both: the texts of prompts go when they are done, and an export has them.
  void export_to(const std::function<void(const std::string& line)>& write) override;
  void import_from(const std::function<std::optional<std::string>()>& next_line) override;

 private:
  using Group = memory::Group;
  struct HeldRef;

  // All of these with the mutex held.

  // A change that was found right is made whole: if memory runs out in the middle of it, the process ends, for half a change
  // would be worse. It may answer whether there was anything to change.
  template <class Change>
  void make_whole(Change&& change) noexcept {
    if constexpr (std::is_same_v<decltype(change()), bool>) {
      if (change()) note_change();
    } else {
      change();
      note_change();
    }
  }

  // memory_ledger.cc
  void note_change() noexcept;
  void end_leases_of_earlier_boots();
  void note_run_id(const RunId& run_id) { books_->facts.emplace("run_id", run_id.str()); }
  void add_token_counts(const TokenSums& sums);
  bool prompts_finished() const;

  // prompts.cc
  std::int64_t find_prompt_row(std::string_view task_id) const;  // or -1
  memory::Prompt& find_prompt(const PromptLease& lease, std::int64_t& row);
  void check_held(const PromptLease& lease, const memory::Prompt& prompt, std::int64_t row) const;
  bool said_before(const PromptLease& lease, const memory::Prompt& prompt) const;
  bool take_back_expired(std::int64_t now);  // whether there were any
  void hold(std::int64_t row, const std::string& holder, std::int64_t expires_ms);
  void lay_down(std::int64_t row);  // the lease's time ends; the token, and who held it, stay
  void end_lease(std::int64_t row, memory::LeaseNumber ended);
  void complete_prompt(std::int64_t row);

  // samples.cc
  std::int64_t find_sample(std::string_view id) const;  // or -1
  const std::string& id_of(std::int64_t row) const { return books_->samples[row].ref.sample_id.str(); }
  void check_replaceable(const SampleRef& ref, std::int64_t row);
  void insert_samples(std::vector<memory::PackedRef> refs, const std::vector<bool>& in_place);
  void replace_sample(memory::PackedRef ref, bool in_place, std::int64_t row);
  void set_state(std::int64_t row, int state);
  void claim(std::int64_t row);
  void end_claim(std::int64_t row);

  // groups.cc
  Group& find_group(const GroupId& group);
  Group& find_windows(const GroupId& group, const char* verb);
  Group& find_queue(const GroupId& group, const char* verb);
  Group& find_open_queue(const GroupId& group, const char* verb);
  void check_newest(const Group& group, std::int64_t timeline, const char* verb);
  void join_oldest(Group& group);

  // timelines.cc
  void check_on_line(const Group& group, const CheckpointMark& mark);
  std::optional<TimelineInfo> find_launch(const Group& group, const TimelineRequest& request);
  std::int64_t check_bytes_are_there(const Group& group, std::int64_t keep, const TimelineRequest& request);
  void rewind(Group& group, std::int64_t keep, std::int64_t step);
  void drop_lost(Group& group, std::int64_t keep);

  // windows.cc
  void for_each_undealt(const Group& group, const std::function<void(std::int64_t row)>& visit);
  std::vector<std::uint32_t> find_next_window(const Group& group) const;
  void drop_tail(Group& group);
  static void deal_again(Group& group);
  Window load_window(const Group& group, std::int64_t number, const WindowShare& share);
  std::vector<std::pair<std::uint64_t, std::string>> find_places(const Group& group, std::int64_t window,
                                                                 const std::vector<FailedSample>& failed);
  static std::int64_t count_failed(const Group& group, std::int64_t window);
  static std::optional<std::int64_t> find_window_of(const Group& group, std::int64_t row);

  // checkpoints.cc
  static std::int64_t windows_through(const Group& group, std::int64_t step);
  static std::int64_t releasable_windows(const Group& group);
  void move_release(Group& group, std::int64_t target);

  // queues.cc
  void enqueue(memory::Queue& queue, std::int64_t row);
  void fill_queue(Group& group);
  void empty_queue(Group& group);
  void make_available(memory::Queue& queue, std::int64_t row, bool available);
  bool take_back_expired(Group& group, std::int64_t now);  // whether there were any
  void give_back(Group& group, memory::LeaseNumber number, bool ended);
  std::vector<std::int64_t> pick(Group& group, const RefRequest& request);
  std::vector<std::int64_t> pick_filtered(const memory::Queue& queue, const RefRequest& request, std::size_t limit) const;
  std::vector<HeldRef> find_held(Group& group, const std::vector<RefLease>& leases, bool to_ack);
  [[noreturn]] void throw_lost(const Group& group, const RefLease& lease, const memory::QueueRef& ref, int state);
  void end_ref(Group& group, const HeldRef& held, int state);

  // operators.cc
  bool may_drop_prompt(std::int64_t row, std::int64_t now) const;
  bool may_drop_ref(Group& group, const SampleId& id, std::int64_t row, std::int64_t now);
  void drop_ref(Group& group, std::int64_t row);

  const std::shared_ptr<MemoryBooks> books_;
  const LedgerClock clock_;
  std::uint64_t seen_ = 0;  // books_->changes when wait() last returned, and this object's own since
  WakePace pace_;
  const std::uint64_t self_;  // tells this object from others that call themselves the same rank
};

}  // namespace draftflow
