// SPDX-License-Identifier: Apache-2.0
//
// The ledger in SQL tables (docs/formats/ledger.md), over any engine (database.h). Private to this room. The functions stand in
// prompts.cc, samples.cc, groups.cc, timelines.cc, windows.cc, checkpoints.cc, queues.cc, operators.cc, check.cc, export.cc,
// import.cc and sql_ledger.cc (the rest). Every function is one transaction; nothing is remembered outside the tables but what
// only grows there.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/base/random.h"
#include "draftflow/ledger/ledger.h"
#include "ledger/rules.h"
#include "ledger/sql/database.h"
#include "ledger/sql/ref_template.h"

namespace draftflow {

class SqlLedger final : public Ledger {
 public:
  explicit SqlLedger(std::unique_ptr<sql::Database> database)
      : db_(std::move(database)), templates_(*db_) {}  // its tables are there

  std::string id() override;
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
  bool wait(std::int64_t timeout_ms) override { return db_->wait(timeout_ms); }
  std::vector<HolderLeases> leases() override;
  std::vector<std::string> check() override;
  std::int64_t retry_prompts(const std::vector<TaskId>& ids) override;
  std::int64_t drop_prompts(const std::vector<TaskId>& ids, const std::string& reason, bool dry_run) override;
  std::int64_t drop_refs(const GroupId& group, const std::vector<SampleId>& ids, const std::string& reason,
                         bool dry_run) override;
  void export_to(const std::function<void(const std::string& line)>& write) override;
  void import_from(const std::function<std::optional<std::string>()>& next_line) override;

  sql::Database& database() { return *db_; }  // for tests

 private:
  struct Group;     // one row of consumer
  struct Prompt;    // one row of prompt
  struct QueueRef;  // one row of queue_ref
  struct NewSample;
  struct Place;
  struct Picked;

  // prompts.cc
  void note_lease(std::int64_t lease_ms);
  bool take_back_expired(std::int64_t now);  // whether there were any
  Prompt find_prompt(const std::string& task_id);
  void complete_prompt(const PromptLease& lease, const Prompt& prompt);

  // samples.cc
  void add_token_counts(const TokenSums& sums);
  void note_run_id(const RunId& run_id);
  void refuse_other_payload(const PromptTask& task);
  NewSample new_sample(const SampleRef& ref);
  void pack(NewSample& sample, sql::RefTemplates::Making& making);
  void insert_samples(std::vector<NewSample> samples, std::int64_t row, sql::RefTemplates::Making& making);
  void replace_sample(NewSample sample, std::int64_t row, sql::RefTemplates::Making& making);
  std::vector<SampleRef> read_refs(const std::vector<std::int64_t>& rows);  // in that order; Corrupt if one is lost
  SampleRef ref_of(const sql::Query& row, int column);                      // from kRefColumns, which begin at `column`
  std::string ref_json_of(const sql::Query& row, int column);
  void hand_out(const std::vector<std::int64_t>& rows);

  // groups.cc
  Group find_group(const GroupId& group);
  void check_same(const Group& group, const GroupConfig& config);
  void end_claims_of_windows(Group& group);
  Group find_windows(const GroupId& group, const char* verb);
  Group find_queue(const GroupId& group, const char* verb);
  void check_newest(const Group& group, std::int64_t timeline, const char* verb);
  void save(const Group& group);
  bool add_counts(const Group& before, const Group& after);  // whether the queue has anything left
  void join_oldest(Group& group);

  // timelines.cc
  void check_on_line(const Group& group, const CheckpointMark& mark);
  std::optional<TimelineInfo> find_launch(const Group& group, const TimelineRequest& request);
  void enter(const Group& group, const TimelineRequest& request, std::int64_t timeline);
  std::int64_t check_bytes_are_there(const Group& group, std::int64_t keep, const TimelineRequest& request);
  void rewind(Group& group, std::int64_t keep, std::int64_t step);
  void drop_lost(Group& group, std::int64_t keep);

  // windows.cc
  std::int64_t refs_through(const Group& group, std::int64_t windows);
  std::int64_t next_window_refs(const Group& group);
  void begin_window(Group& group, std::int64_t refs);
  void deal(Group& group, std::int64_t refs);
  void deal_again(Group& group);
  bool end_stream(Group& group);
  void end_claims_of_undealt(const Group& group);
  void drop_tail(Group& group);
  Window load_window(const Group& group, std::int64_t number, const WindowShare& share);
  std::int64_t mark_failed(const Group& group, std::int64_t window, const std::vector<FailedSample>& failed);

  // checkpoints.cc
  std::int64_t windows_through(const Group& group, std::int64_t step);
  std::int64_t releasable_windows(const Group& group);
  void move_release(Group& group, std::int64_t target);
  void record_checkpoint(const Group& group, std::int64_t timeline, std::int64_t step);

  // queues.cc
  void enqueue(std::int64_t queue, const std::vector<Place>& places);
  void fill_queue(Group& queue);
  void empty_queue(Group& queue);
  bool is_indexed(std::int64_t width);
  void index_width(std::int64_t width);
  std::vector<Picked> pick(const Group& queue, const RefRequest& request, std::size_t limit, bool shared = false);
  std::vector<Picked> pick_filtered(const Group& queue, const RefRequest& request, std::size_t limit);
  bool is_overdue(const Group& queue);
  bool may_give(const Group& queue, const RefRequest& request);
  QueueAnswer give_none(const Group& queue);
  std::vector<RefLease> load_leases(const std::vector<Picked>& picked, const std::string& token);
  std::vector<QueueRef> find_held(Group& queue, const std::vector<RefLease>& leases, bool to_ack);
  void lock_shared_samples(const Group& queue, const std::vector<std::int64_t>& rows);
  [[noreturn]] void throw_lost(const Group& queue, const RefLease& lease, const QueueRef& ref);
  void end_claims(const std::vector<std::int64_t>& rows);
  std::vector<std::string> acked_ids(const Group& queue);
  std::int64_t take_back_expired(const Group& queue, std::int64_t now);
  void give_back_doubted_refs();

  // sql_ledger.cc; within a view of the caller's, as are the next two
  LedgerStatus read_status();
  std::vector<std::string> recount();  // check.cc

  // operators.cc
  std::int64_t droppable_row(const Group& group, const SampleId& id);

  // import.cc
  class Import;

  // prompts.cc
  void give_back_doubted();
  bool may_lease_prompts(std::int64_t now);

  std::unique_ptr<sql::Database> db_;
  sql::RefTemplates templates_;
  // What a lease_prompts, or a lease_refs, has leased whose outcome is unknown: nobody works on it, and its holder, who does
  // not know of it, would extend it with the rest for ever.
  std::vector<std::pair<std::string, std::string>> doubted_;  // holder, token
  struct DoubtedRefs {
    GroupId group;
    HolderId holder;
    std::string token;
  };
  std::optional<DoubtedRefs> doubted_refs_;
  std::int64_t longest_noted_ms_ = 0;         // the tables say at least this: another process can only have raised it
  const std::string self_ = random_hex128();  // tells this object from others that call themselves the same rank
};

}  // namespace draftflow
