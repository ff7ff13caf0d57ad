// SPDX-License-Identifier: Apache-2.0
//
// Backpressure: producers pause when resident bytes reach the high mark and resume at the low one. Pure arithmetic; one
// object belongs to one thread.
#pragma once

#include <cstdint>

namespace draftflow {

struct Watermarks {
  std::uint64_t high_bytes = 0, low_bytes = 0;
};

class Backpressure {
 public:
  // InvalidArgument unless 0 < low <= high.
  explicit Backpressure(Watermarks marks);
  bool update(std::uint64_t resident_bytes);  // true: pause
  bool paused() const { return paused_; }
  std::uint64_t pauses() const { return pauses_; }

 private:
  Watermarks marks_;
  bool paused_ = false;
  std::uint64_t pauses_ = 0;
};

struct FlowDemand {
  std::int64_t checkpoint_every = 0, resumable_checkpoints = 1, prefetch_windows = 0, window = 0;
  std::uint64_t largest_sample_bytes = 0;
};

// The bytes that must fit under the high mark for training to make progress: (checkpoint_every x resumable_checkpoints +
// prefetch_windows + 1) windows of the largest sample.
std::uint64_t needed_bytes(const FlowDemand& demand);

// InvalidArgument, with the arithmetic, if the high mark is below needed_bytes.
void check_progress(const Watermarks& marks, const FlowDemand& demand);

}  // namespace draftflow
