// SPDX-License-Identifier: Apache-2.0
#include "draftflow/loader/window_source.h"

#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"

namespace draftflow {
namespace {

class StreamSource : public WindowSource {
 public:
  StreamSource(Ledger& ledger, GroupId group, const TimelineInfo& timeline, const WindowShare& share)
      : ledger_(ledger), group_(std::move(group)), timeline_(timeline.number), next_(timeline.first_window), share_(share) {}

  WindowAnswer next() override {
    WindowAnswer answer = ledger_.read_window(group_, timeline_, next_, share_);
    if (answer.window) ++next_;
    return answer;
  }
  bool wait(std::int64_t timeout_ms) override { return ledger_.wait(timeout_ms); }

 private:
  Ledger& ledger_;
  const GroupId group_;
  const std::int64_t timeline_;
  std::int64_t next_;
  const WindowShare share_;
};

class OfflineSource : public WindowSource {
 public:
  OfflineSource(Ledger& ledger, const OfflinePlan& plan)
      : ledger_(ledger), plan_(plan), ids_(ledger.all_committed_ids()), next_(plan.position) {
    per_epoch_ = offline_windows_per_epoch(static_cast<std::int64_t>(ids_.size()), plan.window);
    if (plan.position < 0) throw InvalidArgument(fmt::format("position is {} windows: 0 or more is allowed", plan.position));
  }

  WindowAnswer next() override {
    if (next_ >= per_epoch_ * plan_.epochs) return {.state = WindowState::kEndOfStream, .window = std::nullopt};
    const std::int64_t epoch = next_ / per_epoch_;
    if (epoch != epoch_) shuffle(epoch);
    Window window;
    window.number = next_;
    const std::int64_t first = next_ % per_epoch_ * plan_.window;
    for (std::int64_t i = first + plan_.share.rank; i < first + plan_.window; i += plan_.share.width) {
      const SampleId id(ids_[order_[static_cast<std::size_t>(i)]]);
      auto ref = ledger_.get_committed(id);
      if (!ref) throw Corrupt(fmt::format("the ledger listed sample '{}' as committed and now has no ref for it", id.str()));
      window.refs.push_back(std::move(*ref));
    }
    ++next_;
    return {.state = WindowState::kWindow, .window = std::move(window)};
  }
  bool wait(std::int64_t) override { return true; }  // it never has to

 private:
  void shuffle(std::int64_t epoch) {
    order_.resize(ids_.size());
    for (std::size_t i = 0; i < order_.size(); ++i) order_[i] = i;
    // Epochs draw from seeds far apart: two runs whose seeds are neighbours do not share an order.
    seeded_shuffle(order_, Random(plan_.seed).next() + static_cast<std::uint64_t>(epoch));
    epoch_ = epoch;
  }

  Ledger& ledger_;
  const OfflinePlan plan_;
  const std::vector<std::string> ids_;
  std::int64_t per_epoch_ = 0;
  std::int64_t next_;
  std::int64_t epoch_ = -1;
  std::vector<std::size_t> order_;
};

}  // namespace

std::unique_ptr<WindowSource> make_stream_source(Ledger& ledger, const GroupId& group, const TimelineInfo& timeline,
                                                 const WindowShare& share) {
  return std::make_unique<StreamSource>(ledger, group, timeline, share);
}

std::int64_t offline_windows_per_epoch(std::int64_t refs, int window) {
  if (window < 1 || refs < window) {
    throw InvalidArgument(
        fmt::format("{} committed samples make no window of {}: ingest more samples or choose a smaller window", refs, window));
  }
  return refs / window;
}

std::unique_ptr<WindowSource> make_offline_source(Ledger& ledger, const OfflinePlan& plan) {
  return std::make_unique<OfflineSource>(ledger, plan);
}

}  // namespace draftflow
