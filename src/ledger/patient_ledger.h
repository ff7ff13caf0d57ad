// SPDX-License-Identifier: Apache-2.0
//
// PatientLedger: another ledger, whose calls are made again for a while when their outcome is unknown (InDoubt) or it could not
// be reached (Unavailable). That settles them, since every call is idempotent: a commit whose reply was lost is found done.
// Used by one thread. Private to this room.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow {

// Makes the call until it gives an answer, or another error than InDoubt and Unavailable, or `patience_ms` have passed since
// its first failure.
template <class Call>
auto call_again(std::int64_t patience_ms, Call&& call) {
  const auto start = std::chrono::steady_clock::now();
  for (std::chrono::milliseconds pause{20};; pause = std::min(2 * pause, std::chrono::milliseconds(1000))) {
    try {
      return call();
    } catch (const Error& error) {
      const bool may_pass = error.kind() == ErrorKind::kUnavailable || error.kind() == ErrorKind::kInDoubt;
      if (!may_pass || std::chrono::steady_clock::now() - start > std::chrono::milliseconds(patience_ms)) throw;
    }
    sleep_interruptibly(pause);
  }
}

class PatientLedger final : public Ledger {
 private:
  template <class Verb, class... Args>
  std::invoke_result_t<Verb, Ledger&, const Args&...> again(Verb verb, const Args&... args) {
    return call_again(patience_ms_, [&] { return ((*ledger_).*verb)(args...); });
  }

 public:
  // Tries for `patience_ms` from a call's first failure; then the last error goes to the caller.
  PatientLedger(std::unique_ptr<Ledger> ledger, std::int64_t patience_ms)
      : ledger_(std::move(ledger)), patience_ms_(patience_ms) {}

