// SPDX-License-Identifier: Apache-2.0
//
// What the processes of a chaos run share: the plan, a page of counters, the deterministic contents of samples, and the files
// in which they tell what went wrong. In the run's folder, which is on an ordinary file system:
//
//   plan.json        what is run, the same for every process          board     counters, mapped by all processes
//   violations.log   broken promises, one a line                      puts.log  what producers did, one step a line
//   logs/            stderr of each process                           rdv/      the sockets of launches
//   {queue}.taken    what a queue's consumers did, one step a line
//   disk/            store, ledger and checkpoints: on a small file system where one can be mounted
//
// Plain values and functions; the board's counters may be used by any process at any time.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/base/random.h"
#include "draftflow/formats/tensor.h"
#include "draftflow/ledger/ledger.h"
#include "draftflow/store/feature_store.h"

namespace draftflow::chaos {

// Mistakes that a run can be told to make, to prove that it finds them. None of them is in production code.
enum class Bug {
  kNone,
  kSkipTimelineCheck,   // a call that another trainer's timeline refuses is made again under that one's number
  kFreeAtFetch,         // a sample's bytes are removed when its window was read
  kSplitCommit,         // a prompt is completed in one transaction, its sample committed in the next
  kDurableBeforeFile,   // checkpointed() and the frees come before the checkpoint's file
  kForgetfulResume,     // a trainer loads an old checkpoint and says to the ledger that it has the newest step
  kStepBeforeTrained,   // a checkpoint holds a window that trained() has not been told of yet
  kAbortAfterConflict,  // a producer that lost its lease removes every generation of the sample
  kForgottenFailure,    // a sample that cannot be read is skipped without a report
  kBlindPut,            // a producer puts without asking whether the prompt is still its own
  kStaleNumber,         // a producer that took a prompt over does not say so to the store
  kAckBeforeReading,    // a queue's consumer acks what it has not read yet
  kLostAckIsDone,       // a queue's consumer takes an ack for good that was refused because its lease was lost
  kFreeAtLease,         // a queue's consumer removes the bytes when it has read them, before its ack
  kClosedAckIsDone,     // a queue's consumer takes an ack for good that was refused because the queue was closed
  kNoteBeforeJoining,   // a late group is believed to have joined before it has
  kFreeAfterPass,       // a group of several passes removes what its checkpoint holds, although a later pass needs it
  kOnePass,             // a group of several passes is declared as one of a single pass
  kEnd
};
const char* bug_name(Bug bug);

struct GroupPlan {
  std::string name;
  int window = 0, resumable = 1, max_width = 4;
  TailPolicy tail = TailPolicy::kDrop;
  bool late = false;    // joins when samples have been freed already
  bool closed = false;  // is closed in the midst of its work: a queue at some time of the chaos, the others at its end
  bool queue = false;   // has no window and what follows from it
  int passes = 1;
};
constexpr int kQueueAttempts = 4;  // of a ref in a queue, until it has failed for good

struct Plan {
  std::filesystem::path folder;
  std::string ledger;  // as open_ledger takes it
  std::string lossy;   // the same one by a link that loses commits and replies; empty if there is none
  std::uint64_t seed = 0;
  Bug bug = Bug::kNone;
  std::int64_t started_ms = 0;  // by the machine's steady clock
  unsigned lifetime_s = 0;      // after which a process ends itself, whatever happens
  std::vector<GroupPlan> groups;

  std::filesystem::path disk() const { return folder / "disk"; }
  std::filesystem::path taken(const GroupPlan& queue) const { return folder / (queue.name + ".taken"); }
  std::filesystem::path checkpoints(const GroupPlan& group) const { return disk() / group.name; }
};
std::int64_t steady_ms();
GroupConfig config_of(const Plan& plan, const GroupPlan& group);
void save_plan(const Plan& plan);
Plan load_plan(const std::filesystem::path& folder);

enum class Count {
  kCommits,
  kCommitConflicts,  // a producer came too late, and removed its bytes
  kReads,
  kFailedReads,
  kExhausted,
  kUnavailable,  // and InDoubt
  kStaleCalls,   // calls of a trainer that was taken over, each a Conflict
  kSteps,
  kCheckpoints,
  kFreed,
  kDeaths,  // by a process's own hand, between two calls
  kStalls,  // the same, stopped
  kSqueezedPuts,
  kOrphans,     // generations that nothing names, swept
  kRefusedOld,  // resumes that would have lost samples
  kRefusedOffLine,
  kResumedOlder,
  kRewound,   // samples lost by resumes that accepted it
  kAcks,      // refs of queues
  kLostRefs,  // acks and failures of a queue's consumer that came too late
  kEnd
};
const char* count_name(Count count);

// Where a trainer rank may be told to stop, so that another launch takes over in just that moment.
enum class Point {
  kNone,
  kBeforeReport,
  kBeforeTrained,
  kBeforeFile,
  kBeforeCheckpointed,
  kBeforeFreeable,
  kBeforeRemove,
  kBeforeFreed,
  kBeforePrune,
  kEnd
};

constexpr std::size_t kMaxGroups = 8;

class Board {
 public:
  explicit Board(const std::filesystem::path& folder);  // made by the first process
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;
  ~Board();

