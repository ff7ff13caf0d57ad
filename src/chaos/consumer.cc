// SPDX-License-Identifier: Apache-2.0
//
// A trainer rank, in the order of src/train/trainer.cc: windows are read ahead, a step is agreed on, failures are reported
// before it, trained() after it; at a checkpoint the file is down before checkpointed(), which comes before the bytes go.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <nlohmann/json.hpp>
#include <thread>

#include "chaos/chaos_ledger.h"
#include "chaos/gather.h"
#include "chaos/history.h"
#include "chaos/roles.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"

namespace draftflow::chaos {
namespace {

using Json = nlohmann::json;
constexpr std::size_t kAhead = 2;
constexpr std::int64_t kAskAgainMs = 1000;

struct Loaded {
  std::int64_t number = 0;
  std::vector<std::string> ids;
  std::vector<FailedSample> failed;
};

// How many samples a refused resume would have lost. Of several passes the number comes after the words.
std::optional<std::string_view> told_loss(std::string_view why) {
  constexpr std::string_view kLost = " samples trained after it are freed", kOfPasses = ", ";
  const std::size_t lost = why.find(kLost);
  if (lost == std::string_view::npos) return std::nullopt;
  const bool of_passes = why.substr(lost + kLost.size()).starts_with(kOfPasses);
  const std::size_t start = of_passes ? lost + kLost.size() + kOfPasses.size() : why.rfind(' ', lost - 1) + 1;
  return why.substr(start, why.find(' ', start) - start);
}

class Rank {
 public:
  Rank(Stage& stage, const RankOptions& options)
      : stage_(stage),
        options_(options),
        plan_(stage.plan.groups.at(options.group)),
        group_(plan_.name),
        folder_(stage.plan.checkpoints(plan_)),
        every_(plan_.resumable > 1 ? 3 : 4),
        ledger_(stage) {
    with_patience(stage_, [this] { store_ = open_store(stage_.plan, 0); });
  }

  int run() {
    try {
      if (const int refused = enter(); refused != kFinished) return refused;
      gather_.emplace(stage_.plan.folder / "rdv" / options_.launch, options_.rank, options_.width);
      if (options_.rank == 0) free();
      train();
      return kFinished;
    } catch (const PeerLost& lost) {
      fmt::print(stderr, "{}\n", lost.what());
      return kPeerLost;
    } catch (const Conflict& error) {
      fmt::print(stderr, "{}\n", error.what());
      expect_taken_over(error.what());
      return kTakenOver;
    }
  }

 private:
  // Loads the checkpoint and opens the timeline, or joins that of the launch.
  int enter() {
    TimelineRequest request{.group = group_, .width = options_.width, .rank = options_.rank, .launch = options_.launch};
    request.accept_loss = options_.accept_loss;
    try {
      if (!options_.checkpoint.empty()) {
        history_ = load_history(options_.checkpoint);
        kept_.push_back({options_.checkpoint, history_.mark.timeline, history_.mark.step});
        request.resume = history_.mark;
      }
    } catch (const NotFound&) {
      return kGone;
    }
    if (stage_.plan.bug == Bug::kForgetfulResume && request.resume) claim_the_newest_step(*request.resume);
    try {
      ledger_.declare_group(config_of(stage_.plan, plan_));
      const TimelineInfo info = ledger_.open_timeline(request);
      start_at(info);
      return kFinished;
    } catch (const Error& error) {
      const std::string_view why = error.what();
      fmt::print(stderr, "{}\n", why);
      if (why.find("is not on the line") != std::string_view::npos) return kRefusedOffLine;
      if (why.find("the launch ended when") != std::string_view::npos) return kTakenOver;
      if (why.find("was closed") != std::string_view::npos) return kTakenOver;
      const auto lost = told_loss(why);
      if (error.kind() != ErrorKind::kInvalidArgument || !lost) throw;
      log_launch(stage_.plan, options_.launch, fmt::format("refused {}", *lost));
      return kRefusedLoss;
    }
  }

  void claim_the_newest_step(CheckpointMark& mark) {
    const GroupStatus status = ledger_.status().of(group_);
    mark.timeline = status.timeline;
    mark.step = status.trained_step;
  }

