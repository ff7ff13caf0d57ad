// SPDX-License-Identifier: Apache-2.0
//
// Ledger: owns the facts of one run: which prompts wait, which samples are committed, which windows were dealt and
// trained, which checkpoints are durable, which bytes may go. Every transition is one transaction that checks its lease or
// timeline; calling it again is harmless. No process is special: every producer and every trainer rank asks the ledger itself.
// Time is the ledger's own. A Ledger is used by one thread at a time; any number of processes may open the same one.
// Exhausted: the disk is full, nothing was changed; InDoubt: the commit's outcome is unknown, call again; Unavailable: the
// ledger could not be reached, nothing was changed. The tables are described in docs/formats/ledger.md.
//
//   prompt:  pending -> leased(holder, token, expiry) -> done | failed(reason)
//   sample:  committed -> freed;   in each group: available -> windowed(window) -> trained(timeline, step) -> durable,
//            or in a queue: available -> leased(holder, token, expiry) -> acked;   aside: dropped(reason), failed(reason)
// A group is one training run over the samples. It is declared before the first commit, or joins at the oldest sample whose
// bytes are there. Bytes go when every group's claim on them has ended. Windows are dealt in commit order and trained in the
// order of their numbers, each at a greater step than the one before; whatever the number of ranks, the order is the same.
// A queue is the other kind of group, for consumers that take what comes and answer for each ref: no windows, no steps.
//
//   auto ledger = open_sqlite_ledger("run/ledger.sqlite3");
//   ledger->commit_sample(ref, lease);                                        // producer, after the bytes are down
//   TimelineInfo line = ledger->open_timeline({.group = g, .width = 2, .rank = 1, .launch = "a"});   // each trainer rank
//   WindowAnswer answer = ledger->read_window(g, line.number, line.first_window, {.rank = 1, .width = 2});
//   ledger->trained(g, line.number, answer.window->number, step, {});         // after the step; the first rank's call counts
//   ledger->checkpointed(g, line.number, step);                               // after the checkpoint's file is down
//   QueueAnswer work = ledger->lease_refs({.group = q, .holder = me, .max_refs = 64});            // a queue's consumer
//   ledger->ack_refs(q, work.leases);                                         // when it has done with them
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

// What becomes of fewer samples than a window at the end of the stream: they are dropped, and their bytes freed, or stay
// available and resident.
enum class TailPolicy { kDrop, kCarry };

enum class GroupKind { kWindows, kQueue };

// Of a queue the name, the kind and max_attempts count.
struct GroupConfig {
  GroupId group{"train"};
  int window = 0;                        // W: refs of one optimizer step; fixed when the group is made; 0 for a queue
  int resumable_checkpoints = 1;         // a sample's bytes stay until this many newest checkpoints all hold it
  TailPolicy tail = TailPolicy::kDrop;   // fixed when the group is made
  GroupKind kind = GroupKind::kWindows;  // fixed when the group is made
  int max_attempts = 3;                  // a queue's ref that has failed so often stays failed
};

// A checkpoint as a trainer presents it on resume, and as the ledger stores it.
struct CheckpointMark {
  std::string ledger_id;
  GroupId group{"train"};
  std::int64_t timeline = 0;
  std::int64_t step = 0;  // optimizer steps done
};

// How a trainer rank enters. Ranks of one launch share a timeline: the first one opens it, the others find it by the launch's
// name. A rank that comes twice, or a launch after another one has taken over, is Conflict.
struct TimelineRequest {
  GroupId group{"train"};
  std::optional<CheckpointMark> resume;  // the checkpoint that the ranks have loaded; nothing: from the start
  int width = 1;                         // data-parallel groups of ranks; divides W
  int rank = 0;                          // 0 .. width - 1
  std::string launch;                    // the same for the ranks of one launch, never used again; empty: a launch of one rank
  bool accept_loss = false;              // samples that the checkpoint lacks and whose bytes are freed are dropped("rewound")
};

struct TimelineInfo {
  std::int64_t number = 0;
  std::int64_t first_step = 0;    // optimizer steps that its checkpoint already holds
  std::int64_t first_window = 0;  // the first untrained one, when it was opened
  std::int64_t lost = 0;          // samples that were dropped("rewound") by opening it
  std::string ledger_id;
};

// Of a window: the positions p with p mod width = rank.
struct WindowShare {
  int rank = 0, width = 1;
};

