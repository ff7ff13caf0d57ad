// SPDX-License-Identifier: Apache-2.0
//
// The ledger over one SQLite file. Private to this room. The functions stand in prompts.cc, samples.cc, training.cc and
// sqlite_ledger.cc (the rest). Every function is one transaction; the only state outside the file is how far this object has
// handed out windows.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "draftflow/ledger/ledger.h"
#include "ledger/clock.h"
#include "ledger/sqlite/database.h"

namespace draftflow {

class SqliteLedger final : public Ledger {
 public:
  SqliteLedger(const std::filesystem::path& path, LedgerClock clock, sqlite::Database::Mode mode);

  std::string id() override;
  void declare(const std::string& key, const std::string& value) override;
  std::optional<std::string> declared(const std::string& key) override;

  std::int64_t ingest_prompts(const std::vector<PromptTask>& tasks,
                              const std::vector<std::vector<TokenCount>>& counts) override;
  void close_prompts() override;
  PromptAnswer lease_prompts(const HolderId& holder, int max_tasks, std::int64_t lease_ms) override;
  void extend_leases(const HolderId& holder, std::int64_t lease_ms) override;
  void fail_prompt(const PromptLease& lease, const std::string& reason, bool retryable, int max_attempts) override;
  void return_leases(const HolderId& holder) override;
  std::vector<std::pair<std::string, std::string>> failed_prompts(int limit) override;

  void commit_sample(const SampleRef& ref, const PromptLease& lease) override;
  std::int64_t commit_samples(const std::vector<SampleRef>& refs, const std::vector<std::vector<TokenCount>>& counts) override;
  bool is_committed(const SampleId& id) override;
  std::optional<SampleRef> get_committed(const SampleId& id) override;
  std::vector<std::string> all_committed_ids() override;
  std::vector<std::string> trained_ids() override;
  std::vector<TokenCount> token_counts() override;

  void declare_group(const GroupConfig& config) override;
  TimelineInfo open_timeline(const GroupId& group, const std::optional<CheckpointMark>& resume) override;
  WindowAnswer next_window(const GroupId& group, std::int64_t timeline) override;
  void trained(const GroupId& group, std::int64_t timeline, std::int64_t window, std::int64_t step,
               const std::vector<FailedSample>& failed) override;
  void checkpointed(const GroupId& group, std::int64_t timeline, std::int64_t step) override;
  std::vector<SampleRef> freeable(int limit) override;
  void freed(const std::vector<SampleId>& ids) override;

  LedgerStatus status() override;

  sqlite::Database& database() { return db_; }  // for tests

 private:
  struct Group;   // one row of consumer
  struct Prompt;  // one row of prompt
  struct Handed {
    std::int64_t timeline = 0, next = 0;
  };

  // prompts.cc
  void take_back_expired(std::int64_t now);
  Prompt find_prompt(const std::string& task_id);
  [[noreturn]] void throw_lost(const std::string& task_id, const Prompt& prompt, const PromptLease& lease);
  void complete_prompt(const PromptLease& lease, const Prompt& prompt);

  // samples.cc
  void add_token_counts(const std::vector<TokenCount>& counts, std::int64_t row);
  void note_run_id(const RunId& run_id);
  void refuse_other_payload(const PromptTask& task);
  void insert_sample(const SampleRef& ref);
  void replace_sample(const SampleRef& ref, std::int64_t row);
  SampleRef read_ref(std::int64_t row);
  void free_sample(const SampleId& id);

  // training.cc
  Group find_group(const GroupId& group);
  void check_newest(const Group& group, std::int64_t timeline, const char* verb);
  void check_on_line(const Group& group, const CheckpointMark& mark);
  void check_bytes_are_there(const Group& group, std::int64_t keep, const std::optional<CheckpointMark>& resume);
  void rewind(Group& group, std::int64_t keep, std::int64_t step);
  std::int64_t windows_through(const Group& group, std::int64_t step);
  std::int64_t releasable_windows(const Group& group);
  void move_release(Group& group, std::int64_t target);
  void record_checkpoint(const Group& group, std::int64_t timeline, std::int64_t step);
  void deal(Group& group);
  void drop_tail(Group& group);
  Window read_window(const Group& group, std::int64_t number);
  std::int64_t mark_failed(const Group& group, std::int64_t window, const std::vector<FailedSample>& failed);
  WindowAnswer hand_out(const Group& group, std::int64_t number);
  void save(const Group& group);

  LedgerClock clock_;
  sqlite::Database db_;
  std::map<std::string, Handed> handed_;
};

}  // namespace draftflow
