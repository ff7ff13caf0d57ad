// SPDX-License-Identifier: Apache-2.0
//
// WindowSource: where a trainer's windows come from, so that the trainer never branches on it. A stream is dealt by the
// ledger, every sample once; an offline set is re-read for E epochs in a seeded order that is the same on every machine,
// and its position is the number of windows trained. One thread; the ledger must outlive the source.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "draftflow/ledger/ledger.h"

namespace draftflow {

class WindowSource {
 public:
  virtual ~WindowSource() = default;
  // The next window, or waiting (a stream whose next window is not committed yet), or the end. Never blocks.
  virtual WindowAnswer next() = 0;
  // After waiting: sleeps until next() may have another answer, at most timeout_ms; false: the time is over (Ledger::wait).
  virtual bool wait(std::int64_t timeout_ms) = 0;
};

// A rank's share of the windows of a group's timeline, from the first untrained one on.
std::unique_ptr<WindowSource> make_stream_source(Ledger& ledger, const GroupId& group, const TimelineInfo& timeline,
                                                 const WindowShare& share = {});

struct OfflinePlan {
  int window = 0;  // W
  int epochs = 1;
  std::uint64_t seed = 0;
  std::int64_t position = 0;  // windows already trained
  WindowShare share;          // of each window
};

// Windows an epoch has: the refs divided by W, the tail dropped (another order drops others). InvalidArgument if none.
std::int64_t offline_windows_per_epoch(std::int64_t refs, int window);

// Reads the ids of the committed refs once; a window's refs are looked up when it is dealt.
std::unique_ptr<WindowSource> make_offline_source(Ledger& ledger, const OfflinePlan& plan);

}  // namespace draftflow
