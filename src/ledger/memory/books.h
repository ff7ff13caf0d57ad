// SPDX-License-Identifier: Apache-2.0
//
// MemoryBooks: the state of a ledger in memory, shared by the MemoryLedgers that were opened on it. One mutex guards it all;
// each call holds it from its first look to its last change, so that calls are transactions. Rows are numbered as in the SQL
// tables (docs/formats/ledger.md), and the states are the same. Kept for ever are what the interface must know: ids, packed
// refs, how each prompt and ref ended; texts of prompts go when they are done. Private to this room.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/ledger/ledger.h"
#include "ledger/memory/id_index.h"
#include "ledger/memory/leases.h"
#include "ledger/memory/packed_ref.h"
#include "ledger/memory/row_set.h"
#include "ledger/memory/rows.h"
#include "ledger/memory/shards.h"
#include "ledger/refusals.h"
#include "ledger/rules.h"

namespace draftflow {

namespace memory {

constexpr std::int64_t kMostRows = (1LL << 32) - 2;  // of prompts, and of samples

struct Prompt {
  std::string task_id;
  std::array<unsigned char, 16> payload{};  // SHA-256 of its text, cut: another text under this id is told by it
  std::unique_ptr<PromptTask> task;         // until it is done
  LeaseNumber token = 0, ended_token = 0;
  std::int32_t attempts = 0;
  std::int16_t expiries = 0;
  std::int8_t state = kPending;
};

// Of a prompt with a token, even if it ran out.
struct PromptHold {
  std::string holder;
  std::int64_t expires_ms = 0;
};

struct Sample {
  PackedRef ref;
  std::int32_t claims = 0;
  std::int8_t state = kNeeded;
  bool in_place = false;
};

struct Window {
  std::int64_t refs_through = 0;  // refs of the windows up to this one: where the next one's begin in `rows`
  std::int64_t timeline = 0, step = 0;
  std::int32_t failed = 0, going = 0;
};

struct Timeline {
  std::int64_t parent = 0, first_step = 0, first_window = 0, width = 1, lost = 0;
  std::string launch;
};

// Windows are trained in the order of their numbers: durable <= trained <= dealt are ends of one sequence, released is one of
// its first pass.
struct WindowsGroup {
  std::int64_t next_row = 0;  // samples before it are dealt, dropped or never were the group's
  std::int64_t trained_windows = 0, durable_windows = 0, released_windows = 0;
  std::int64_t trained_step = 0, durable_step = 0, failed_trained = 0, failed_durable = 0;
  std::vector<Window> windows;
  std::vector<std::uint32_t> rows;               // of all windows; ascending within a pass
  std::int64_t pass_windows = 0;                 // the windows of each pass, once the stream has ended; before: 0
  std::map<std::uint64_t, std::string> reasons;  // of what failed, by its place in `rows`
  std::set<std::int64_t> dropped_rows;
  std::vector<Timeline> timelines;                         // number - 1
  std::unordered_map<std::string, std::int64_t> launches;  // the newest timeline of each
  std::map<int, std::uint64_t> ranks;                      // of the newest timeline: the MemoryLedger that entered
  std::set<std::int64_t> checkpoints;                      // steps of those that no resume went behind

  std::int64_t timeline() const { return static_cast<std::int64_t>(timelines.size()); }
  std::int64_t width() const { return timelines.empty() ? 1 : timelines.back().width; }
  std::int64_t dealt() const { return static_cast<std::int64_t>(windows.size()); }
  std::int64_t first_pass() const { return pass_windows > 0 ? pass_windows : dealt(); }
  // Where the refs of a window begin in `rows`: how many the windows before it have.
  std::int64_t first_of(std::int64_t number) const {
    return number == 0 ? 0 : windows[static_cast<std::size_t>(number - 1)].refs_through;
  }
};

struct QueueRef {
  LeaseNumber token = 0, ended_token = 0;
  std::int32_t attempts = 0;
  std::int8_t state = kNotThere;
  bool marked = false;  // while a call looks its leases over

  static constexpr std::int8_t kNotThere = -1;
  bool is_gone() const { return state == kAcked || state == kNotThere; }  // for good
};

struct Queue {
  Rows<QueueRef> refs;
  std::int64_t first_row = 0, end_row = 0;  // `refs` has rows from there to there
  std::int64_t leased = 0, acked = 0;
  RowSet available;
  Shards shards;
  RefLeases leases;
  std::map<std::int64_t, std::string> failed;  // with the reason
  std::set<std::int64_t> dropped_rows;         // by hand, while it was open

  QueueRef* find(std::int64_t row) {
    if (row < first_row || row >= end_row || refs[row].state == QueueRef::kNotThere) return nullptr;
    return &refs[row];
  }
};

struct Group {
  std::string name;
  GroupConfig config;
  bool open = true;
  std::int64_t available = 0, dropped = 0;
  WindowsGroup windows;  // of kWindows
  Queue queue;           // of kQueue

  bool is_queue() const { return config.kind == GroupKind::kQueue; }
  // Whether windows are to be dealt after the stream has ended.
  bool has_passes_left() const {
    const std::int64_t dealt = windows.dealt();
    return config.passes > 1 && (windows.pass_windows == 0 ? dealt > 0 : dealt < config.passes * windows.pass_windows);
  }
};

}  // namespace memory

class MemoryBooks {
 public:
  const std::string id = random_hex128();
  const std::string name = "mem://" + id;  // for messages
  const LeaseTokens tokens{};

  std::mutex mutex;  // guards all below
  std::string boot_id;
  std::uint64_t ledgers = 0;  // that were opened on it
  std::uint64_t changes = 0;  // made so far
  std::condition_variable changed;
  memory::LeaseNumber last_lease = 0;
  // That anybody asked for. A time further ahead, by more than kClockSlackMs, was written before the clock was set back.
  std::int64_t longest_lease_ms = 0;
  std::map<std::string, std::string> facts;
  std::map<std::int64_t, TokenCount> token_counts;

  bool prompts_closed = false;
  memory::Rows<memory::Prompt> prompts;
  memory::IdIndex prompt_index;
  std::int64_t prompt_count = 0, pending = 0, leased = 0, done = 0;
  memory::RowSet pending_prompts;
  std::unordered_map<std::int64_t, memory::PromptHold> holds;
  std::set<std::pair<std::int64_t, std::int64_t>> prompt_expiries;  // time and row of what is leased
  std::map<std::string, std::set<std::int64_t>> prompt_holders;     // rows that are leased
  std::map<std::int64_t, std::string> failed_prompts;               // with the reason

  memory::Rows<memory::Sample> samples;
  memory::IdIndex sample_index;
  memory::RefPatterns patterns;
  std::int64_t committed = 0, committed_tokens = 0, resident_bytes = 0, freed = 0;
  memory::RowSet resident;  // not freed, and no file in place
  memory::RowSet may_go, going;

  // Whether a lease that should end then has ended now.
  bool ran_out(std::int64_t expires_ms, std::int64_t now) const {
    return expires_ms <= now || expires_ms > now + longest_lease_ms + kClockSlackMs;
  }

  std::deque<memory::Group> groups;  // in the order of declaration; they stay where they are
  std::unordered_map<std::string, memory::Group*> group_names;
};

}  // namespace draftflow
