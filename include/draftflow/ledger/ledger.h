// SPDX-License-Identifier: Apache-2.0
//
// Ledger: owns the facts of one run: which prompts wait, which samples are committed, which windows were dealt and
// trained, which checkpoints are durable, which bytes may go. Every transition is one transaction that checks its lease or
// timeline; calling it again is harmless. No process is special: every producer and every trainer rank asks the ledger itself.
// Time is the ledger's own. A Ledger is used by one thread at a time; any number of processes may open the same one, or, of a
// ledger in memory, any number of threads of one process.
// Exhausted: the disk is full, nothing was changed; InDoubt: the commit's outcome is unknown, call again; Unavailable: the
// ledger could not be reached, nothing was changed. The tables are described in docs/formats/ledger.md.
//
//   prompt:  pending -> leased(holder, token, expiry) -> done | failed(reason)
//   sample:  committed -> freed;   in each group: available -> windowed(window) -> trained(timeline, step) -> durable,
//            or in a queue: available -> leased(holder, token, expiry) -> acked;   aside: dropped(reason), failed(reason)
// A group is one training run over the samples. It is declared before the first commit, or joins at the oldest sample whose
// bytes are there. Bytes go when every group's claim on them has ended. Windows are dealt in commit order and trained in the
// order of their numbers, each at a greater step than the one before; whatever the number of ranks, the order is the same.
// A window has W refs, or, with a cap in tokens, as many of the next ones as keep within it: it ends before the ref that would
// take it past the cap, and at the ref that reaches it. A ref larger than the cap makes a window of its own.
// A group of several passes is dealt its windows again, in their order and under new numbers, once the stream has ended, and
// claims its samples until the last pass is durable.
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
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/ledger/types.h"
#include "draftflow/records/prompt_task.h"
#include "draftflow/records/sample_ref.h"

namespace draftflow {

class Ledger {
 public:
  virtual ~Ledger() = default;
  virtual std::string id() = 0;  // random 128 bits as hex, made with the ledger

  // --- small facts of the run: set once, equal afterwards (Conflict, naming both, if another value is offered)
  virtual void declare(const std::string& key, const std::string& value) = 0;
  virtual std::optional<std::string> declared(const std::string& key) = 0;

  // --- prompts
  // A batch is all or nothing; a task id already there is skipped (Conflict if its payload differs). Counts are added for the
  // tasks that are new. Returns how many were new. InvalidArgument for a new task after close_prompts; Conflict, naming both,
  // for one of another run than the first.
  virtual std::int64_t ingest_prompts(const std::vector<PromptTask>& tasks,
                                      const std::vector<std::vector<TokenCount>>& counts) = 0;
  virtual void close_prompts() = 0;  // no more will come
  // In ingest order, expired ones included; at most 1,024 at once. Expiry is no attempt, but a prompt whose lease ran out 100
  // times is failed: it kills its workers. Until somebody else leases the prompt, a late commit or fail still holds.
  virtual PromptAnswer lease_prompts(const HolderId& holder, int max_tasks, std::int64_t lease_ms) = 0;
  virtual void extend_leases(const HolderId& holder, std::int64_t lease_ms) = 0;
  // Whether the lease still holds; if so, it does for at least half of lease_ms from now. To be asked by each put (PutFence): a
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
  // Commits refs in order, with their token counts (offline sets; else none), which count for new samples. A sample already
  // there is skipped; a greater generation of it replaces the ref while no group has taken it, and any other is Conflict; one
  // that comes twice as two generations is InvalidArgument. Then nothing of the call is committed. Returns how many are new.
  virtual std::int64_t commit_samples(const std::vector<SampleRef>& refs,
                                      const std::vector<std::vector<TokenCount>>& counts) = 0;
  virtual bool is_committed(const SampleId& id) = 0;
  virtual std::optional<SampleRef> get_committed(const SampleId& id) = 0;
  virtual std::vector<std::string> all_committed_ids() = 0;  // commit order
  // Trained or durable, in training order, once for each pass; in a queue acked, in commit order.
  virtual std::vector<std::string> trained_ids(const GroupId& group) = 0;
  virtual std::vector<TokenCount> token_counts() = 0;
  // Refs whose bytes the books say are in a store, or may be: not freed, and not files in place. In commit order from `from`
  // on, at most `limit`; `next` is where to go on, or nothing at the end.
  virtual RefPage resident_refs(std::int64_t from, int limit) = 0;

