// SPDX-License-Identifier: Apache-2.0
//
// Ranks: the trainer processes of one launch as one of them sees the others. Each holds the whole draft and trains its share of
// every window; sums over all of them make the numbers the same as one process's. Collective: all ranks make the same calls in
// the same order. A rank that dies makes the calls of the others Unavailable within moments, one that hangs after the timeout;
// after that nothing but ending is left to do. One thread.
//
//   Ranks ranks({.rank = 1, .width = 2, .rendezvous = "file:///run/train/rendezvous-a"});
//   ranks.sum(numbers);                       // all-reduce
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "train/optimizer.h"

namespace draftflow {

struct RanksOptions {
  int rank = 0, width = 1;
  // Where they meet: "file://" and the path of a file that no earlier launch has used, for processes of one host, or
  // "tcp://host:port", where rank 0 listens. Then each is reached at its address towards that host, or on the interface that
  // GLOO_SOCKET_IFNAME names, as with torch.distributed.
  std::string rendezvous;
  std::int64_t timeout_ms = 600'000;  // of one call: the slowest rank's checkpoint must fit into it
};

class Ranks {
 public:
  Ranks();  // one process alone
  // Waits for the others. That wait can be interrupted (base/interrupt.h); the calls below cannot.
  explicit Ranks(const RanksOptions& options);
  ~Ranks();
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  int rank() const { return rank_; }
  int width() const { return width_; }
  bool first() const { return rank_ == 0; }

  void sum(std::span<double> values);  // in place
  // The gradients of all ranks in each: added up in float32 (float64 of float64 parameters); where a rank has none it counts as
  // zero. The same bytes in every rank.
  void sum_gradients(const NamedTensors& parameters);
  void barrier();

 private:
  struct Group;
  void meet(const RanksOptions& options);

  int rank_ = 0, width_ = 1;
  std::unique_ptr<Group> group_;
};

}  // namespace draftflow
