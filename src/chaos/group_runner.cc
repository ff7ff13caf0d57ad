// SPDX-License-Identifier: Apache-2.0
#include "chaos/group_runner.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <sstream>

#include "chaos/roles.h"
#include "draftflow/base/error.h"

namespace draftflow::chaos {
namespace {

constexpr auto kGrace = std::chrono::milliseconds(1500);    // for the peers of a dead rank to end by themselves
constexpr auto kStopWait = std::chrono::milliseconds(600);  // for a rank to meet the point where it is to stop
constexpr auto kStopped = std::chrono::milliseconds(1500);  // a stopped process may hold the ledger: not for long
constexpr std::size_t kOlderFiles = 10;

std::chrono::milliseconds some_ms(Random& random, std::uint64_t bound) {
  return std::chrono::milliseconds(random.below(bound));
}

const char* intent_name(Intent intent) {
  static constexpr const char* kNames[] = {"the newest", "the second newest", "an older one", "an older one, accepting loss"};
  return kNames[static_cast<int>(intent)];
}

std::string name_of(const std::optional<CheckpointFile>& file) {
  return file ? fmt::format("checkpoint (timeline {}, step {})", file->timeline, file->step) : "nothing";
}

}  // namespace

GroupRunner::GroupRunner(Stage& stage, std::size_t index, std::function<void(const std::string&)> note)
    : stage_(stage), index_(index), plan_(stage.plan.groups.at(index)), note_(std::move(note)), joined_(!plan_.late) {}

void GroupRunner::violation(const std::string& text) {
  stage_.violation(fmt::format("group {}: {}", plan_.name, text));
}

// --- choosing

std::unique_ptr<GroupRunner::Launch> GroupRunner::prepare(Intent intent) {
  auto launch = std::make_unique<Launch>();
  launch->intent = intent;
  std::vector<int> widths;
  for (int width = 1; width <= plan_.max_width; ++width) {
    if (plan_.window % width == 0) widths.push_back(width);
  }
  launch->width = widths[stage_.random.below(widths.size())];
  Tables tables(stage_.plan.ledger);
  choose(tables, *launch);
  const std::int64_t step = launch->from ? launch->from->step : -1;
  launch->on_line = !launch->from || tables.is_on_line(plan_.name, launch->from->timeline, step);
  launch->lost_before = tables.lost_after(plan_.name, step);
  return launch;
}

void GroupRunner::choose(Tables& tables, Launch& launch) {
  const std::filesystem::path folder = stage_.plan.checkpoints(plan_);
  std::vector<CheckpointFile> all = list_checkpoints(aside(folder)), line, taken_back;
  for (CheckpointFile& file : list_checkpoints(folder)) all.push_back(std::move(file));
  std::sort(all.begin(), all.end());
  const auto timelines = tables.timelines(plan_.name);
  for (const CheckpointFile& file : all) {
    (tables.is_on_line(plan_.name, file.timeline, file.step) ? line : taken_back).push_back(file);
    const bool of_the_newest = !timelines.empty() && file.timeline == timelines[0].number;
    if (!of_the_newest || file.step <= tables.trained_step(plan_.name)) continue;
    if (tables.timelines(plan_.name).size() != timelines.size()) continue;  // another launch has entered meanwhile
    violation(fmt::format("{} holds a step that the ledger has not heard of: {} is trained", name_of(file),
                          tables.trained_step(plan_.name)));
  }
  if (!line.empty()) launch.from = line.back();
  launch.guaranteed = true;
  if (launch.intent == Intent::kSecondNewest && line.size() > 1) {
    launch.from = line[line.size() - 2];
    // After a resume from an older one, what stood before that one has lost its bytes long since.
    launch.guaranteed = line.back().timeline == timelines[0].number && line.back().step > timelines[0].first_step;
    return;
  }
  const bool older = launch.intent == Intent::kOlder || launch.intent == Intent::kOlderAcceptLoss;
  if (!older || line.size() < 2) {
    launch.intent = Intent::kNewest;
    return;
  }
  launch.guaranteed = false;
  launch.from = line[line.size() - 2 - stage_.random.below(std::min(line.size() - 1, kOlderFiles))];
  if (launch.intent == Intent::kOlderAcceptLoss) return;
  const std::uint64_t draw = stage_.random.below(6);
  if (draw == 0) launch.from.reset();
  if (draw < 3 && !taken_back.empty()) launch.from = taken_back[stage_.random.below(taken_back.size())];
}

void GroupRunner::start(std::unique_ptr<Launch> launch) {
  launch->name = fmt::format("{}.{}", plan_.name, ++launches_);
  note_(fmt::format("{} starts with {} ranks from {}: {}", launch->name, launch->width, intent_name(launch->intent),
                    name_of(launch->from)));
  for (int rank = 0; rank < launch->width; ++rank) {
    std::vector<std::string> arguments = {"--role=rank", fmt::format("--group={}", index_), fmt::format("--rank={}", rank),
                                          fmt::format("--width={}", launch->width), fmt::format("--launch={}", launch->name)};
    if (launch->from) arguments.push_back("--checkpoint=" + launch->from->path.string());
    if (launch->intent == Intent::kOlderAcceptLoss) arguments.push_back("--accept-loss");
    launch->ranks.push_back(
        std::make_unique<Child>(stage_.plan, fmt::format("{}.{}", launch->name, rank), stage_.random.next(), arguments));
  }
  current_ = std::move(launch);
  intent_ = Intent::kNewest;
}

// --- judging

bool GroupRunner::has_ended(Launch& launch) const {
  bool any = false, all = true;
  for (const auto& rank : launch.ranks) {
    const bool running = rank->running();
    any = any || !running;
    all = all && !running;
  }
  if (!any || all) return all;
  if (!launch.first_end) launch.first_end = Clock::now();
  if (Clock::now() - *launch.first_end > kGrace) {
    for (const auto& rank : launch.ranks) rank->signal(SIGKILL);
  }
  return false;
}

std::optional<std::int64_t> GroupRunner::told(const Launch& launch, const std::string& what) const {
  for (const std::string& line : read_lines(stage_.plan.folder / "launches.log")) {
    std::istringstream words(line);
    std::string name, said;
    std::int64_t number = 0, last = 0;
    words >> name >> said >> number >> last;
    if (name == launch.name && said == what) return what == "opened" ? last : number;
  }
  return std::nullopt;
}

void GroupRunner::judge(Launch& launch) {
  bool off_line = false, refused = false, all_finished = true;
  for (const auto& rank : launch.ranks) {
    if (const auto wrong = rank->wrong_end()) violation(*wrong);
    const int code = WIFEXITED(rank->status()) ? WEXITSTATUS(rank->status()) : -1;
    off_line = off_line || code == kRefusedOffLine;
    refused = refused || code == kRefusedLoss;
    all_finished = all_finished && code == kFinished;
  }
  note_(fmt::format("{} has ended{}{}{}", launch.name, all_finished ? " with the stream" : "",
                    off_line ? ", its checkpoint off the line" : "", refused ? ", its checkpoint too old" : ""));
  ended_ = ended_ || (all_finished && &launch == current_.get());
  if (refused) stage_.board.add(Count::kRefusedOld);
  if (off_line) stage_.board.add(Count::kRefusedOffLine);
  if (const auto lost = told(launch, "opened")) {
    if (launch.intent != Intent::kNewest) stage_.board.add(Count::kResumedOlder);
    stage_.board.add(Count::kRewound, *lost);
    if (!launch.on_line)
      violation(fmt::format("{} was resumed, although its training had been taken back", name_of(launch.from)));
    const bool accepts = accepts_loss(launch);
    if (!accepts && (launch.lost_before > 0 || *lost > 0)) {
      violation(fmt::format("{} was resumed, although {} samples trained after it were freed", name_of(launch.from),
                            launch.lost_before));
    }
    if (accepts && *lost < launch.lost_before) {
      violation(fmt::format("{} was resumed with {} samples lost, but {} were freed before", name_of(launch.from), *lost,
                            launch.lost_before));
    }
  }
  if (const auto count = told(launch, "refused"); refused && count) judge_loss(launch, *count);
  if (off_line) judge_off_line(launch);
}

// Who trains in several passes may ask for it, and is refused all the same.
bool GroupRunner::accepts_loss(const Launch& launch) const {
  return launch.intent == Intent::kOlderAcceptLoss && plan_.passes == 1;
}

// It was refused because so many samples would be lost.
void GroupRunner::judge_loss(const Launch& launch, std::int64_t refused) {
  const std::string what =
      fmt::format("{} ({}) was refused because of {} lost samples", name_of(launch.from), intent_name(launch.intent), refused);
  if (accepts_loss(launch)) violation(what + ", which were accepted");
  Tables tables(stage_.plan.ledger);
  if (launch.guaranteed) {
    // Unless the launch before it has made another checkpoint meanwhile.
    Launch again;
    again.intent = launch.intent;
    choose(tables, again);
    if (again.from == launch.from) violation(what + ", and there is no newer checkpoint");
  }
  const std::int64_t now = tables.lost_after(plan_.name, launch.from ? launch.from->step : -1);
  if (refused < launch.lost_before || refused > now) {
    violation(fmt::format("{}; {} were freed before, {} are now", what, launch.lost_before, now));
  }
}

void GroupRunner::judge_off_line(const Launch& launch) {
  Tables tables(stage_.plan.ledger);
  if (!launch.from || tables.is_on_line(plan_.name, launch.from->timeline, launch.from->step)) {
    violation(name_of(launch.from) + " was refused as off the line, but it is on it");
  }
}

// --- the clock

void GroupRunner::tick(bool may_start) {
  if (stopping_) tick_stopping();
  if (chase_) tick_chase();
  if (!stopping_ && anything_stopped()) go_on();  // it met its point too late
  if (!may_start || anything_stopped()) return;
  for (auto at = old_.begin(); at != old_.end();) {
    if (!has_ended(**at)) {
      ++at;
      continue;
    }
    judge(**at);
    at = old_.erase(at);
  }
  if (current_ && has_ended(*current_)) {
    judge(*current_);
    current_.reset();
    next_start_ = Clock::now() + some_ms(stage_.random, 60);
  }
  const bool wanted = joined_ && !closed_ && !ended_ && !current_ && Clock::now() >= next_start_;
  if (wanted) start(prepare(intent_));
}

void GroupRunner::finish() {
  intent_ = Intent::kNewest;
  chase_.reset();
}

bool GroupRunner::finished() {
  return (ended_ || closed_) && !current_ && old_.empty();
}

bool GroupRunner::anything_stopped() {
  const auto stopped = [](const auto& launch) {
    return launch && std::ranges::any_of(launch->ranks, [](const auto& rank) { return rank->stopped(); });
  };
  const bool waits = stopping_ && stopping_->phase != Stopping::Phase::kWaitForStop;
  return waits || stopped(current_) || std::ranges::any_of(old_, stopped);
}

void GroupRunner::go_on() {
  stopping_.reset();
  stage_.board.stall_at(index_) = 0;
  const auto let_go = [](const auto& launch) {
    if (!launch) return;
    for (const auto& rank : launch->ranks) {
      if (rank->stopped()) rank->signal(SIGCONT);
    }
  };
  let_go(current_);
  for (const auto& launch : old_) let_go(launch);
}

void GroupRunner::tick_chase() {
  const auto files = list_checkpoints(stage_.plan.checkpoints(plan_));
  if (files.empty() || files.back().timeline <= *chase_ || !current_ || stopping_) return;
  kill_launch();
  intent_ = Intent::kSecondNewest;
  chase_.reset();
}

void GroupRunner::tick_stopping() {
  const bool late = Clock::now() > stopping_->until;
  switch (stopping_->phase) {
    case Stopping::Phase::kWaitForStop:
      if (current_ && anything_stopped()) {
        // It stopped between two calls and holds nothing: the tables can be looked at.
        auto successor = prepare(Intent::kNewest);
        note_(fmt::format("{} has stopped at its point", current_->name));
        old_.push_back(std::move(current_));
        start(std::move(successor));
        stopping_->phase = Stopping::Phase::kWaitForTakeover;
        stopping_->until = Clock::now() + kStopped;
      } else if (late || !current_) {
        go_on();
      }
      return;
    case Stopping::Phase::kWaitForTakeover:
      if (stage_.board.newest_timeline(index_) > stopping_->timeline) {
        stopping_->phase = Stopping::Phase::kLinger;
        stopping_->until = Clock::now() + some_ms(stage_.random, 300);
      } else if (late) {
        go_on();
      }
      return;
    case Stopping::Phase::kLinger:
      if (late) go_on();
      return;
  }
}

// --- chaos

void GroupRunner::kill_all() {
  go_on();
  if (current_) old_.push_back(std::move(current_));
  for (const auto& launch : old_) {
    for (const auto& rank : launch->ranks) rank->kill_and_wait();
  }
}

void GroupRunner::kill_rank() {
  if (!current_) return;
  note_(current_->name + ": a rank is killed");
  current_->ranks[stage_.random.below(current_->ranks.size())]->signal(SIGKILL);
}

void GroupRunner::kill_launch() {
  if (!current_) return;
  note_(current_->name + " is killed");
  for (const auto& rank : current_->ranks) rank->signal(SIGKILL);
}

void GroupRunner::take_over() {
  if (!current_ || stopping_ || old_.size() > 1) return;
  auto successor = prepare(Intent::kNewest);
  old_.push_back(std::move(current_));
  start(std::move(successor));
}

void GroupRunner::stop_for_takeover() {
  if (!current_ || stopping_ || old_.size() > 1) return;
  const std::int64_t timeline = stage_.board.newest_timeline(index_);
  if (stage_.random.below(3) > 0) {
    stage_.board.stall_at(index_) = 1 + static_cast<std::int64_t>(stage_.random.below(static_cast<int>(Point::kEnd) - 1));
    stopping_ = Stopping{Stopping::Phase::kWaitForStop, Clock::now() + kStopWait, timeline};
    return;
  }
  auto successor = prepare(Intent::kNewest);
  note_(current_->name + " is stopped");
  for (const auto& rank : current_->ranks) rank->signal(SIGSTOP);
  old_.push_back(std::move(current_));
  start(std::move(successor));
  stopping_ = Stopping{Stopping::Phase::kWaitForTakeover, Clock::now() + kStopped, timeline};
}

void GroupRunner::resume_from(Intent intent) {
  if (!current_ || stopping_) return;
  kill_launch();
  intent_ = intent == Intent::kSecondNewest && plan_.resumable == 1 ? Intent::kOlder : intent;
  if (plan_.resumable > 1 && stage_.random.below(2) == 0) chase_ = stage_.board.newest_timeline(index_);
}

}  // namespace draftflow::chaos