struct Window {
  std::int64_t number = 0;      // 0, 1, 2 ... in training order
  std::vector<SampleRef> refs;  // those of the share, in dealing order: refs[i] is at position i * width + rank
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

// A shard of a queue: the samples with dp_partition(id, count) = index (partition.h). Each call chooses its own, so that the
// number of consumers may change at any time: nothing is leased twice or left out by that.
struct Partition {
  int index = 0, count = 1;
};

struct RefLease {
  SampleRef ref;
  std::string token;  // names the lease in ack, fail; the refs of one call share it
  int attempt = 0;    // failures before
};

struct RefRequest {
  GroupId group{"train"};
  HolderId holder{"consumer"};
  int max_refs = 1;             // at most 4,096 at once
  std::int64_t max_tokens = 0;  // of the refs together, 0: no cap; one ref is given even if it is larger
  std::int64_t lease_ms = 60'000;
  std::optional<Partition> partition;
};

enum class QueueState { kRefs, kEmpty, kEndOfStream };

struct QueueAnswer {
  QueueState state = QueueState::kEmpty;
  std::vector<RefLease> leases;  // with kRefs
};

// One group: its samples are available + windowed + trained + durable + dropped + failed; those of a queue available + leased +
// durable (acked) + dropped + failed.
struct GroupStatus {
  std::string group;
  GroupKind kind = GroupKind::kWindows;
  int window = 0;
  bool open = true;            // false: closed, its claims have ended
  std::int64_t available = 0;  // in no window yet; in a queue: not leased
  std::int64_t leased = 0;     // a lease that ran out counts until somebody asks for refs again
  std::int64_t windowed = 0, trained = 0, durable = 0, dropped = 0, failed = 0;
  std::int64_t timeline = 0, width = 0, trained_step = 0, durable_step = 0;
  std::int64_t pinned = 0;  // samples that are resident for this group
};

// A prompt whose lease ran out counts as leased until somebody asks for prompts again. Files in place (file://) are never
// resident and never freed.
struct LedgerStatus {
  std::string ledger_id, run_id;  // run_id: the declared fact, or that of the first record
  std::int64_t prompts = 0, prompts_pending = 0, prompts_leased = 0, prompts_done = 0, prompts_failed = 0;
  bool prompts_closed = false;
  std::int64_t committed = 0;  // samples ever committed
  std::int64_t freed = 0;
  std::uint64_t resident_bytes = 0;  // tensor bytes committed and not freed
  std::int64_t committed_tokens = 0;
  std::vector<GroupStatus> groups;  // in the order in which they were declared

  // That group's figures; before it is declared, everything committed is available to it.
  GroupStatus of(const GroupId& group) const;
};

struct RefPage {
  std::vector<SampleRef> refs;
  std::optional<std::int64_t> next;
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
  // Whether the lease still holds; if so, it does for at least half of lease_ms from now. To be asked right before each put: a
  // put retires what another holder, who took the prompt over, has put and not committed yet.
  virtual bool extend_lease(const PromptLease& lease, std::int64_t lease_ms) = 0;
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
  // Trained or durable, in training order; in a queue acked, in commit order.
  virtual std::vector<std::string> trained_ids(const GroupId& group) = 0;
  virtual std::vector<TokenCount> token_counts() = 0;
  // Refs whose bytes the books say are in a store, or may be: not freed, and not files in place. In commit order from `from`
  // on, at most `limit`; `next` is where to go on, or nothing at the end.
  virtual RefPage resident_refs(std::int64_t from, int limit) = 0;

  // --- groups
  // Makes the group, or finds it: with another kind, W or tail policy InvalidArgument; resumable_checkpoints and max_attempts
  // become the new values. The verbs of windows on a queue, and the other way round, are InvalidArgument, naming the kind.
  virtual void declare_group(const GroupConfig& config) = 0;
  // Ends the group's claims on every sample, for good: those that no other group claims may go. What a queue has not acked is
  // dropped("the group was closed"). Idempotent; whoever goes on to use the group gets Conflict.
  virtual void close_group(const GroupId& group) = 0;
  // What failed, with its reason, in commit order; of windows those that were trained, in training order.
  virtual std::vector<FailedSample> failed_refs(const GroupId& group, int limit) = 0;

