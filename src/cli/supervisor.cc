// SPDX-License-Identifier: Apache-2.0
#include "cli/supervisor.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <ostream>

#include "cli/records.h"
#include "cli/report.h"
#include "cli/stages.h"
#include "cli/stop.h"
#include "cli/summary.h"
#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr double kSampleSeconds = 1;
constexpr int kPollMs = 100;
constexpr int kTailLines = 15;
constexpr const char* kEvalNames[2] = {"untrained", "trained"};

const char* meaning_of(int code) {
  for (int kind = 0; kind <= static_cast<int>(ErrorKind::kInDoubt); ++kind) {
    if (exit_code(static_cast<ErrorKind>(kind)) == code) return error_kind_name(static_cast<ErrorKind>(kind));
  }
  return code == kInterruptedExitCode ? "interrupted" : "unknown";
}

std::string how_it_ended(const ChildExit& exit) {
  if (exit.signal != 0) return fmt::format("was killed by signal {} ({})", exit.signal, ::strsignal(exit.signal));
  return fmt::format("ended with exit code {} ({})", exit.code, meaning_of(exit.code));
}

// How likely an end is to be the reason of the others in its unit: a rank that lost the others says Unavailable.
enum Blame { kNone, kPassing, kKilled, kWouldFailAgain };
Blame blame(const ChildExit& exit) {
  if (exit.signal == SIGTERM || (exit.signal == 0 && (exit.code == 0 || exit.code == kInterruptedExitCode))) return kNone;
  if (exit.signal != 0) return kKilled;
  const bool passing = exit.code == exit_code(ErrorKind::kUnavailable) || exit.code == exit_code(ErrorKind::kInDoubt);
  return passing ? kPassing : kWouldFailAgain;
}

}  // namespace

Supervisor::Supervisor(RunConfig config, SupervisorOptions options, const Console& console)
    : config_(std::move(config)), options_(std::move(options)), console_(console) {}

int Supervisor::run() {
  check_run_config(config_);
  board_ = std::make_unique<ProgressBoard>(console_.err, console_.err_is_terminal);
  folder_ = std::make_unique<RunFolder>(config_.out, options_.lock_wait, [&](const std::string& text) { board_->say(text); });
  if (options_.fresh) folder_->remove_own_files();
  folder_->adopt(config_);
  state_ = folder_->load_state();
  if (state_.done.contains(kReportStage) && std::filesystem::exists(folder_->summary())) return show_results();
  process_metrics_ = std::make_unique<MetricsWriter>(folder_->metrics("processes"));
  process_metrics_->append({{"name", "supervisor"}, {"pid", ::getpid()}});
  ledger_metrics_ = std::make_unique<MetricsWriter>(folder_->metrics("ledger"));
  train_reader_ = std::make_unique<MetricsReader>(folder_->metrics("train"));
  for (int i = 0; i < 2; ++i) {
    eval_readers_[i] = std::make_unique<MetricsReader>(folder_->metrics(std::string("eval-") + kEvalNames[i]));
  }
  const int code = run_stages();
  return code != 0 ? code : show_results();
}

int Supervisor::run_stages() {
  if (!state_.done.contains(kIngestStage)) {
    board_->say("putting the prompts on the books");
    if (const int code = run_stage(kIngestStage, ingest_children(config_, *folder_)); code != 0) return code;
  }
  if (!state_.done.contains(kTrainStage)) {
    board_->say(fmt::format("capturing with {} and training with {} process{}; logs in {}", config_.workers,
                            config_.train.ranks, config_.train.ranks == 1 ? "" : "es", (folder_->path() / "logs").string()));
    launch_ = folder_->new_launch();
    if (const int code = run_stage(kTrainStage, train_children(config_, *folder_, launch_)); code != 0) return code;
  }
  if (const auto specs = eval_children(config_, *folder_); !specs.empty()) {
    make_folders(folder_->eval("x").parent_path());
    board_->say("decoding the held-out prompts with the untrained and the trained draft");
    if (const int code = run_stage(kEvalStage, specs); code != 0) return code;
  }
  write_results();
  return 0;
}

