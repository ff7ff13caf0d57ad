// SPDX-License-Identifier: Apache-2.0
//
// BatchReader: a rank's share of each window as padded batches, fetched, checked and padded ahead on a thread of its own.
// Several readers of one rank (worker processes) take the batches in turn: reader i of n those whose number, counted over all
// windows, is i modulo n, so that taking one from each in turn gives the order of one reader. Every window gives at least one
// batch, an empty one where the rank has no sample in it: the step is a step of all ranks.
//
//   BatchReader reader(make_stream_source(*ledger, group, timeline), *store, {.batch_size = 4});
//   BatchAnswer answer = reader.next(stop, 1000);
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/formats/buffer_pool.h"
#include "draftflow/loader/prefetcher.h"

namespace draftflow {

struct PaddedBatch {
  std::int64_t window = 0;
  int index = 0;      // of the batch in the rank's share of the window
  bool last = false;  // the share's last one: an optimizer step follows
  std::vector<std::string> sample_ids;
  std::vector<FailedSample> failed;   // rows of zeros, and why
  std::vector<std::int64_t> lengths;  // tokens of each row; 0 for a failed one
  TensorMap tensors;                  // as pad_batch makes them; none if every row has failed
};

struct BatchAnswer {
  WindowState state = WindowState::kWaiting;
  std::optional<PaddedBatch> batch;  // set with kWindow
};

struct BatchOptions {
  int batch_size = 0;  // samples; 0: the whole share
  int reader = 0, readers = 1;
  LoaderOptions loader;  // windows_ahead counts batches
};

class BatchReader {
 public:
  // The ledger behind the source, and the store, are used by the reader's thread alone until it is gone. InvalidArgument for
  // options that make no sense.
  BatchReader(std::unique_ptr<WindowSource> source, FeatureStore& store, const BatchOptions& options);
  ~BatchReader();
  BatchReader(const BatchReader&) = delete;
  BatchReader& operator=(const BatchReader&) = delete;

  // Blocks until the next batch is there, at most timeout_ms. Rethrows what stopped the thread.
  BatchAnswer next(const std::atomic<bool>& stop, int timeout_ms);
  double wait_seconds() const { return prefetcher_->wait_seconds(); }  // that next() has blocked so far

 private:
  class Split;
  std::unique_ptr<Split> split_;
  BufferPool pool_;
  std::unique_ptr<Prefetcher> prefetcher_;  // last: its thread uses the others
};

}  // namespace draftflow
