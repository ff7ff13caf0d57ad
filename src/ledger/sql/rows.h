// SPDX-License-Identifier: Apache-2.0
//
// Rows of the ledger's tables as structs, shared by the .cc files of SqlLedger. Private to this folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "ledger/sql/sql_ledger.h"

namespace draftflow {

struct SqlLedger::Group {
  std::int64_t id = 0;
  std::string name;
  std::int64_t window_size = 0, resumable_checkpoints = 0, tail = 0, open = 1;
  std::int64_t next_row = 0;   // samples before it are dealt, dropped or never were the group's
  std::int64_t available = 0;  // samples from there on that it may deal
  // Prefixes of one order: released <= durable <= trained <= dealt.
  std::int64_t windows = 0, trained_windows = 0, durable_windows = 0, released_windows = 0;
  std::int64_t timeline = 0, width = 1, trained_step = 0, durable_step = 0;
  std::int64_t failed_trained = 0, failed_durable = 0, dropped = 0;
  std::int64_t kind = 0, max_attempts = 0;  // a queue has these, and of the above only id to open, available, dropped
  std::int64_t leased = 0, acked = 0, failed = 0;
};

struct SqlLedger::NewSample {
  const SampleRef* ref = nullptr;
  std::string json;
};

// Of a sample in a queue.
struct SqlLedger::Place {
  std::int64_t row = 0, shard = 0;
};

// A ref in a queue, as a lease of it finds it.
struct SqlLedger::QueueRef {
  std::int64_t row = -1, state = 0, attempts = 0;
  std::string token, ended_token;
};

struct SqlLedger::Prompt {
  std::int64_t row = 0, state = 0, attempts = 0;
  std::string holder, token, ended_token;
};

enum PromptState : int { kPending = 0, kLeased = 1, kDone = 2, kPromptFailed = 3 };
enum SampleState : int { kNeeded = 0, kMayGo = 1, kGoing = 2, kFreed = 3 };
enum RefState : int { kAvailable = 0, kRefLeased = 1, kAcked = 2, kRefFailed = 3 };
enum Kind : int { kWindowGroup = 0, kQueueGroup = 1 };

constexpr std::size_t kMaxReasonBytes = 2000;
constexpr const char* kPromptsFinished =
    "SELECT CASE WHEN prompts_closed = 1 AND prompts_pending = 0 AND prompts_leased = 0 THEN 1 ELSE 0 END FROM run WHERE id = "
    "1";
// What an open group claims no more may go, once no other does. To be followed by what tells the rows.
constexpr const char* kEndClaims =
    "UPDATE sample SET claims = claims - 1, state = CASE WHEN claims = 1 AND in_place = 0 THEN 1 ELSE state END"
    " WHERE state = 0 AND row IN ";

// The open groups that need the sample s: each that has it in a window not released, or may still deal it, and each queue in
// which it is available or leased.
constexpr const char* kClaims =
    "((SELECT COUNT(*) FROM queue_ref q JOIN consumer c ON c.id = q.consumer WHERE q.row = s.row AND c.open = 1"
    " AND q.state < 2) + (SELECT COUNT(*) FROM consumer c WHERE c.open = 1 AND c.kind = 0 AND"
    " (EXISTS (SELECT 1 FROM window_ref w WHERE w.row = s.row AND w.consumer = c.id AND w.number >= c.released_windows)"
    " OR (s.row >= c.next_row AND NOT EXISTS (SELECT 1 FROM dropped d WHERE d.row = s.row AND d.consumer = c.id)))))";

// shard is dp_partition(id, kShardModulus), so that shard % n is dp_partition(id, n) for every n that divides it:
// 32 x lcm(1 ... 41), which all n up to 42 do, the powers of two up to 1,024, and many more.
constexpr std::int64_t kShardModulus = 7'009'926'071'666'918'400;

// Of a sample in a window, as exports tell it.
const char* window_state(std::int64_t window, std::int64_t trained_windows, std::int64_t durable_windows, bool failed);

// What a batch counts, one sum a token.
class TokenSums {
 public:
  void add(const std::vector<TokenCount>& counts, std::int64_t row);  // InvalidArgument; rows in ascending order
  const std::map<std::int64_t, TokenCount>& all() const { return sums_; }

 private:
  std::map<std::int64_t, TokenCount> sums_;
};

void check_lease_ms(std::int64_t lease_ms);
void check_open(std::int64_t open, const std::string& group, const char* verb);  // Conflict
void check_config(const GroupConfig& config);
void check_ref(const SampleRef& ref);
bool is_in_place(const SampleRef& ref);  // a file of the user's: never counted as resident, never freed

}  // namespace draftflow