  void start_at(const TimelineInfo& info) {
    log_launch(stage_.plan, options_.launch, fmt::format("opened {} {}", info.number, info.lost));
    const bool right = info.first_step == history_.mark.step &&
                       info.first_window == static_cast<std::int64_t>(history_.windows.size()) &&
                       info.ledger_id == ledger_.id();
    if (!right && stage_.plan.bug != Bug::kForgetfulResume) {
      stage_.violation(fmt::format(
          "group {}: timeline {} starts at step {}, window {}, but its checkpoint has step {} and {} "
          "windows",
          plan_.name, info.number, info.first_step, info.first_window, history_.mark.step, history_.windows.size()));
    }
    step_ = saved_step_ = info.first_step;
    next_ = info.first_window;
    history_.mark = {.ledger_id = info.ledger_id, .group = group_, .timeline = info.number, .step = step_};
    fmt::print(stderr, "timeline {} from step {}, window {}\n", info.number, step_, next_);
  }

  void train() {
    for (;;) {
      const WindowState mine = fetch();
      Json said = {{"state", static_cast<int>(mine)}};
      if (mine == WindowState::kWindow) said["number"] = ahead_.front().number;
      const auto states = talk(said);
      const auto all = [&](WindowState state) {
        return std::ranges::all_of(states, [&](const Json& one) { return one.at("state") == static_cast<int>(state); });
      };
      if (all(WindowState::kEndOfStream)) break;
      if (all(WindowState::kWindow)) {
        step();
        if (static_cast<std::int64_t>(history_.windows.size()) % every_ == 0) checkpoint();
      } else {
        checkpoint();  // what is not durable keeps bytes that producers wait for
        ledger_.wait(kAskAgainMs);
      }
    }
    checkpoint();
    talk({{"state", "done"}});  // whoever leaves first would look dead to the others
  }

  std::vector<Json> talk(const Json& mine) {
    std::vector<Json> said;
    for (const std::string& text : gather_->all(mine.dump())) said.push_back(Json::parse(text));
    return said;
  }

  // A window in ahead_, or why there is none.
  WindowState fetch() {
    while (ahead_.size() < kAhead) {
      const WindowAnswer answer =
          ledger_.read_window(group_, history_.mark.timeline, next_, {.rank = options_.rank, .width = options_.width});
      if (!answer.window) return ahead_.empty() ? answer.state : WindowState::kWindow;
      if (answer.window->number != next_) stage_.violation(fmt::format("window {} for {}", answer.window->number, next_));
      ++next_;
      ahead_.push_back(load(*answer.window));
    }
    return WindowState::kWindow;
  }

  Loaded load(const Window& window) {
    Loaded loaded{.number = window.number, .ids = {}, .failed = {}};
    for (const SampleRef& ref : window.refs) {
      const std::string& id = ref.sample_id.str();
      loaded.ids.push_back(id);
      stage_.board.add(Count::kReads);
      std::optional<std::string> failure;
      try {
        failure = check_tensors(stage_, id, read_bytes(stage_, *store_, ref));
        if (!failure && kind_of(stage_.plan, id) == Kind::kNotFinite) stage_.violation(id + " should hold a NaN");
        if (falters_in(stage_.plan, id, window.number)) failure = "it is fitful";
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kNotFound && error.kind() != ErrorKind::kCorrupt) throw;
        failure = error.what();
        judge_failure(ref, error);
      }
      if (!failure) continue;
      stage_.board.add(Count::kFailedReads);
      loaded.failed.push_back({ref.sample_id, *failure});
    }
    if (stage_.plan.bug == Bug::kFreeAtFetch) {
      for (const SampleRef& ref : window.refs) store_->remove(ref);
    }
    return loaded;
  }

  // A sample that is needed has its bytes, unless this test took them.
  void judge_failure(const SampleRef& ref, const Error& error) {
    const std::string& id = ref.sample_id.str();
    const Kind kind = kind_of(stage_.plan, id);
    const bool meant = error.kind() == ErrorKind::kNotFound ? kind == Kind::kDeleted : kind == Kind::kDamaged;
    if (meant) return;
    const GroupStatus status = ledger_.status().of(group_);
    if (status.timeline != history_.mark.timeline || !status.open) return;  // taken over: it needs nothing any more
    stage_.violation(fmt::format("group {}: sample {} of window to come cannot be read: {}", plan_.name, id, error.what()));
  }

  void step() {
    const Loaded mine = std::move(ahead_.front());
    ahead_.pop_front();
    std::this_thread::sleep_for(std::chrono::milliseconds(stage_.random.below(4)));
    stage_.point(Point::kBeforeReport, options_.group);
    if (!mine.failed.empty()) ledger_.report_failed(group_, history_.mark.timeline, mine.number, mine.failed);
    Json said = {{"number", mine.number}, {"ids", mine.ids}, {"failed", Json::array()}};
    for (const FailedSample& one : mine.failed) said["failed"].push_back(one.sample_id.str());
    remember(talk(said));
    stage_.point(Point::kBeforeTrained, options_.group);
    if (stage_.plan.bug == Bug::kStepBeforeTrained && step_ % 3 == 0) checkpoint();
    ledger_.trained(group_, history_.mark.timeline, mine.number, step_, {});
    stage_.board.add(Count::kSteps);
  }

