// SPDX-License-Identifier: Apache-2.0
//
// Ledger: owns the facts of one run: which prompts wait, which samples are committed, which windows were dealt and
// trained, which checkpoints are durable, which bytes may go. Every transition is one transaction that checks its lease or
// timeline; calling it again is harmless. Time is the ledger's own (CLOCK_BOOTTIME with the boot id: leases of another
// boot are dead). A Ledger is used by one thread at a time; any number of processes may open the same file. Exhausted:
// the disk is full, nothing was changed; InDoubt: the commit's outcome is unknown, call again. The file is described in
// docs/formats/ledger.md.
//
//   prompt:  pending -> leased(holder, token, expiry) -> done | failed(reason)
//   sample:  committed -> freed;   in the group: available -> windowed(window) -> trained(timeline, step) -> durable;
//            aside: dropped(reason), failed(reason)
// This version keeps one consumer group in a ledger; windows are dealt in commit order and trained in the order of their
// numbers, each at a greater step than the one before.
//
//   auto ledger = open_sqlite_ledger("run/ledger.sqlite3");
//   ledger->commit_sample(ref, lease);                       // producer, after the bytes are down
//   WindowAnswer answer = ledger->next_window(timeline);     // trainer
//   ledger->trained(timeline, answer.window->number, step, {});
//   ledger->checkpointed(timeline, step);                    // after the checkpoint's file is down
//   for (const SampleRef& ref : ledger->freeable(256)) { store->remove(ref); ... ledger->freed(ids); }
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/records/prompt_task.h"
#include "draftflow/records/sample_ref.h"

namespace draftflow {

// How often a token occurs under the loss mask, and the first row (prompt or sample, in ingest order, from 0) that holds it.
// first_row is the ledger's to say: what a caller passes in there is ignored.
struct TokenCount {
  std::int64_t token = 0;
  std::int64_t count = 0;
  std::int64_t first_row = 0;
};

struct PromptLease {
  PromptTask task;
  std::string token;  // names this lease in commit and fail
};

// Says which it is: tasks, none just now (others are leased), or none ever again.
struct PromptAnswer {
  std::vector<PromptLease> leases;
  bool finished = false;  // the prompts are closed and none is pending or leased
};

struct GroupConfig {
  GroupId group{"train"};
  int window = 0;                 // W: refs of one optimizer step; fixed when the group is made
  int resumable_checkpoints = 1;  // a sample's bytes stay until this many newest checkpoints all hold it
};

struct TimelineInfo {
  std::int64_t number = 0;
  std::int64_t first_step = 0;  // optimizer steps that its checkpoint already holds
  std::string ledger_id;
};

// A checkpoint as a trainer presents it on resume, and as the ledger stores it.
struct CheckpointMark {
  std::string ledger_id;
  GroupId group{"train"};
  std::int64_t timeline = 0;
  std::int64_t step = 0;  // optimizer steps done
};

struct Window {
  std::int64_t number = 0;      // 0, 1, 2 ... in training order
  std::vector<SampleRef> refs;  // W of them, in dealing order
};

enum class WindowState { kWindow, kWaiting, kEndOfStream };

struct WindowAnswer {
  WindowState state = WindowState::kWaiting;
  std::optional<Window> window;  // set with kWindow
};

struct FailedSample {
  SampleId sample_id;
  std::string reason;
};

// committed = available + windowed + trained + durable + dropped + failed; freed counts across these. A prompt whose lease ran
// out counts as leased until somebody asks for prompts again. Files in place (file://) are never resident and never freed.
struct LedgerStatus {
  std::string ledger_id, run_id;  // run_id: the declared fact, or that of the first record
  std::int64_t prompts = 0, prompts_pending = 0, prompts_leased = 0, prompts_done = 0, prompts_failed = 0;
  bool prompts_closed = false;
  std::int64_t committed = 0;  // samples ever committed
  std::int64_t available = 0;  // committed, in no window yet
  std::int64_t windowed = 0, trained = 0, durable = 0, dropped = 0, failed = 0, freed = 0;
  std::uint64_t resident_bytes = 0;  // tensor bytes committed and not freed
  std::int64_t timeline = 0, trained_step = 0, durable_step = 0;
  std::int64_t committed_tokens = 0;
};

class Ledger {
 public:
  virtual ~Ledger() = default;
  virtual std::string id() = 0;  // random 128 bits as hex, made with the ledger

  // --- small facts of the run: set once, equal afterwards (Conflict, naming both, if another value is offered)
  virtual void declare(const std::string& key, const std::string& value) = 0;
  virtual std::optional<std::string> declared(const std::string& key) = 0;

