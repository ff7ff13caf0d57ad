// SPDX-License-Identifier: Apache-2.0
#include "chaos/supervisor.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <deque>
#include <memory>
#include <thread>

#include "chaos/checker.h"
#include "chaos/child.h"
#include "chaos/group_runner.h"
#include "chaos/roles.h"
#include "chaos/run_folder.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"

namespace draftflow::chaos {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
constexpr std::size_t kProducers = 3, kTakers = 2;
constexpr double kStreamPart = 0.4;                  // of a run of several passes: the rest of it is for them
constexpr double kEndSeconds = 120;                  // for what is left to do when the chaos has ended
constexpr std::uint64_t kResidentBytes = 1'500'000;  // the store's cap: a few hundred samples
constexpr std::size_t kEventsShown = 80;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One process of a kind that is started again until it has done its work.
struct Worker {
  std::string name;
  std::vector<std::string> arguments;
  std::unique_ptr<Child> child;
  bool done = false;
};

// Queues come last: the others are numbered as their runners are.
std::vector<GroupPlan> groups_of(Scenario scenario) {
  const std::vector<GroupPlan> queues = {{.name = "queue", .queue = true},
                                         {.name = "latecomer", .late = true, .queue = true},
                                         {.name = "shop", .closed = true, .queue = true}};
  if (scenario == Scenario::kQueue) return queues;
  if (scenario == Scenario::kPasses) {
    return {{.name = "twice", .window = 4, .resumable = 2, .passes = 2},
            {.name = "thrice", .window = 6, .max_width = 3, .tail = TailPolicy::kCarry, .passes = 3}};
  }
  std::vector<GroupPlan> groups = {{.name = "wide", .window = 8, .resumable = 2},
                                   {.name = "carry", .window = 4, .tail = TailPolicy::kCarry},
                                   {.name = "late", .window = 6, .max_width = 3, .late = true},
                                   {.name = "brief", .window = 2, .max_width = 2, .closed = true}};
  if (scenario == Scenario::kStream) groups.insert(groups.end(), queues.begin(), queues.end());
  return groups;
}

class Supervisor {
 public:
  explicit Supervisor(const ChaosOptions& options) : options_(options), choices_(options.seed) {
    Plan plan{.folder = folder_.path(), .ledger = (folder_.path() / "disk" / "ledger.sqlite3").string()};
    if (options.server != nullptr) {
      proxy_.emplace(*options.server);
      plan.ledger = options.server->fresh_schema();
      plan.lossy = proxy_->through(plan.ledger);
      // No power cut is played, and what was written survives a crash of the server all the same.
      options.server->ask("ALTER SYSTEM SET fsync = off");
      options.server->ask("SELECT pg_reload_conf()");
    }
    plan.seed = options.seed;
    plan.bug = options.bug;
    plan.started_ms = steady_ms();
    plan.lifetime_s = static_cast<unsigned>(options.seconds + kEndSeconds) + 60;
    plan.groups = groups_of(options.scenario);
    for (const GroupPlan& group : plan.groups) make_folders(plan.checkpoints(group));
    save_plan(plan);
    stage_.emplace(plan.folder, /*ordinal=*/0);
    make_store(plan, options.scenario == Scenario::kPasses ? 0 : kResidentBytes);
    const auto ledger = open_ledger(plan.ledger);
    for (const GroupPlan& group : plan.groups) {
      if (!group.late) ledger->declare_group(config_of(plan, group));
    }
    hire();
  }

  ChaosResult run() {
    try {
      chaos();
      if (go_on()) finish();
      if (go_on()) check();
    } catch (const std::exception& error) {
      stage_->violation(fmt::format("the supervisor: {}", error.what()));
    }
    folder_.relax();
    for (const auto& runner : runners_) runner->kill_all();
    workers_.clear();
    return result();
  }

 private:
  void hire() {
    for (std::size_t i = 0; i < kProducers; ++i) workers_.push_back({fmt::format("producer{}", i), {"--role=producer"}, {}});
    workers_.push_back({"ingester", {"--role=ingester"}, {}});
    for (std::size_t i = 0; i < stage_->plan.groups.size(); ++i) {
      if (!stage_->plan.groups[i].queue) {
        runners_.push_back(std::make_unique<GroupRunner>(*stage_, i, [this](const std::string& event) { note(event); }));
      } else if (!stage_->plan.groups[i].late) {
        hire_takers(i);
      }
    }
  }

  void hire_takers(std::size_t queue) {
    for (std::size_t taker = 0; taker < kTakers; ++taker) {
      workers_.push_back({fmt::format("{}-taker{}", stage_->plan.groups[queue].name, taker),
                          {"--role=taker", fmt::format("--group={}", queue)},
                          {}});
    }
  }

  bool go_on() { return stage_->board.violations() == 0; }

  void note(const std::string& event) {
    events_.push_back(fmt::format("{:8.3f} {}", seconds_since(start_), event));
    if (events_.size() > kEventsShown) events_.pop_front();
  }

  // --- what runs