int Supervisor::run_stage(const std::string& name, const std::vector<ChildSpec>& specs) {
  stage_ = name;
  const double begin = steady_seconds();
  Children children(options_.executable, folder_->children_lock());
  for (const ChildSpec& spec : specs) {
    const pid_t pid = children.start(spec);
    process_metrics_->append({{"name", spec.name}, {"pid", pid}});
  }
  const int code = watch(children);
  if (code == 0) sample();
  board_->finish();
  state_.seconds[name] += steady_seconds() - begin;
  if (code == 0) state_.done.insert(name);
  folder_->save_state(state_);
  return code;
}

int Supervisor::watch(Children& children) {
  double next_sample = 0;
  while (!children.empty()) {
    if (stop_flag()) return interrupted(children);
    while (const auto exit = children.reap()) {
      if (const int code = finish_child(*exit, children); code != 0) return code;
    }
    if (const double now = steady_seconds(); now >= next_sample) {
      sample();
      next_sample = now + kSampleSeconds;
    }
    if (!children.empty()) ::poll(nullptr, 0, kPollMs);
  }
  return 0;
}

int Supervisor::finish_child(const ChildExit& exit, Children& children) {
  if (stop_flag() && exit.code == kInterruptedExitCode) return interrupted(children);
  if (exit.code != 0 || exit.signal != 0) return start_again(exit, children);
  if (exit.spec.output.empty()) return 0;
  std::filesystem::path result = exit.spec.output;  // eval/trained.partial.json -> eval/trained.json
  result.replace_filename(result.stem().stem().string() + ".json");
  replace_file(result, read_text_file(exit.spec.output, 64 << 20));
  std::filesystem::remove(exit.spec.output);
  if (load_eval(result).is_null()) {
    throw Corrupt(
        fmt::format("{} wrote {}, which is no evaluation; see {}", exit.spec.name, result.string(), exit.spec.log.string()));
  }
  return 0;
}

// Starts a unit again that was killed or met a passing failure, unless that has happened too often without progress: then the
// run fails, and this is its exit code. The ranks of a launch end and start together: what one missed the others cannot give
// it.
int Supervisor::start_again(const ChildExit& exit, Children& children) {
  if (stage_ != kTrainStage || stop_flag()) return fail(exit, children);
  const std::vector<ChildExit> others = children.stop_unit(exit.spec.unit, options_.grace_seconds);
  const ChildExit* cause = &exit;
  for (const ChildExit& other : others) {
    if (blame(other) > blame(*cause)) cause = &other;
  }
  if (config_.restarts == 0 || blame(*cause) == kWouldFailAgain) return fail(*cause, children);
  const LedgerStatus status = open_ledger_read_only(ledger_of(config_, *folder_))->status();
  const std::int64_t progress = exit.spec.unit == kTrainUnit ? status.of(GroupId(config_.train.group)).durable_step
                                                             : status.prompts_done + status.prompts_failed;
  Restarts& restarts = restarts_[exit.spec.unit];
  restarts.count = progress > restarts.progress ? 1 : restarts.count + 1;
  restarts.progress = progress;
  if (restarts.count > config_.restarts) {
    board_->say(fmt::format("'{}' was started again {} times without progress", exit.spec.unit, config_.restarts));
    return fail(*cause, children);
  }
  board_->say(fmt::format("{} {}: starting {} again ({} of {} without progress); its log: {}", cause->spec.name,
                          how_it_ended(*cause), exit.spec.unit, restarts.count, config_.restarts, cause->spec.log.string()));
  if (exit.spec.unit == kTrainUnit) launch_ = folder_->new_launch();
  for (const ChildSpec& spec : train_children(config_, *folder_, launch_)) {
    if (spec.unit != exit.spec.unit) continue;
    const pid_t pid = children.start(spec);
    process_metrics_->append({{"name", spec.name}, {"pid", pid}});
  }
  return 0;
}

