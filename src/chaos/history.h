// SPDX-License-Identifier: Apache-2.0
//
// The checkpoints of a chaos run. What a trainer's weights are there, is here the list of what they were trained on: windows in
// order, each with its step and its samples, and which of them were without weight. Plain values.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "draftflow/ledger/ledger.h"

namespace draftflow::chaos {

struct TrainedWindow {
  std::int64_t number = 0, step = 0;
  std::vector<std::string> ids;  // in dealing order, whatever the width was
  std::vector<bool> failed;      // for each of them
};

struct History {
  CheckpointMark mark;
  std::vector<TrainedWindow> windows;
};

struct CheckpointFile {
  std::filesystem::path path;
  std::int64_t timeline = 0, step = 0;
  friend auto operator<=>(const CheckpointFile& a, const CheckpointFile& b) {
    return std::pair(a.timeline, a.step) <=> std::pair(b.timeline, b.step);
  }
  friend bool operator==(const CheckpointFile& a, const CheckpointFile& b) {
    return a.timeline == b.timeline && a.step == b.step;
  }
};

// What a queue's consumers did, one step a line: "trained" is what their weights are, so it comes before the ack.
struct Taken {
  std::string what, id, token;  // "trained", "acked", "lost", "fails", "fails-for-good"
};
void log_taken(const std::filesystem::path& file, const Taken& taken);
std::vector<Taken> load_taken(const std::filesystem::path& file);

// Down and synced when it returns, and whole at every moment.
std::filesystem::path save_history(const std::filesystem::path& folder, const History& history);
History load_history(const std::filesystem::path& file);                            // NotFound; Corrupt if it is torn
std::vector<CheckpointFile> list_checkpoints(const std::filesystem::path& folder);  // from the oldest on

// Sets aside what the trainer of this timeline no longer resumes from; the newest of those are kept, for resumes that should be
// refused. Never touches what a later timeline has written.
void prune_checkpoints(const std::filesystem::path& folder, std::int64_t timeline, const std::vector<CheckpointFile>& kept);
std::filesystem::path aside(const std::filesystem::path& folder);

}  // namespace draftflow::chaos