  void add(Count count, std::int64_t by = 1) { page_->counts[static_cast<std::size_t>(count)] += by; }
  std::int64_t get(Count count) const { return page_->counts[static_cast<std::size_t>(count)]; }

  // The newest timeline whose open_timeline has returned, in any process. A call of an older one that begins now must fail.
  std::int64_t newest_timeline(std::size_t group) const { return page_->newest_timeline[group]; }
  void note_timeline(std::size_t group, std::int64_t number);

  std::atomic<std::int64_t>& stop_ingest() { return page_->stop_ingest; }
  std::atomic<std::int64_t>& violations() { return page_->violations; }
  std::atomic<std::int64_t>& stall_at(std::size_t group) { return page_->stall_at[group]; }  // a Point; who meets it stops

 private:
  struct Page {
    std::atomic<std::int64_t> stop_ingest, violations;
    std::atomic<std::int64_t> newest_timeline[kMaxGroups], stall_at[kMaxGroups];
    std::atomic<std::int64_t> counts[static_cast<std::size_t>(Count::kEnd)];
  };
  Page* page_ = nullptr;
};

// One process's view of the run.
struct Stage {
  Stage(const std::filesystem::path& folder, std::uint64_t ordinal);

  const Plan plan;
  Board board;
  Random random;  // of its own: (the plan's seed, ordinal)

  void violation(const std::string& text);  // a promise was broken; the process goes on
  // Dies here now and then. A trainer rank of the group stops here if it was told to.
  void point(Point point, std::optional<std::size_t> group = {});

 private:
  const std::filesystem::path violations_;
};

void append_line(const std::filesystem::path& file, const std::string& line);  // in one write: whole, also from many processes
std::vector<std::string> read_lines(const std::filesystem::path& file);        // none if it is not there

// --- samples: everything about one follows from its id
enum class Kind {
  kSound,
  kPoisoned,   // the prompt fails for good
  kFlaky,      // the prompt fails twice, then it is sound
  kNotFinite,  // it holds a NaN
  kDeleted,    // its bytes are deleted behind the ledger's back
  kDamaged,    // a bit of it is flipped
  kFitful      // its bytes are sound, but reading it fails in some windows, and in a queue at first
};
constexpr int kFitfulFailures = 2;  // in a queue, before it can be read
std::string task_name(std::int64_t number);
Kind kind_of(const Plan& plan, const std::string& id);
TensorMap tensors_of(const Plan& plan, const std::string& id);
bool falters_in(const Plan& plan, const std::string& id, std::int64_t window);
// Nothing if they are the sample's and finite; else the reason. Other bytes than those put are a violation.
std::optional<std::string> check_tensors(Stage& stage, const std::string& id, const TensorMap& tensors);

std::unique_ptr<FeatureStore> make_store(const Plan& plan, std::uint64_t max_resident_bytes);
std::unique_ptr<FeatureStore> open_store(const Plan& plan, std::uint64_t free_space_floor);

// What a producer did with a prompt, in puts.log, for whoever looks into a broken promise: "holds" when it has heard that the
// lease holds, "put", "committed", "removed".
struct PutStep {
  std::string what, id, token;
  std::uint64_t generation = 0;
  std::int64_t at_ms = steady_ms();
};
constexpr std::int64_t kLeaseMs = 240;
void log_put(const Plan& plan, const PutStep& step);

// Calls until it is neither Exhausted nor Unavailable nor InDoubt, for half a minute at most.
void with_patience(Stage& stage, const std::function<void()>& call);

}  // namespace draftflow::chaos
