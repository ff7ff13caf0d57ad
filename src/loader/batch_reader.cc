// SPDX-License-Identifier: Apache-2.0
#include "draftflow/loader/batch_reader.h"

#include <fmt/format.h>

#include <algorithm>

#include "draftflow/base/error.h"
#include "draftflow/loader/padding.h"

namespace draftflow {
namespace {

constexpr std::uint64_t kIdleBytes = 1ULL << 30;  // of batches that were let go, kept for the next ones

}  // namespace

// Cuts the source's windows into batches, each a window of its own to the prefetcher, and keeps what they are.
class BatchReader::Split : public WindowSource {
 public:
  struct Place {
    int index = 0;
    bool last = false;
  };

  Split(std::unique_ptr<WindowSource> source, const BatchOptions& options)
      : source_(std::move(source)), size_(options.batch_size), reader_(options.reader), readers_(options.readers) {
    if (size_ < 0 || readers_ < 1 || reader_ < 0 || reader_ >= readers_) {
      throw InvalidArgument(
          fmt::format("batch_size is {}, reader {} of {}: a size of 0 or more, and readers from 0 on, are allowed", size_,
                      reader_, readers_));
    }
  }

  WindowAnswer next() override {
    while (true) {
      if (cut_.empty()) {
        WindowAnswer answer = source_->next();
        if (!answer.window) return answer;
        cut(std::move(*answer.window));
      }
      auto [window, place] = std::move(cut_.front());
      cut_.pop_front();
      if (count_++ % readers_ != reader_) continue;
      const std::lock_guard lock(mutex_);
      places_.push_back(place);
      return {.state = WindowState::kWindow, .window = std::move(window)};
    }
  }

  bool wait(std::int64_t timeout_ms) override { return source_->wait(timeout_ms); }

  // Of the oldest batch that next() gave and nobody has asked for.
  Place take_place() {
    const std::lock_guard lock(mutex_);
    const Place place = places_.front();
    places_.pop_front();
    return place;
  }

 private:
  void cut(Window window) {
    const std::size_t size = size_ == 0 ? window.refs.size() : static_cast<std::size_t>(size_);
    std::size_t at = 0;
    int index = 0;
    do {
      const std::size_t end = std::min(at + size, window.refs.size());
      Window part{.number = window.number, .refs = {}};
      std::move(window.refs.begin() + static_cast<std::ptrdiff_t>(at), window.refs.begin() + static_cast<std::ptrdiff_t>(end),
                std::back_inserter(part.refs));
      at = end;
      cut_.emplace_back(std::move(part), Place{.index = index++, .last = at == window.refs.size()});
    } while (at < window.refs.size());
  }

  const std::unique_ptr<WindowSource> source_;
  const int size_, reader_, readers_;
  std::int64_t count_ = 0;
  std::deque<std::pair<Window, Place>> cut_;  // of the prefetcher's thread

  std::mutex mutex_;
  std::deque<Place> places_;  // guarded by mutex_
};

BatchReader::BatchReader(std::unique_ptr<WindowSource> source, FeatureStore& store, const BatchOptions& options)
    : split_(std::make_unique<Split>(std::move(source), options)), pool_(kIdleBytes) {
  LoaderOptions loader = options.loader;
  loader.prepare = [this](LoadedWindow& window) {
    std::vector<const TensorMap*> samples;
    for (const LoadedSample& sample : window.samples) {
      samples.push_back(&sample.tensors);
      window.lengths.push_back(sample_length(sample.tensors));
    }
    window.padded = pad_batch(samples, pool_);
    for (LoadedSample& sample : window.samples) sample.tensors.clear();
  };
  prefetcher_ = std::make_unique<Prefetcher>(*split_, store, loader);
}

BatchReader::~BatchReader() = default;

BatchAnswer BatchReader::next(const std::atomic<bool>& stop, int timeout_ms) {
  LoadedAnswer answer = prefetcher_->next(stop, timeout_ms);
  if (!answer.window) return {.state = answer.state, .batch = std::nullopt};
  const Split::Place place = split_->take_place();
  PaddedBatch batch{.window = answer.window->number, .index = place.index, .last = place.last};
  for (const LoadedSample& sample : answer.window->samples) {
    batch.sample_ids.push_back(sample.ref.sample_id.str());
    if (sample.failure) batch.failed.push_back({sample.ref.sample_id, *sample.failure});
  }
  batch.lengths = std::move(answer.window->lengths);
  batch.tensors = std::move(answer.window->padded);
  return {.state = WindowState::kWindow, .batch = std::move(batch)};
}

}  // namespace draftflow
