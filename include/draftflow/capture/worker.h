// SPDX-License-Identifier: Apache-2.0
//
// The capture worker: prompts from the ledger -> the target's prefill -> features put into the store -> a metadata-only ref
// committed to the ledger. One bad prompt is failed by name and never stops the rest; a full disk or a full budget makes
// the worker wait. Killed at any moment it leaves the books right: the prompt's lease expires and another worker takes it.
// This header needs no libtorch. One call per process at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "draftflow/base/ids.h"
#include "draftflow/store/secret.h"

namespace draftflow {

struct CaptureOptions {
  std::filesystem::path target;     // Hugging Face model folder
  std::filesystem::path tokenizer;  // sentencepiece model; empty: target/tokenizer.model
  std::filesystem::path
      prompts;  // .jsonl ({"text": ...} or {"input_ids": [...]} a line) or .txt (a prompt a line); empty: none to add
  std::filesystem::path ledger;  // SQLite file
  std::filesystem::path store;   // {root}/{store id}
  std::string run_id = "run";
  std::vector<int> layers;         // captured decoder layers, counted from 0; empty: {1, L/2 - 1, L - 4}, which needs L >= 7
  std::int64_t max_length = 0;     // prompts over this many tokens are failed; 0: the target's context
  std::string dtype = "bfloat16";  // of the stored features
  bool ingest_only = false;        // only put the prompts on the books, then close them
  bool keep_open = false;          // do not close the prompts after adding them: more will come
  std::uint64_t high_watermark_bytes = 1ULL << 30;   // pause at this many resident bytes ...
  std::uint64_t low_watermark_bytes = 768ULL << 20;  // ... until they have come down to this
  std::int64_t lease_ms = 15'000;                    // a dead worker's prompts return after this
  int lease_tasks = 4;                               // prompts leased at a time
  int max_attempts = 3;
  int threads = 1;
  bool durable = false;                  // sync each sample before its commit
  std::filesystem::path secret_file;     // of a store with a secret; a store that is not there yet is made with it
  std::shared_ptr<const Secret> secret;  // the same, where it comes from elsewhere
};

struct CaptureProgress {
  std::int64_t captured = 0, failed = 0, tokens = 0;  // by this worker so far
  std::int64_t total = 0;                             // prompts on the books
  std::int64_t done = 0;                              // of them captured or failed, by anyone
  std::uint64_t bytes = 0;                            // tensor bytes put by this worker
  double busy_seconds = 0, paused_seconds = 0;        // paused: the store was full
  bool paused = false;
  std::string pause_reason;  // of the last pause: the watermark, or what the store said of the disk
};

using CaptureCallback = std::function<void(const CaptureProgress&)>;

// Returns when every prompt is captured or failed, or soon after `stop` is set (its leases are given back first).
CaptureProgress run_capture(const CaptureOptions& options, const CaptureCallback& on_progress, const std::atomic<bool>& stop);

}  // namespace draftflow
