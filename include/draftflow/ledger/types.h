// SPDX-License-Identifier: Apache-2.0
//
// What goes into a Ledger's calls and what comes out of them (ledger.h): plain values that own what they hold. Any thread.
#pragma once

#include <cstdint>
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
  std::string token;        // names this lease in commit and fail
  bool taken_over = false;  // it ran out for another holder before, who may still be at work: say so to the store's put
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
  int passes = 1;                        // how often each sample is trained; fixed when the group is made; 1 for a queue
  std::int64_t max_window_tokens = 0;    // of a window's refs together; 0: no cap; fixed when the group is made; 0 for a queue
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

// Of a window: the positions p with p mod width = rank. A window that its group's cap in tokens made shorter than W has refs at
// its first positions only, so that ranks may get different numbers of them, or none; each takes part in the step all the same.
struct WindowShare {
  int rank = 0, width = 1;
};

struct Window {
  std::int64_t number = 0;  // 0, 1, 2 ... in training order
  std::vector<SampleRef>
      refs;  // of the share, in dealing order: refs[i] is at position i * width + rank; under a cap maybe none
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
  std::int64_t max_window_tokens = 0;
  int passes = 1;              // in those after the first a dealt sample counts once for each
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

// What one holder has leased: prompts, or refs of one queue.
struct HolderLeases {
  std::string holder;
  std::string group;               // of refs; empty: prompts
  std::int64_t count = 0;          // those that ran out and that nobody else has taken yet among them
  std::int64_t expired = 0;        // of these, how many ran out
  std::int64_t expires_in_ms = 0;  // of the one that holds longest; 0 or less: so long ago the last one ran out
};

}  // namespace draftflow