  // --- prompts
  // A batch is all or nothing; a task id already there is skipped (Conflict if its payload differs). Counts are added for the
  // tasks that are new. Returns how many were new. InvalidArgument for a new task after close_prompts.
  virtual std::int64_t ingest_prompts(const std::vector<PromptTask>& tasks,
                                      const std::vector<std::vector<TokenCount>>& counts) = 0;
  virtual void close_prompts() = 0;  // no more will come
  // In ingest order, expired ones included; at most 1,024 at once. Expiry is no attempt, but a prompt whose lease ran out 100
  // times is failed: it kills its workers. Until somebody else leases the prompt, a late commit or fail still holds.
  virtual PromptAnswer lease_prompts(const HolderId& holder, int max_tasks, std::int64_t lease_ms) = 0;
  virtual void extend_leases(const HolderId& holder, std::int64_t lease_ms) = 0;
  // attempt + 1; pending again while retryable and attempts < max_attempts, else failed with the reason. Conflict: lost.
  virtual void fail_prompt(const PromptLease& lease, const std::string& reason, bool retryable, int max_attempts) = 0;
  virtual void return_leases(const HolderId& holder) = 0;  // at a clean stop: at once pending again
  virtual std::vector<std::pair<std::string, std::string>> failed_prompts(int limit) = 0;  // task id, reason

  // --- samples
  // Commits the sample and completes its prompt (of the same id) in one transaction; Conflict if the lease was lost. The same
  // generation again is a success. By the same lease a greater generation replaces the ref while no group has taken it, else
  // Conflict.
  virtual void commit_sample(const SampleRef& ref, const PromptLease& lease) = 0;
  // Offline sets: commits refs in order with their token counts. A sample already there is skipped. Returns how many new.
  virtual std::int64_t commit_samples(const std::vector<SampleRef>& refs,
                                      const std::vector<std::vector<TokenCount>>& counts) = 0;
  virtual bool is_committed(const SampleId& id) = 0;
  virtual std::optional<SampleRef> get_committed(const SampleId& id) = 0;
  virtual std::vector<std::string> all_committed_ids() = 0;  // commit order
  virtual std::vector<std::string> trained_ids() = 0;        // trained or durable, in training order
  virtual std::vector<TokenCount> token_counts() = 0;

  // --- training
  virtual void declare_group(const GroupConfig& config) = 0;  // InvalidArgument if it exists with another W
  // Opens the next timeline. Without a checkpoint everything trained returns to its window untrained. With one: Conflict
  // if it is of another ledger, group or line; recorded as durable first if the ledger has not heard of it. What was
  // trained after it returns, in order. InvalidArgument, with the count, if bytes that would be needed are freed.
  virtual TimelineInfo open_timeline(const GroupId& group, const std::optional<CheckpointMark>& resume) = 0;
  // The next untrained window after those already handed out on this timeline. Refs that wait in no window are dealt into a
  // new one as soon as W are committed. kEndOfStream once the prompts are finished and fewer than W are left; those are
  // dropped("tail shorter than a window") in the same transaction. Conflict if a newer timeline was opened. How far a
  // timeline was handed out is known to this object alone: another one begins at the first untrained window.
  virtual WindowAnswer next_window(const GroupId& group, std::int64_t timeline) = 0;
  // Moves the whole window to trained at `step` (1-based count of optimizer steps done); failed ones keep their place and
  // get their reason. Idempotent. Conflict if the timeline is not the newest, or the window was trained at another step;
  // InvalidArgument if an earlier window is untrained or the step is done already.
  virtual void trained(const GroupId& group, std::int64_t timeline, std::int64_t window, std::int64_t step,
                       const std::vector<FailedSample>& failed) = 0;
  virtual void checkpointed(const GroupId& group, std::int64_t timeline, std::int64_t step) = 0;
  // What may go: held by each of the newest resumable checkpoints, or dropped. Handing out is written down, since the bytes may
  // vanish from then on; it is handed out again until freed() says that it is gone.
  virtual std::vector<SampleRef> freeable(int limit) = 0;
  virtual void freed(const std::vector<SampleId>& ids) = 0;  // idempotent; Conflict if it was never handed out

  virtual LedgerStatus status() = 0;  // O(1): kept counters
};

// Makes the file if it is not there (with its folder), else opens it. InvalidArgument for another format version, naming
// both; Corrupt if the file is no SQLite database.
std::unique_ptr<Ledger> open_sqlite_ledger(const std::filesystem::path& path);

// As above, but NotFound if the file is not there, and never changes it (for status and inspect).
std::unique_ptr<Ledger> open_sqlite_ledger_read_only(const std::filesystem::path& path);

}  // namespace draftflow
