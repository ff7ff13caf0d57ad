// SPDX-License-Identifier: Apache-2.0
//
// Prefetcher: fetches and checks windows ahead of the trainer on a thread of its own, in order, a bounded number at a time.
// A ref that is unreadable, misshapen or not finite keeps its place with a reason; it never stops the rest. The source and
// the store are used by that thread alone until the prefetcher is gone. Closing is bounded by one read. next() can be
// interrupted (base/interrupt.h).
//
//   Prefetcher prefetcher(*source, *store, {.windows_ahead = 2});
//   LoadedAnswer answer = prefetcher.next(stop, 1000);
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "draftflow/loader/window_source.h"
#include "draftflow/store/feature_store.h"

namespace draftflow {

struct LoadedSample {
  SampleRef ref;
  TensorMap tensors;                   // empty if failed
  std::optional<std::string> failure;  // why this place is masked
};

struct LoadedWindow {
  std::int64_t number = 0;
  std::vector<LoadedSample> samples;
  TensorMap padded;                   // what `prepare` has made of them
  std::vector<std::int64_t> lengths;  // of the samples, in padded
};

// A window, or why there is none: waiting (timed out, or stop was set) or the end.
struct LoadedAnswer {
  WindowState state = WindowState::kWaiting;
  std::optional<LoadedWindow> window;
};

// What a sample must be beside readable: EAGLE-3's four tensors, as check_eagle3_sample says, or whatever has no NaN and no
// infinity.
enum class SampleCheck { kEagle3, kFinite };

struct LoaderOptions {
  int windows_ahead = 2;
  std::int64_t hidden_size = 0;  // H of the target; 0: any. Another width is a configuration error, not a bad sample
  std::int64_t vocab_size = 0;   // V; a token outside is a bad sample
  SampleCheck check = SampleCheck::kEagle3;
  std::function<void(LoadedWindow&)> prepare;  // called by the fetching thread with each window, before it is handed out
};

// What is wrong with one EAGLE-3 sample, or nothing: missing tensors, dtypes, ranks, lengths, token ids, NaN and infinity.
std::optional<std::string> check_eagle3_sample(const TensorMap& tensors, const LoaderOptions& options);

class Prefetcher {
 public:
  Prefetcher(WindowSource& source, FeatureStore& store, const LoaderOptions& options);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // Blocks until the next window is there, at most timeout_ms. Rethrows what stopped the fetching thread (a lost timeline,
  // say).
  LoadedAnswer next(const std::atomic<bool>& stop, int timeout_ms);

  // Seconds that next() has blocked so far.
  double wait_seconds() const { return wait_seconds_; }

 private:
  void run();
  LoadedWindow load(const Window& window);
  void wait_for_source(std::unique_lock<std::mutex>& lock);

  WindowSource& source_;
  FeatureStore& store_;
  const LoaderOptions options_;
  double wait_seconds_ = 0;  // of the calling thread

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<LoadedWindow> ready_;  // guarded by mutex_
  bool ended_ = false;              // guarded by mutex_
  bool closing_ = false;            // guarded by mutex_
  std::exception_ptr failure_;      // guarded by mutex_
  std::thread thread_;              // last: starts when all else is ready
};

}  // namespace draftflow
