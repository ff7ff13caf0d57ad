// SPDX-License-Identifier: Apache-2.0
//
// What every backend of the ledger holds its callers to, before it looks at its books: limits, and checks of arguments, with
// the texts that a person reads. Pure functions; any thread. Private to this room.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "draftflow/ledger/types.h"

namespace draftflow {

constexpr int kMaxLeaseBatch = 1024;        // prompts of one call
constexpr std::int64_t kMaxExpiries = 100;  // a prompt whose lease runs out this often kills its workers
// How much earlier than a lease's writer another may have read the clock, and still come after it: who waits for its turn to
// write has read it before. A time further ahead than the longest lease by more was written before the clock was set back.
constexpr std::int64_t kClockSlackMs = 60'000;
constexpr std::size_t kMaxRefs = 4096;         // refs of one call
constexpr std::size_t kMaxReasonBytes = 2000;  // of a failure
constexpr const char* kTailReason = "tail shorter than a window";
constexpr const char* kLateReason = "came after the end of the stream, when its passes were counted";
constexpr const char* kClosedReason = "the group was closed";

// shard is dp_partition(id, kShardModulus), so that shard % n is dp_partition(id, n) for every n that divides it:
// 32 x lcm(1 ... 41), which all n up to 42 do, the powers of two up to 1,024, and many more.
constexpr std::int64_t kShardModulus = 7'009'926'071'666'918'400;
constexpr std::int64_t kMostIndexed = 1024;  // a partition into more has no index

inline bool may_be_indexed(std::int64_t width) {
  return width <= kMostIndexed && kShardModulus % width == 0;
}

// Files of the user's: never counted as resident, never freed.
bool is_in_place(const SampleRef& ref);

// All of these are InvalidArgument.
void check_fact(const std::string& key, const std::string& value);
void check_lease_ms(std::int64_t lease_ms);
void check_max_tasks(int max_tasks);
void check_max_attempts(int max_attempts);
void check_counts(std::size_t items, const char* what, std::size_t lists);
void check_ref(const SampleRef& ref);
void check_completes(const SampleRef& ref, const PromptTask& task);
void check_config(const GroupConfig& config);
void check_ranks(const TimelineRequest& request);
void check_request(const RefRequest& request);
void add_within(std::int64_t& sum, std::int64_t value, const char* what);
std::string task_json(const PromptTask& task);
std::string ref_json(const SampleRef& ref);
std::string poison_reason();

// Measures the next window of a group: its refs are added in commit order until it is full.
class WindowMeasure {
 public:
  WindowMeasure(std::int64_t window, std::int64_t max_tokens) : window_(window), max_tokens_(max_tokens) {}
  // Whether the window is known to be full, with this ref in it or before it.
  bool add(std::int64_t tokens) {
    if (max_tokens_ > 0 && refs_ > 0 && tokens > max_tokens_ - tokens_) return true;
    ++refs_;
    tokens_ += tokens;
    return refs_ == window_ || (max_tokens_ > 0 && tokens_ >= max_tokens_);
  }
  std::int64_t refs() const { return refs_; }

 private:
  std::int64_t window_, max_tokens_, refs_ = 0, tokens_ = 0;
};

// What check() finds of a counter that is kept.
std::string miscounted(const std::string& what, std::int64_t kept, std::int64_t rows);

// What a batch counts, one sum a token.
class TokenSums {
 public:
  void add(const std::vector<TokenCount>& counts, std::int64_t row);  // InvalidArgument; rows in ascending order
  const std::map<std::int64_t, TokenCount>& all() const { return sums_; }

 private:
  std::map<std::int64_t, TokenCount> sums_;
};

}  // namespace draftflow