  // --- training in windows
  // Opens the next timeline, or joins that of the launch. Without a checkpoint everything trained returns to its window
  // untrained. With one: Conflict if it is of another ledger, group or line; recorded as durable first if the ledger has not
  // heard of it. What was trained after it returns, in order. InvalidArgument, with the arithmetic, for a width that does not
  // divide W, and, with the count, if bytes that would be needed are freed (unless accept_loss).
  virtual TimelineInfo open_timeline(const TimelineRequest& request) = 0;
  // A window's share. A window that is not dealt is dealt from the refs that wait in none, as soon as W are committed; the
  // number asked for may be at most one past the dealt ones (InvalidArgument). kEndOfStream once the prompts are finished and
  // fewer than W are left; by the group's tail policy those are dropped("tail shorter than a window") in the same
  // transaction; InvalidArgument if that would leave the group without any step. Conflict if a newer timeline was opened, or
  // the share is not of the timeline's width.
  virtual WindowAnswer read_window(const GroupId& group, std::int64_t timeline, std::int64_t number,
                                   const WindowShare& share = {}) = 0;
  // Refs that turned out unreadable or not finite: each keeps its place without weight, with the reason. To be called by the
  // rank that found them before the window's step, so that whoever says trained() says it for all. Idempotent.
  virtual void report_failed(const GroupId& group, std::int64_t timeline, std::int64_t window,
                             const std::vector<FailedSample>& failed) = 0;
  // Moves the whole window to trained at `step` (1-based count of optimizer steps done), with what was reported and `failed`.
  // Idempotent, so that every rank may call it. Conflict if the timeline is not the newest, or the window was trained at
  // another step; InvalidArgument if an earlier window is untrained or the step is done already.
  virtual void trained(const GroupId& group, std::int64_t timeline, std::int64_t window, std::int64_t step,
                       const std::vector<FailedSample>& failed) = 0;
  virtual void checkpointed(const GroupId& group, std::int64_t timeline, std::int64_t step) = 0;

  // --- queues
  // Available refs in commit order, of the partition if one is given; what expired leases held is available again first. Expiry
  // is no attempt. kEndOfStream once the prompts are finished and nothing of the group, in any partition, is available or
  // leased. The cost is that of the refs given; for a partition into more than 42, unless docs/formats/ledger.md names it
  // (powers of two up to 1,024 ...), that of all available refs.
  virtual QueueAnswer lease_refs(const RefRequest& request) = 0;
  // The group is done with them: its claim ends. All or nothing, and by the same token idempotent. Conflict, naming the sample,
  // if a lease was lost: it ran out and the ref was leased again, or it was given back. Until then a late ack or fail holds.
  virtual void ack_refs(const GroupId& group, const std::vector<RefLease>& leases) = 0;
  // attempt + 1; available again while retryable and attempts < max_attempts, else failed with the reason, and the claim ends.
  // All or nothing, idempotent and Conflict as above; what was acked stays acked.
  virtual void fail_refs(const GroupId& group, const std::vector<RefLease>& leases, const std::string& reason,
                         bool retryable) = 0;
  virtual void extend_refs(const GroupId& group, const HolderId& holder, std::int64_t lease_ms) = 0;
  virtual void return_refs(const GroupId& group, const HolderId& holder) = 0;  // at a clean stop: at once available again
  // For a person: the failed ones among the samples whose bytes are still there are available again, with no attempts behind
  // them; the others stay as they are. Returns how many. Idempotent.
  virtual std::int64_t retry_failed(const GroupId& group, const std::vector<SampleId>& ids) = 0;

  // --- bytes
  // What may go: each group has it in each of its newest resumable checkpoints, or acked, dropped or (a queue) failed, or is
  // closed. Handing out is written down, since the bytes may vanish from then on; it is handed out again until freed() says
  // that it is gone.
  virtual std::vector<SampleRef> freeable(int limit) = 0;
  virtual void freed(const std::vector<SampleId>& ids) = 0;  // idempotent; Conflict if it was never handed out

  virtual LedgerStatus status() = 0;  // O(1): kept counters
};

// Makes the file if it is not there (with its folder), else opens it. InvalidArgument for another format version, naming
// both; Corrupt if the file is no SQLite database.
std::unique_ptr<Ledger> open_sqlite_ledger(const std::filesystem::path& path);

// As above, but NotFound if the file is not there, and never changes it (for status and inspect).
std::unique_ptr<Ledger> open_sqlite_ledger_read_only(const std::filesystem::path& path);

// A ledger in a schema of a PostgreSQL database, for processes of many hosts; its tables are made if they are not there. Time
// is the server's. A call that meets a lost connection, or a server that restarts, is made again for 30 s. NotFound for an
// absent database or schema, PermissionDenied for a role or password that the server refuses, InvalidArgument for tables of
// another program or version. "postgresql://trainer@host/runs?options=-csearch_path%3Drun_7"; what is left out comes from
// PGHOST, PGPASSWORD ... and ~/.pgpass.
std::unique_ptr<Ledger> open_postgres_ledger(const std::string& url);

// By its name: a URL of PostgreSQL, or a SQLite file.
bool is_ledger_url(const std::string& where);
std::unique_ptr<Ledger> open_ledger(const std::string& where);
std::unique_ptr<Ledger> open_ledger_read_only(const std::string& where);

}  // namespace draftflow
