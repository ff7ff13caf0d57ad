// SPDX-License-Identifier: Apache-2.0
//
// ChaosLedger: the run's ledger as the processes of a chaos run use it. It waits while the disk is full, it tells when a call
// of a timeline succeeds that another one had taken over before the call began, and it makes the mistakes that the plan asks
// for. Used by one thread.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "chaos/stage.h"
#include "draftflow/base/error.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::chaos {

class ChaosLedger final : public Ledger {
 private:
  template <class Verb, class... Args>
  auto patient(Verb verb, const Args&... args) {
    using Answer = decltype(((*ledger_).*verb)(args...));
    if constexpr (std::is_void_v<Answer>) {
      with_patience(stage_, [&] { ((*ledger_).*verb)(args...); });
    } else {
      std::optional<Answer> answer;
      with_patience(stage_, [&] { answer.emplace(((*ledger_).*verb)(args...)); });
      return std::move(*answer);
    }
  }

  // A trainer's call: `call` takes the number of the timeline.
  template <class Call>
  auto of_timeline(const char* verb, const GroupId& group, std::int64_t timeline, Call&& call) {
    const std::int64_t newest = stage_.board.newest_timeline(index_of(group));
    try {
      if constexpr (std::is_void_v<decltype(call(timeline))>) {
        call(timeline);
        judge(verb, group, timeline, newest);
      } else {
        auto answer = call(timeline);
        judge(verb, group, timeline, newest);
        return answer;
      }
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kConflict) throw;
      stage_.board.add(Count::kStaleCalls);
      if (stage_.plan.bug != Bug::kSkipTimelineCheck) throw;
      return call(status().of(group).timeline);
    }
  }

 public:
  explicit ChaosLedger(Stage& stage);

  std::string id() override { return patient(&Ledger::id); }
  void declare(const std::string& key, const std::string& value) override { patient(&Ledger::declare, key, value); }
  std::optional<std::string> declared(const std::string& key) override { return patient(&Ledger::declared, key); }
  std::int64_t ingest_prompts(const std::vector<PromptTask>& tasks,
                              const std::vector<std::vector<TokenCount>>& counts) override {
    return patient(&Ledger::ingest_prompts, tasks, counts);
  }
  void close_prompts() override { patient(&Ledger::close_prompts); }
  PromptAnswer lease_prompts(const HolderId& holder, int max_tasks, std::int64_t lease_ms) override {
    return patient(&Ledger::lease_prompts, holder, max_tasks, lease_ms);
  }
  void extend_leases(const HolderId& holder, std::int64_t lease_ms) override {
    patient(&Ledger::extend_leases, holder, lease_ms);
  }
  bool extend_lease(const PromptLease& lease, std::int64_t lease_ms) override {
    return patient(&Ledger::extend_lease, lease, lease_ms);
  }
  void fail_prompt(const PromptLease& lease, const std::string& reason, bool retryable, int max_attempts) override {
    patient(&Ledger::fail_prompt, lease, reason, retryable, max_attempts);
  }
  void return_leases(const HolderId& holder) override { patient(&Ledger::return_leases, holder); }
  std::vector<std::pair<std::string, std::string>> failed_prompts(int limit) override {
    return patient(&Ledger::failed_prompts, limit);
  }
  void commit_sample(const SampleRef& ref, const PromptLease& lease) override;
  std::int64_t commit_samples(const std::vector<SampleRef>& refs, const std::vector<std::vector<TokenCount>>& counts) override {
    return patient(&Ledger::commit_samples, refs, counts);
  }
  bool is_committed(const SampleId& id) override { return patient(&Ledger::is_committed, id); }
  std::optional<SampleRef> get_committed(const SampleId& id) override { return patient(&Ledger::get_committed, id); }
  std::vector<std::string> all_committed_ids() override { return patient(&Ledger::all_committed_ids); }
  std::vector<std::string> trained_ids(const GroupId& group) override { return patient(&Ledger::trained_ids, group); }
  std::vector<TokenCount> token_counts() override { return patient(&Ledger::token_counts); }
  RefPage resident_refs(std::int64_t from, int limit) override { return patient(&Ledger::resident_refs, from, limit); }
  void declare_group(const GroupConfig& config) override { patient(&Ledger::declare_group, config); }
  void close_group(const GroupId& group) override { patient(&Ledger::close_group, group); }
  TimelineInfo open_timeline(const TimelineRequest& request) override;
  WindowAnswer read_window(const GroupId& group, std::int64_t timeline, std::int64_t number, const WindowShare& share) override;
  void report_failed(const GroupId& group, std::int64_t timeline, std::int64_t window,
                     const std::vector<FailedSample>& failed) override;
  void trained(const GroupId& group, std::int64_t timeline, std::int64_t window, std::int64_t step,
               const std::vector<FailedSample>& failed) override;
  void checkpointed(const GroupId& group, std::int64_t timeline, std::int64_t step) override;
  QueueAnswer lease_refs(const RefRequest& request) override { return patient(&Ledger::lease_refs, request); }
  void ack_refs(const GroupId& group, const std::vector<RefLease>& leases) override {
    patient(&Ledger::ack_refs, group, leases);
  }
  void fail_refs(const GroupId& group, const std::vector<RefLease>& leases, const std::string& reason,
                 bool retryable) override {
    patient(&Ledger::fail_refs, group, leases, reason, retryable);
  }
  void extend_refs(const GroupId& group, const HolderId& holder, std::int64_t lease_ms) override {
    patient(&Ledger::extend_refs, group, holder, lease_ms);
  }
  void return_refs(const GroupId& group, const HolderId& holder) override { patient(&Ledger::return_refs, group, holder); }
  std::vector<FailedSample> failed_refs(const GroupId& group, int limit) override {
    return patient(&Ledger::failed_refs, group, limit);
  }
  std::int64_t retry_failed(const GroupId& group, const std::vector<SampleId>& ids) override {
    return patient(&Ledger::retry_failed, group, ids);
  }
  std::vector<SampleRef> freeable(int limit) override { return patient(&Ledger::freeable, limit); }
  void freed(const std::vector<SampleId>& ids) override { patient(&Ledger::freed, ids); }
  LedgerStatus status() override { return patient(&Ledger::status); }
  bool wait(std::int64_t timeout_ms) override { return patient(&Ledger::wait, timeout_ms); }
  std::vector<HolderLeases> leases() override { return patient(&Ledger::leases); }
  std::vector<std::string> check() override { return patient(&Ledger::check); }
  std::int64_t retry_prompts(const std::vector<TaskId>& ids) override { return patient(&Ledger::retry_prompts, ids); }
  std::int64_t drop_prompts(const std::vector<TaskId>& ids, const std::string& reason, bool dry_run) override {
    return patient(&Ledger::drop_prompts, ids, reason, dry_run);
  }
  std::int64_t drop_refs(const GroupId& group, const std::vector<SampleId>& ids, const std::string& reason,
                         bool dry_run) override {
    return patient(&Ledger::drop_refs, group, ids, reason, dry_run);
  }
  void export_to(const std::function<void(const std::string& line)>& write) override { ledger_->export_to(write); }
  void import_from(const std::function<std::optional<std::string>()>& next_line) override { ledger_->import_from(next_line); }

 private:
  std::size_t index_of(const GroupId& group) const;
  void judge(const char* verb, const GroupId& group, std::int64_t timeline, std::int64_t newest);
  void commit_in_two_steps(const SampleRef& ref, const PromptLease& lease);

  Stage& stage_;
  std::unique_ptr<Ledger> ledger_;
};

}  // namespace draftflow::chaos
