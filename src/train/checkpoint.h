// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints: folders `step-0000000010` that appear whole or not at all, each with the draft in Hugging Face layout
// (draft/), the optimizer's state (optimizer.safetensors) and what the run must agree on to go on (state.json; layout in
// docs/formats/checkpoint.md). Resuming gives the same numbers as never having stopped. One trainer per folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/ledger/ledger.h"
#include "train/eagle3_draft.h"
#include "train/optimizer.h"

namespace draftflow {

struct TrainerState {
  CheckpointMark mark;
  std::int64_t windows = 0;  // dealt and trained so far: the position in an offline set
  std::int64_t samples = 0, tokens = 0, failed = 0;
  std::int64_t total_steps = 0;                // of the learning-rate schedule
  std::map<std::string, std::string> options;  // those that change the numbers, as text
};

struct FoundCheckpoint {
  std::filesystem::path folder;
  TrainerState state;
};

class CheckpointFolder {
 public:
  // Makes the folder if needed.
  explicit CheckpointFolder(std::filesystem::path folder);

  // Removes what writers that died left in it: for the one rank that writes, before it writes.
  void clear_unfinished() const;
  // The checkpoint with the most steps. Corrupt, naming the file, if it is damaged.
  std::optional<FoundCheckpoint> newest() const;
  // Synced to disk before it appears.
  std::filesystem::path save(const TrainerState& state, const Eagle3Draft& draft, const Optimizer& optimizer) const;
  void restore(const FoundCheckpoint& found, Optimizer& optimizer) const;
  // Removes all but the newest `keep`.
  void prune(int keep) const;

 private:
  std::vector<std::filesystem::path> steps() const;  // ascending
  std::filesystem::path folder_;
};

// InvalidArgument, naming every option that differs with both values.
void check_same_options(const TrainerState& state, const std::map<std::string, std::string>& options,
                        const std::filesystem::path& checkpoint);

}  // namespace draftflow
