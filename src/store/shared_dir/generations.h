// SPDX-License-Identifier: Apache-2.0
//
// Generations: numbers that no other put, by any process at any time, has had or will have (docs/formats/shared_dir.md). A
// writer claims an epoch by creating a marker file exclusively and numbers its puts inside it: epoch << 24 | counter. The
// first claim happens at the first put, so that readers leave no trace. Thread-safe; a forked child claims its own epoch.
#pragma once

#include <cstdint>
#include <mutex>

#include "store/shared_dir/folder.h"

namespace draftflow::store {

constexpr int kCounterBits = 24;
constexpr std::uint64_t kMaxEpoch = (1ULL << (53 - kCounterBits)) - 1;
// Markers that pruning leaves: whoever claims an epoch that could have been pruned before sees so many above its own.
constexpr std::uint64_t kKeptMarkers = 1024;

class Generations {
 public:
  explicit Generations(const Folder& epochs);  // outlives this

  // Greater than `above` and than every number of this object. Exhausted when the numbers are used up; Corrupt if
  // `above` cannot be a generation that this store gave. With `newest`, greater than every number given before by anybody.
  std::uint64_t next(std::uint64_t above, bool newest = false);

 private:
  void claim();

  const Folder& epochs_;
  std::mutex mutex_;
  std::uint64_t epoch_ = 0;    // guarded by mutex_; 0: none claimed
  std::uint64_t counter_ = 0;  // guarded by mutex_; the last one given
  std::uint64_t forks_ = 0;    // guarded by mutex_; of the process, when the epoch was claimed
};

// Removes the oldest markers but kKeptMarkers, from the oldest on. Says how many.
std::uint64_t prune_epochs(const Folder& epochs);

}  // namespace draftflow::store