  std::string id() override { return again(&Ledger::id); }
  void declare(const std::string& key, const std::string& value) override { again(&Ledger::declare, key, value); }
  std::optional<std::string> declared(const std::string& key) override { return again(&Ledger::declared, key); }
  std::int64_t ingest_prompts(const std::vector<PromptTask>& tasks,
                              const std::vector<std::vector<TokenCount>>& counts) override {
    return again(&Ledger::ingest_prompts, tasks, counts);
  }
  void close_prompts() override { again(&Ledger::close_prompts); }
  PromptAnswer lease_prompts(const HolderId& holder, int max_tasks, std::int64_t lease_ms) override {
    return again(&Ledger::lease_prompts, holder, max_tasks, lease_ms);
  }
  void extend_leases(const HolderId& holder, std::int64_t lease_ms) override {
    again(&Ledger::extend_leases, holder, lease_ms);
  }
  bool extend_lease(const PromptLease& lease, std::int64_t lease_ms) override {
    return again(&Ledger::extend_lease, lease, lease_ms);
  }
  void fail_prompt(const PromptLease& lease, const std::string& reason, bool retryable, int max_attempts) override {
    again(&Ledger::fail_prompt, lease, reason, retryable, max_attempts);
  }
  void return_leases(const HolderId& holder) override { again(&Ledger::return_leases, holder); }
  std::vector<std::pair<std::string, std::string>> failed_prompts(int limit) override {
    return again(&Ledger::failed_prompts, limit);
  }
  void commit_sample(const SampleRef& ref, const PromptLease& lease) override { again(&Ledger::commit_sample, ref, lease); }
  std::int64_t commit_samples(const std::vector<SampleRef>& refs, const std::vector<std::vector<TokenCount>>& counts) override {
    return again(&Ledger::commit_samples, refs, counts);
  }
  bool is_committed(const SampleId& id) override { return again(&Ledger::is_committed, id); }
  std::optional<SampleRef> get_committed(const SampleId& id) override { return again(&Ledger::get_committed, id); }
  std::vector<std::string> all_committed_ids() override { return again(&Ledger::all_committed_ids); }
  std::vector<std::string> trained_ids(const GroupId& group) override { return again(&Ledger::trained_ids, group); }
  std::vector<TokenCount> token_counts() override { return again(&Ledger::token_counts); }
  RefPage resident_refs(std::int64_t from, int limit) override { return again(&Ledger::resident_refs, from, limit); }
  void declare_group(const GroupConfig& config) override { again(&Ledger::declare_group, config); }
  void close_group(const GroupId& group) override { again(&Ledger::close_group, group); }
  TimelineInfo open_timeline(const TimelineRequest& request) override { return again(&Ledger::open_timeline, request); }
  WindowAnswer read_window(const GroupId& group, std::int64_t timeline, std::int64_t number,
                           const WindowShare& share) override {
    return again(&Ledger::read_window, group, timeline, number, share);
  }
  void report_failed(const GroupId& group, std::int64_t timeline, std::int64_t window,
                     const std::vector<FailedSample>& failed) override {
    again(&Ledger::report_failed, group, timeline, window, failed);
  }
  void trained(const GroupId& group, std::int64_t timeline, std::int64_t window, std::int64_t step,
               const std::vector<FailedSample>& failed) override {
    again(&Ledger::trained, group, timeline, window, step, failed);
  }
  void checkpointed(const GroupId& group, std::int64_t timeline, std::int64_t step) override {
    again(&Ledger::checkpointed, group, timeline, step);
  }
  QueueAnswer lease_refs(const RefRequest& request) override { return again(&Ledger::lease_refs, request); }
  void ack_refs(const GroupId& group, const std::vector<RefLease>& leases) override { again(&Ledger::ack_refs, group, leases); }
  void fail_refs(const GroupId& group, const std::vector<RefLease>& leases, const std::string& reason,
                 bool retryable) override {
    again(&Ledger::fail_refs, group, leases, reason, retryable);
  }
  void extend_refs(const GroupId& group, const HolderId& holder, std::int64_t lease_ms) override {
    again(&Ledger::extend_refs, group, holder, lease_ms);
  }
  void return_refs(const GroupId& group, const HolderId& holder) override { again(&Ledger::return_refs, group, holder); }
  std::vector<FailedSample> failed_refs(const GroupId& group, int limit) override {
    return again(&Ledger::failed_refs, group, limit);
  }
  std::int64_t retry_failed(const GroupId& group, const std::vector<SampleId>& ids) override {
    return again(&Ledger::retry_failed, group, ids);
  }
  std::vector<SampleRef> freeable(int limit) override { return again(&Ledger::freeable, limit); }
  void freed(const std::vector<SampleId>& ids) override { again(&Ledger::freed, ids); }
  LedgerStatus status() override { return again(&Ledger::status); }
  bool wait(std::int64_t timeout_ms) override { return again(&Ledger::wait, timeout_ms); }
  std::vector<HolderLeases> leases() override { return again(&Ledger::leases); }
  std::vector<std::string> check() override { return again(&Ledger::check); }
  std::int64_t retry_prompts(const std::vector<TaskId>& ids) override { return again(&Ledger::retry_prompts, ids); }
  std::int64_t drop_prompts(const std::vector<TaskId>& ids, const std::string& reason, bool dry_run) override {
    return again(&Ledger::drop_prompts, ids, reason, dry_run);
  }
  std::int64_t drop_refs(const GroupId& group, const std::vector<SampleId>& ids, const std::string& reason,
                         bool dry_run) override {
    return again(&Ledger::drop_refs, group, ids, reason, dry_run);
  }
  // Once only: what was written cannot be taken back, and what was read cannot be read again.
  void export_to(const std::function<void(const std::string& line)>& write) override { ledger_->export_to(write); }
  void import_from(const std::function<std::optional<std::string>()>& next_line) override { ledger_->import_from(next_line); }

 private:
  const std::unique_ptr<Ledger> ledger_;
  const std::int64_t patience_ms_;
};

}  // namespace draftflow