int Supervisor::fail(const ChildExit& exit, Children& children) {
  board_->finish();
  if (!children.empty()) board_->say(fmt::format("{} {}: stopping the others", exit.spec.name, how_it_ended(exit)));
  children.stop(options_.grace_seconds);
  const std::string tail = tail_of(exit.spec.log, kTailLines);
  console_.err << fmt::format("draftflow run: the process '{}' (pid {}) {}; the end of its log {}:\n{}\n", exit.spec.name,
                              exit.pid, how_it_ended(exit), exit.spec.log.string(), tail.empty() ? "(it is empty)" : tail);
  if (exit.code != exit_code(ErrorKind::kInvalidArgument)) {  // the same command would be refused again
    console_.err << "What is done is kept: give the same command again to go on from there." << std::endl;
  }
  return exit.signal != 0 ? exit_code(ErrorKind::kUnavailable) : exit.code;
}

int Supervisor::interrupted(Children& children) {
  board_->finish();
  board_->say("stopping: waiting for the processes to save their work (once more to end at once)");
  children.stop(options_.grace_seconds);
  board_->say("stopped; give the same command again to go on from here");
  return kInterruptedExitCode;
}

void Supervisor::sample() {
  if (stage_ == kEvalStage) return board_->show(eval_lines());
  if (stage_ != kTrainStage) return;
  try {
    if (!ledger_) ledger_ = open_ledger_read_only(ledger_of(config_, *folder_));
    const LedgerStatus status = ledger_->status();
    ledger_metrics_->append(to_json(status));
    board_->show(train_lines(status));
  } catch (const Unavailable&) {  // busy: the next sample will do
  }
}

std::vector<ProgressLine> Supervisor::train_lines(const LedgerStatus& status) {
  const double now = steady_seconds();
  const std::int64_t trained_step = status.of(GroupId(config_.train.group)).trained_step;
  for (Json& record : train_reader_->read_new()) last_train_ = std::move(record);
  const std::int64_t captured = status.prompts_done + status.prompts_failed;
  const auto total_steps = static_cast<std::int64_t>(number_or(last_train_, "total_steps", 0));
  capture_meter_.add(now, captured);
  train_meter_.add(now, trained_step);
  std::string capture_note = human_bytes(status.resident_bytes) + " resident";
  if (status.prompts_failed > 0) capture_note += fmt::format(", {} failed", status.prompts_failed);
  std::string train_note = trained_step == 0 ? "waiting for samples" : "";
  if (last_train_.contains("loss_total")) train_note = fmt::format("loss {:.3f}", number_or(last_train_, "loss_total", 0));
  return {
      {"capture", captured, status.prompts, "prompts", capture_meter_.rate(), capture_meter_.seconds_left(status.prompts),
       capture_note},
      {"train", trained_step, total_steps, "steps", train_meter_.rate(), train_meter_.seconds_left(total_steps), train_note}};
}

std::vector<ProgressLine> Supervisor::eval_lines() {
  std::vector<ProgressLine> lines;
  for (int i = 0; i < 2; ++i) {
    for (Json& record : eval_readers_[i]->read_new()) last_eval_[i] = std::move(record);
    if (!last_eval_[i].is_object()) continue;
    const auto done = static_cast<std::int64_t>(number_or(last_eval_[i], "done", 0));
    const auto total = static_cast<std::int64_t>(number_or(last_eval_[i], "total", 0));
    eval_meters_[i].add(steady_seconds(), done);
    lines.push_back({kEvalNames[i], done, total, "prompts", eval_meters_[i].rate(), eval_meters_[i].seconds_left(total), ""});
  }
  return lines;
}

void Supervisor::write_results() {
  const auto ledger = open_ledger_read_only(ledger_of(config_, *folder_));
  const LedgerStatus status = ledger->status();
  const RunRecords records = load_run_records(*folder_);
  const auto samples = static_cast<std::int64_t>(ledger->trained_ids(GroupId(config_.train.group)).size());
  const Json summary = make_summary(config_, records, state_, samples, status.of(GroupId(config_.train.group)).trained_step);
  replace_file(folder_->summary(), summary.dump(2) + "\n");
  replace_file(folder_->report(), report_html({config_, records, summary}));
  state_.done.insert(kReportStage);
  folder_->save_state(state_);
}

int Supervisor::show_results() {
  const std::string text = read_text_file(folder_->summary(), 16 << 20);
  const Json summary = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!summary.is_object()) throw Corrupt(folder_->summary().string() + " is not JSON: remove it and give the command again");
  console_.out << (options_.json ? text : summary_table(summary, folder_->report()));
  return 0;
}

}  // namespace draftflow::cli