  // The optimizer's step: what all ranks had becomes one window of the history.
  void remember(const std::vector<Json>& said) {
    TrainedWindow window{.number = said[0].at("number"), .step = 0, .ids = {}, .failed = {}};
    for (const Json& one : said) {
      if (one.at("number") == window.number) continue;
      stage_.violation(fmt::format("group {}: the ranks of one step have windows {} and {}", plan_.name, window.number,
                                   one.at("number").get<std::int64_t>()));
    }
    for (std::size_t p = 0; p < static_cast<std::size_t>(plan_.window); ++p) {
      const Json& one = said[p % said.size()];
      const std::string id = one.at("ids").at(p / said.size());
      const auto& failed = one.at("failed");
      window.ids.push_back(id);
      window.failed.push_back(std::find(failed.begin(), failed.end(), id) != failed.end());
    }
    // Steps and windows do not count alike in every trainer: one that goes two at once tells them apart.
    step_ += 1 + (window.number + history_.mark.timeline) % 3 / 2;
    window.step = history_.mark.step = step_;
    history_.windows.push_back(std::move(window));
  }

  void checkpoint() {
    if (saved_step_ == step_) return;
    saved_step_ = step_;
    if (options_.rank != 0) return;
    stage_.point(Point::kBeforeFile, options_.group);
    if (stage_.plan.bug == Bug::kDurableBeforeFile) {
      ledger_.checkpointed(group_, history_.mark.timeline, step_);
      free();
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
    }
    std::filesystem::path file;
    with_patience(stage_, [&] { file = save_history(folder_, history_); });
    kept_.push_back({file, history_.mark.timeline, step_});
    stage_.point(Point::kBeforeCheckpointed, options_.group);
    if (stage_.plan.bug == Bug::kStepBeforeTrained && ledger_.status().of(group_).trained_step < step_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));  // trained() will follow
      return;
    }
    ledger_.checkpointed(group_, history_.mark.timeline, step_);
    stage_.board.add(Count::kCheckpoints);
    if (stage_.plan.bug == Bug::kFreeAfterPass) forget_the_next_pass();
    free();
    stage_.point(Point::kBeforePrune, options_.group);
    while (kept_.size() > static_cast<std::size_t>(plan_.resumable)) kept_.erase(kept_.begin());
    prune_checkpoints(folder_, history_.mark.timeline, kept_);
  }

  // As if what a checkpoint holds once were not needed any more: in the second pass, that is what is still to come in it.
  void forget_the_next_pass() {
    const auto repeats = [&](const TrainedWindow& window) { return window.ids == history_.windows[0].ids; };
    if (std::ranges::count_if(history_.windows, repeats) < 2) return;
    for (const TrainedWindow& window : history_.windows) {
      for (const std::string& id : window.ids) {
        if (const auto ref = ledger_.get_committed(SampleId(id))) store_->remove(*ref);
      }
    }
  }

  void free() { free_bytes(stage_, ledger_, *store_, options_.group); }

  // A Conflict has to have its reason: a newer timeline, or a group that was closed.
  void expect_taken_over(const std::string& why) {
    const GroupStatus status = ledger_.status().of(group_);
    if (status.timeline > history_.mark.timeline || !status.open) return;
    stage_.violation(
        fmt::format("group {}: a Conflict for timeline {}, which is the newest: {}", plan_.name, history_.mark.timeline, why));
  }

  Stage& stage_;
  const RankOptions options_;
  const GroupPlan& plan_;
  const GroupId group_;
  const std::filesystem::path folder_;
  const std::int64_t every_;
  ChaosLedger ledger_;
  std::unique_ptr<FeatureStore> store_;
  std::optional<Gather> gather_;
  History history_;
  std::vector<CheckpointFile> kept_;  // those of its line that it resumes from, the newest last
  std::deque<Loaded> ahead_;
  std::int64_t step_ = 0, saved_step_ = 0, next_ = 0;
};

}  // namespace

int run_rank(Stage& stage, const RankOptions& options) {
  return Rank(stage, options).run();
}

}  // namespace draftflow::chaos