  bool anything_stopped() {
    return std::ranges::any_of(runners_, [](const auto& runner) { return runner->anything_stopped(); }) ||
           std::ranges::any_of(workers_, [](const Worker& worker) { return worker.child && worker.child->stopped(); });
  }

  void tick() {
    if (stopped_until_ && Clock::now() > *stopped_until_) {
      for (Worker& worker : workers_) {
        if (worker.child) worker.child->signal(SIGCONT);
      }
      stopped_until_.reset();
    }
    if (squeezed_until_ && Clock::now() > *squeezed_until_) {
      folder_.relax();
      squeezed_until_.reset();
    }
    for (Worker& worker : workers_) tick(worker);
    if (collector_ && !collector_->running()) {
      if (const auto wrong = collector_->wrong_end()) stage_->violation(*wrong);
      collector_.reset();
    }
    for (const auto& runner : runners_) runner->tick(!anything_stopped());
    std::this_thread::sleep_for(milliseconds(3));
  }

  void tick(Worker& worker) {
    if (worker.done || (worker.child && worker.child->running())) return;
    if (worker.child) {
      if (const auto wrong = worker.child->wrong_end()) stage_->violation(*wrong);
      worker.done = WIFEXITED(worker.child->status()) && WEXITSTATUS(worker.child->status()) == kFinished;
      worker.child.reset();
    }
    if (!worker.done)
      worker.child = std::make_unique<Child>(stage_->plan, worker.name, stage_->random.next(), worker.arguments);
  }

  void run_to_end(const std::string& role, std::vector<std::string> more = {}) {
    more.insert(more.begin(), "--role=" + role);
    Worker worker{role, more, {}};
    const auto start = Clock::now();
    while (go_on() && !worker.done) {
      tick(worker);
      tick();
      if (seconds_since(start) > kEndSeconds) stage_->violation(role + " does not come to its end");
    }
  }

  // --- chaos

  void chaos() {
    const double joins_at = options_.seconds * (0.2 + 0.3 * choices_.uniform());
    const double closes_at = options_.seconds * (0.3 + 0.5 * choices_.uniform());
    auto next = Clock::now() + milliseconds(300);
    bool joined = false, closed = false;
    const bool ends_early = options_.scenario == Scenario::kPasses;
    while (go_on() && (seconds_since(start_) < options_.seconds || !joined || !closed) && !(ends_early && all_done())) {
      tick();
      if (ends_early && seconds_since(start_) > options_.seconds * kStreamPart) stage_->board.stop_ingest() = 1;
      if (!joined && seconds_since(start_) > joins_at && !anything_stopped()) {
        joined = true;
        join_late_groups();
      }
      if (!closed && seconds_since(start_) > closes_at && !anything_stopped()) {
        closed = true;
        close_groups(/*queues=*/true);
      }
      if (Clock::now() < next || anything_stopped()) continue;
      act();
      next = Clock::now() + milliseconds(10 + choices_.below(140));
    }
  }

  void join_late_groups() {
    for (std::size_t i = 0; i < stage_->plan.groups.size(); ++i) {
      const GroupPlan& group = stage_->plan.groups[i];
      if (!group.late) continue;
      note(group.name + " joins late");
      run_to_end("joiner", {fmt::format("--group={}", i)});
      if (group.queue) {
        hire_takers(i);
      } else {
        runners_[i]->join();
      }
    }
  }

  // Whose ranks or consumers are at work.
  void close_groups(bool queues) {
    for (std::size_t i = 0; i < stage_->plan.groups.size(); ++i) {
      const GroupPlan& group = stage_->plan.groups[i];
      if (!group.closed || group.queue != queues) continue;
      note(group.name + " is closed");
      if (!queues) runners_[i]->leave();
      run_to_end("closer", {fmt::format("--group={}", i)});
    }
  }