  // --- groups
  // Makes the group, or finds it: with another kind, W, cap, tail policy or passes InvalidArgument; resumable_checkpoints and
  // max_attempts become the new values. The verbs of windows on a queue, and the other way round, are InvalidArgument, naming
  // the kind.
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
  // divide W, and, with the count, if bytes that would be needed are freed (unless accept_loss, which takes a group of one
  // pass).
  virtual TimelineInfo open_timeline(const TimelineRequest& request) = 0;
  // A window's share. A window that is not dealt is dealt from the refs that wait in none, as soon as it is full: W are
  // committed, or, with a cap, those that reach it, or the one that would pass it; the
  // number asked for may be at most one past the dealt ones (InvalidArgument). kEndOfStream once the prompts are finished and
  // what is left fills no window; by the group's tail policy that is dropped("tail shorter than a window") in the same
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

  // Sleeps until another process, thread or Ledger may have changed what is waited for (prompts, samples, refs, windows, room,
  // an end) since this object's previous wait() returned, at most timeout_ms. True: ask again; false: the time is over. What
  // was changed after the previous return is never missed, so that a verb that was asked in between cannot be too early. The
  // first call is true at once, one that finds nothing new may be, and wake-ups come at least some 5 ms apart. While nothing
  // changes nothing is asked of the engine. Time wakes nobody, and leases run out: ask again at least once a second.
  virtual bool wait(std::int64_t timeout_ms) = 0;

  // --- for a person; each may be called while a run goes on
  // Who holds what: prompts first, then the queues' refs in the order of the groups, each by holder. Costs what is leased.
  virtual std::vector<HolderLeases> leases() = 0;
  // Counts every row anew, on one view, and holds the counters, the rules between the tables and each record against them; what
  // the engine itself can tell of its bytes, too. One finding a text; none: all is well. Reads everything, changes nothing.
  virtual std::vector<std::string> check() = 0;
  // Failed prompts are pending again, with no attempts behind them; the others stay as they are. Of expiries one is kept, so
  // that the next lease is taken_over as it was: who held the prompt then may still be writing. Returns how many. Idempotent.
  virtual std::int64_t retry_prompts(const std::vector<TaskId>& ids) = 0;
  // Pending prompts are failed with the reason, those whose lease ran out among them. All or nothing; what is failed stays as
  // it is, so that it is idempotent. Conflict, naming the prompt, if one is leased or done. Returns how many. With dry_run the
  // answer is the same and nothing is changed.
  virtual std::int64_t drop_prompts(const std::vector<TaskId>& ids, const std::string& reason, bool dry_run = false) = 0;
  // The group's claim on available samples ends, for good, as dropped(reason). All or nothing; what it has dropped stays as it
  // is, so that it is idempotent. Conflict, naming the sample, if one is in a window, leased, acked, failed or was never the
  // group's. Returns how many, dry_run as above.
  virtual std::int64_t drop_refs(const GroupId& group, const std::vector<SampleId>& ids, const std::string& reason,
                                 bool dry_run = false) = 0;
  // The whole ledger as lines of JSON (docs/formats/ledger_export.md), of one view; memory stays bounded. Leases end: what is
  // leased is told as pending, with one expiry more, or available. Unavailable in the midst of it: begin again, with all lines.
  // InvalidArgument from a ledger in memory, which does not keep all that a line has; of import_from, too.
  virtual void export_to(const std::function<void(const std::string& line)>& write) = 0;
  // Makes this ledger, which must be empty (Conflict, saying what is in it), the one that the lines tell of, its id included,
  // so that checkpoints can be resumed; from then on the old one must not be used. All or nothing. Corrupt, naming the line,
  // for what is no export, or not a whole one, or does not hold together (check()). InDoubt: call again, Conflict then says
  // that it held.
  virtual void import_from(const std::function<std::optional<std::string>()>& next_line) = 0;
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

// A ledger in this process's memory, for tests and programs of one process: it lives as long as its books or a Ledger on them,
// and nothing outlives the process. Each thread opens a Ledger of its own; they take turns. Not for use by a forked child. Of a
// prompt or a sample that is done it remembers some 200 bytes. Exhausted at 2^32 prompts or samples.
//   const auto books = make_memory_ledger();
//   const auto ledger = open_memory_ledger(books);
class MemoryBooks;
std::shared_ptr<MemoryBooks> make_memory_ledger();
std::unique_ptr<Ledger> open_memory_ledger(std::shared_ptr<MemoryBooks> books);

// For a loop that asks, finds nothing and waits: until the ledger may have changed, a second is over, after which time may
// have changed it, or `stop` is true, which is looked at at least every 100 ms.
void wait_for_change(Ledger& ledger, const std::function<bool()>& stop);

// By its name: a URL of PostgreSQL, or a SQLite file.
bool is_ledger_url(const std::string& where);
std::unique_ptr<Ledger> open_ledger(const std::string& where);
std::unique_ptr<Ledger> open_ledger_read_only(const std::string& where);

// By how much the clock of the ledger's server is ahead of this machine's, milliseconds, to within the time of the question;
// nothing for a ledger without a server: its time is this machine's own.
std::optional<std::int64_t> ledger_clock_ahead_ms(const std::string& where);

}  // namespace draftflow
