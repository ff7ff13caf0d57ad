// SPDX-License-Identifier: Apache-2.0
//
// The processes of a chaos run, each started as `chaos_test --role=NAME ...` and killed at any moment. A role's function
// returns the process's exit code.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "chaos/stage.h"
#include "chaos/tables.h"

namespace draftflow::chaos {

enum Exit : int {
  kFinished = 0,
  kBroken = 1,          // an error that has no business to be there
  kPeerLost = 10,       // another rank of the launch has gone
  kGone = 11,           // the checkpoint it was told to load was pruned meanwhile
  kTakenOver = 12,      // a newer launch has the group, or the group was closed
  kRefusedLoss = 13,    // the checkpoint is refused: bytes that it needs are freed
  kRefusedOffLine = 14  // the checkpoint is refused: what it was trained on has been taken back
};

struct RankOptions {
  std::size_t group = 0;
  int rank = 0, width = 1;
  std::string launch;
  std::filesystem::path checkpoint;  // to resume from; empty: none
  bool accept_loss = false;
};

int run_producer(Stage& stage);  // until the prompts are finished
int run_rank(Stage& stage, const RankOptions& options);
int run_taker(Stage& stage, std::size_t group);   // a queue's consumer, until the stream has ended
int run_ingester(Stage& stage);                   // prompts, as fast as they are taken, until it is told to close them
int run_joiner(Stage& stage, std::size_t group);  // declares a late group, and notes whose bytes were still there
int run_closer(Stage& stage, std::size_t group);
int run_collector(Stage& stage);  // one gc of the store, and of what a dead producer left
int run_sweeper(Stage& stage);    // frees what may go and what nothing names, when all others have ended

// What a rank tells of its launch, in launches.log: "LAUNCH opened TIMELINE LOST", "LAUNCH refused COUNT".
void log_launch(const Plan& plan, const std::string& launch, const std::string& what);

// What freeable() hands out, removed from the store and said to be freed. Dies or stops in between when it is told to.
void free_bytes(Stage& stage, Ledger& ledger, FeatureStore& store, std::optional<std::size_t> group);

// By a lease or without one. NotFound or Corrupt if the bytes are not there or not whole.
TensorMap read_bytes(Stage& stage, FeatureStore& store, const SampleRef& ref);

// Of all samples those that are the group's: of a late one those that were there or came later, and `perhaps` what was freed
// while it joined.
std::set<std::string> members_of(const Plan& plan, const GroupPlan& group, const std::vector<SampleRow>& samples,
                                 std::set<std::string>& perhaps);

}  // namespace draftflow::chaos
