// SPDX-License-Identifier: Apache-2.0
//
// Trains an EAGLE-3 draft on a ledger's samples: a stream that producers are still filling (every sample exactly once,
// against the checkpoint) or an offline set (E shuffled epochs). Killed at any moment, it goes on from its last durable
// checkpoint to the same numbers. This header needs no libtorch. One call per process at a time.
//
// Layout of `out`: checkpoints/step-0000000010/ (draft/, optimizer.safetensors, state.json; docs/formats/checkpoint.md),
// draft-untrained/ and, at the end, draft/ (Hugging Face layout, docs/formats/draft.md). Of several ranks, which see the same
// folder, rank 0 writes it. If one dies the others end with Unavailable, and all start again as another launch.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "draftflow/store/secret.h"

namespace draftflow {

struct TrainOptions {
  std::filesystem::path target;          // Hugging Face model folder: embedding, head, RoPE
  std::filesystem::path ledger;          // SQLite file
  std::filesystem::path store;           // {root}/{store id}; empty: refs are file:// (an ingested folder)
  std::filesystem::path secret_file;     // of a store with a secret
  std::shared_ptr<const Secret> secret;  // the same, where it comes from elsewhere
  std::filesystem::path out;             // see above
  std::filesystem::path init_draft;      // start from this draft folder; empty: seeded random weights
  std::string group = "train";
  int window = 16;                     // W: samples per optimizer step
  std::int64_t max_window_tokens = 0;  // a step takes fewer samples than W if more would pass this; streams only; 0: no cap
  int batch = 4;                       // samples per forward pass; divides the window
  int ttt_length = 7;                  // L: unrolled steps
  std::int64_t max_length = 2048;      // longer samples are cut, tokens
  double learning_rate = 1e-4;         // peak
  double warmup_ratio = 0.015;
  double max_grad_norm = 0.5;
  double loss_decay = 0.8;                    // weight of unrolled step i is loss_decay^i
  std::string loss = "kl";                    // "kl", "alpha" or "lambda"
  double kl_scale = 1.0, kl_decay = 1.0;      // of "lambda"
  std::string loss_normalization = "tokens";  // "tokens" (the window's mask sums) or "reference" (B x T)
  std::string dtype = "float32";  // compute: "float32", "bfloat16", "float64"; masters are float32 (float64 for float64)
  std::int64_t draft_vocab = 0;   // D; 0: the target's whole vocabulary
  int heads = 0, kv_heads = 0, head_dim = 0;  // of the draft; 0: as the target
  std::int64_t intermediate = 0;
  std::uint64_t seed = 0;
  int epochs = 1;                // passes over the samples; fixed for a stream's group, whose bytes stay until the last one
  std::int64_t total_steps = 0;  // of the schedule; 0: from the number of samples
  int checkpoint_every = 20;     // optimizer steps
  int resumable_checkpoints = 1;
  bool checkpoint_on_pressure = true;  // save when data stays away: producers may be waiting for the bytes of what was trained
  bool accept_loss = false;            // a resume whose samples are freed in part drops those by name, instead of being refused
  int prefetch = 2;                    // windows fetched ahead
  std::int64_t ahead_samples = 0;      // wait for this many committed samples before the first step
  int threads = 1;
  // Data parallel: this process is rank `rank` of `ranks`, which divide the window evenly and hold the whole draft each.
  int ranks = 1, rank = 0;
  std::string launch;      // the same for the ranks of one launch, never used again
  std::string rendezvous;  // where they meet: file:///path (one host, a new file) or tcp://host:port (of rank 0)
};

struct TrainProgress {
  std::int64_t step = 0, total_steps = 0;  // optimizer steps done
  std::int64_t samples = 0, tokens = 0;    // trained so far, failed ones left out
  std::int64_t failed = 0;
  std::int64_t lost = 0;  // dropped by this start, since their bytes were freed (accept_loss)
  double loss_total = 0, grad_norm = 0, learning_rate = 0;
  std::vector<double> loss, accuracy, acceptance;    // per unrolled step
  double wait_seconds = 0;                           // this step's wait for data
  double step_seconds = 0;                           // this step's wall time, the wait included
  double total_wait_seconds = 0, total_seconds = 0;  // since the first optimizer step of this process
  bool resumed = false;                              // the first callback after a resume
};

using TrainCallback = std::function<void(const TrainProgress&)>;

// Returns at the end of the data (draft/ is exported), or soon after `stop` is set, with a checkpoint of what was trained.
TrainProgress run_train(const TrainOptions& options, const TrainCallback& on_step, const std::atomic<bool>& stop);

}  // namespace draftflow