  // One thing happens. As many draws each time, whatever comes of them, so that a seed repeats the choices.
  void act() {
    const std::uint64_t what = choices_.below(100), whom = choices_.next(), how_long = choices_.next();
    GroupRunner* runner = runners_.empty() ? nullptr : runners_[whom % runners_.size()].get();
    Worker& worker = workers_[whom % workers_.size()];
    if (what < 16 || (runner == nullptr && what < 78)) {
      note(worker.name + " is killed");
      if (worker.child) worker.child->signal(SIGKILL);
      ++kills_;
    } else if (what < 34) {
      runner->kill_rank();
      ++kills_;
    } else if (what < 40) {
      runner->kill_launch();
      ++kills_;
    } else if (what < 48) {
      runner->take_over();
      ++takeovers_;
    } else if (what < 64) {
      runner->stop_for_takeover();
      ++takeovers_;
    } else if (what < 78) {
      resume_older(*runner, how_long);
    } else if (what < 84) {
      stop_worker(worker, how_long % 800);
    } else if (what < 88) {
      collect(how_long % 3 == 0);
    } else if (what < 92 || !proxy_) {
      squeeze(how_long % 60'000, 50 + whom % 350);
    } else if (what < 96) {
      note("a commit is lost, or its reply");
      proxy_->lose_next(how_long % 2 == 0 ? testing_support::CommitLoser::Loses::kCommit
                                          : testing_support::CommitLoser::Loses::kReply);
    } else {
      const bool immediate = how_long % 2 == 0;
      note(immediate ? "the server crashes" : "the server restarts");
      options_.server->restart(immediate);
    }
  }

  void resume_older(GroupRunner& runner, std::uint64_t draw) {
    const std::uint64_t kind = draw % 10;
    const Intent intent = kind < 5 ? Intent::kSecondNewest : kind < 9 ? Intent::kOlder : Intent::kOlderAcceptLoss;
    runner.resume_from(intent);
  }

  void stop_worker(Worker& worker, std::uint64_t ms) {
    if (!worker.child) return;
    note(fmt::format("{} is stopped for {} ms", worker.name, ms));
    worker.child->signal(SIGSTOP);
    stopped_until_ = Clock::now() + milliseconds(ms);
  }

  void squeeze(std::uint64_t left, std::uint64_t ms) {
    if (squeezed_until_ || !folder_.can_squeeze()) return;
    note(fmt::format("the disk has {} bytes left for {} ms", left, ms));
    folder_.squeeze(left);
    squeezed_until_ = Clock::now() + milliseconds(ms);
  }

  // A gc by somebody who may die in the midst of it.
  void collect(bool dies) {
    note(dies ? "a gc that dies" : "a gc");
    collector_ =
        std::make_unique<Child>(stage_->plan, "collector", stage_->random.next(), std::vector<std::string>{"--role=collector"});
    if (!dies) return;
    std::this_thread::sleep_for(milliseconds(stage_->random.below(15)));
    collector_->signal(SIGKILL);
  }

  // --- the end

  void finish() {
    note("the chaos ends");
    folder_.relax();
    squeezed_until_.reset();
    stopped_until_ = Clock::now();
    for (const auto& runner : runners_) runner->finish();
    close_groups(/*queues=*/false);
    stage_->board.stop_ingest() = 1;
    const auto start = Clock::now();
    while (go_on() && !all_done()) {
      tick();
      if (seconds_since(start) > kEndSeconds) stage_->violation("the run does not come to its end: " + state());
    }
    if (go_on()) run_to_end("sweeper");
    if (go_on()) run_to_end("collector");
    note("all is done");
  }

  bool all_done() {
    return std::ranges::all_of(runners_, [](const auto& runner) { return runner->finished(); }) &&
           std::ranges::all_of(workers_, [](const Worker& worker) { return worker.done; });
  }

  std::string state() {
    const LedgerStatus status = open_ledger(stage_->plan.ledger)->status();
    std::string text = fmt::format("{} prompts, {} pending, {} leased, {} done, {} failed; {} committed, {} freed, {} bytes",
                                   status.prompts, status.prompts_pending, status.prompts_leased, status.prompts_done,
                                   status.prompts_failed, status.committed, status.freed, status.resident_bytes);
    for (const GroupStatus& group : status.groups) {
      text += fmt::format(
          "; {}: {} available, {} leased, {} windowed, {} trained, {} durable, {} dropped, {} failed, timeline {}, step {}",
          group.group, group.available, group.leased, group.windowed, group.trained, group.durable, group.dropped, group.failed,
          group.timeline, group.trained_step);
    }
    return text;
  }

  void check() {
    for (const std::string& violation : check_books(*stage_)) stage_->violation(violation);
  }

  ChaosResult result() {
    ChaosResult result{.kills = kills_, .takeovers = takeovers_, .seconds = seconds_since(start_)};
    result.violations = read_lines(stage_->plan.folder / "violations.log");
    result.steps = stage_->board.get(Count::kSteps);
    result.acks = stage_->board.get(Count::kAcks);
    for (const std::string& event : events_) result.events += event + "\n";
    result.summary = fmt::format("{:.1f} s, {} kills, {} takeovers", result.seconds, kills_, takeovers_);
    if (proxy_) result.summary += fmt::format(", {} lost commits or replies", proxy_->lost());
    for (int i = 0; i < static_cast<int>(Count::kEnd); ++i) {
      result.summary += fmt::format(", {} {}", stage_->board.get(static_cast<Count>(i)), count_name(static_cast<Count>(i)));
    }
    return result;
  }

  const ChaosOptions options_;
  Random choices_;  // apart from the draws of processes, whose number depends on the machine
  const Clock::time_point start_ = Clock::now();
  RunFolder folder_;
  std::optional<testing_support::CommitLoser> proxy_;  // between some processes and the server
  std::optional<Stage> stage_;
  std::vector<std::unique_ptr<GroupRunner>> runners_;
  std::vector<Worker> workers_;
  std::unique_ptr<Child> collector_;
  std::optional<Clock::time_point> stopped_until_, squeezed_until_;
  std::deque<std::string> events_;
  std::int64_t kills_ = 0, takeovers_ = 0;
};

}  // namespace

ChaosResult run_chaos(const ChaosOptions& options) {
  ::alarm(static_cast<unsigned>(options.seconds + 3 * kEndSeconds));  // its own waits are all shorter
  ChaosResult result = Supervisor(options).run();
  ::alarm(0);
  return result;
}

}  // namespace draftflow::chaos
