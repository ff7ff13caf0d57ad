// SPDX-License-Identifier: Apache-2.0
//
// draftflow drain: a consumer without a trainer.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <ostream>

#include "cli/app.h"
#include "cli/inspect.h"
#include "cli/metrics.h"
#include "cli/progress_bar.h"
#include "cli/stop.h"
#include "cli/store_command.h"
#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/flow/cross_check.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow drain out/demo/store/features --ledger out/demo --group drain\n"
    "  draftflow drain out/store --ledger postgresql://host/runs --window 64 --json\n"
    "Reads and checks every sample of a stream once, as a group of its own, and lets its bytes go when every other group is "
    "done\n"
    "with them, too. Run again it goes on where it was. Ends with the stream; --idle-seconds ends it earlier.";

struct DrainArguments {
  StorePath store;
  std::filesystem::path ledger;
  std::string group = "drain";
  int window = 16;
  double idle_seconds = 0;
  bool json = false;
};

class Drain {
 public:
  Drain(const DrainArguments& arguments, const Console& console)
      : arguments_(arguments),
        group_(arguments.group),
        store_(open_store(arguments.store)),
        ledger_(open_ledger(ledger_path(arguments.ledger).string())),
        progress_(console.err, console.err_is_terminal, "drain", "samples") {}

  void run() {
    check_store(*ledger_, *store_.store);
    ledger_->declare_group({.group = group_, .window = arguments_.window});
    const GroupStatus before = ledger_->status().of(group_);
    std::optional<CheckpointMark> resume;  // a reader holds nothing: what was durable is done
    if (before.durable_step > 0) resume = CheckpointMark{ledger_->id(), group_, before.timeline, before.durable_step};
    timeline_ = ledger_->open_timeline({.group = group_, .resume = resume});
    step_ = timeline_.first_step;
    begin_ = steady_seconds();
    std::int64_t next = timeline_.first_window;
    double last_window = begin_;
    while (!stop_flag()) {
      const WindowAnswer answer = ledger_->read_window(group_, timeline_.number, next, {});
      if (answer.state == WindowState::kEndOfStream) break;
      if (!answer.window) {
        const auto idle = [&] {
          return arguments_.idle_seconds > 0 && steady_seconds() - last_window > arguments_.idle_seconds;
        };
        if (idle()) break;
        let_go();
        wait_for_change(*ledger_, [&] { return stop_flag() || idle(); });
        continue;
      }
      take(*answer.window);
      ++next;
      last_window = steady_seconds();
      if (step_ % kWindowsACheckpoint == 0) let_go();
    }
    let_go();
    progress_.finish();
  }

  Json result() const {
    const double seconds = std::max(steady_seconds() - begin_, 1e-9);
    return {{"samples", samples_},
            {"failed", failed_},
            {"bytes", bytes_},
            {"seconds", seconds},
            {"samples_per_s", static_cast<double>(samples_) / seconds},
            {"bytes_per_s", static_cast<double>(bytes_) / seconds},
            {"freed", freed_}};
  }

 private:
  static constexpr std::int64_t kWindowsACheckpoint = 16;

  void take(const Window& window) {
    std::vector<FailedSample> failed;
    for (const SampleRef& ref : window.refs) {
      try {
        for (const auto& [name, tensor] : store_.store->read(ref)) bytes_ += static_cast<std::int64_t>(tensor.bytes.size());
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kNotFound && error.kind() != ErrorKind::kCorrupt) throw;
        failed.push_back({ref.sample_id, error.what()});
      }
    }
    ledger_->trained(group_, timeline_.number, window.number, ++step_, failed);
    samples_ += static_cast<std::int64_t>(window.refs.size());
    failed_ += static_cast<std::int64_t>(failed.size());
    progress_.show(samples_, 0, human_bytes(static_cast<std::uint64_t>(bytes_)));
  }

  void let_go() {
    if (step_ == durable_) return;
    ledger_->checkpointed(group_, timeline_.number, step_);
    durable_ = step_;
    for (;;) {
      const std::vector<SampleRef> refs = ledger_->freeable(256);
      if (refs.empty()) return;
      std::vector<SampleId> ids;
      for (const SampleRef& ref : refs) {
        store_.store->remove(ref);
        ids.push_back(ref.sample_id);
      }
      ledger_->freed(ids);
      freed_ += static_cast<std::int64_t>(ids.size());
    }
  }

  const DrainArguments& arguments_;
  const GroupId group_;
  const OpenedStore store_;
  const std::unique_ptr<Ledger> ledger_;
  SingleProgress progress_;
  TimelineInfo timeline_;
  std::int64_t step_ = 0, durable_ = -1, samples_ = 0, failed_ = 0, bytes_ = 0, freed_ = 0;
  double begin_ = 0;
};

int run(const DrainArguments& arguments, const Console& console) {
  Drain drain(arguments, console);
  drain.run();
  const Json result = drain.result();
  if (arguments.json) {
    console.out << result.dump() << "\n";
  } else {
    console.out << fmt::format("{} samples, {} in {:.1f} s: {:.0f} samples/s, {}/s; {} failed, {} freed\n",
                               result["samples"].get<std::int64_t>(), human_bytes(result["bytes"].get<std::uint64_t>()),
                               result["seconds"].get<double>(), result["samples_per_s"].get<double>(),
                               human_bytes(static_cast<std::uint64_t>(result["bytes_per_s"].get<double>())),
                               result["failed"].get<std::int64_t>(), result["freed"].get<std::int64_t>());
  }
  if (stop_flag()) return kInterruptedExitCode;
  return result["failed"].get<std::int64_t>() > 0 ? exit_code(ErrorKind::kCorrupt) : 0;
}

}  // namespace

void add_drain_command(CommandLine& line) {
  auto arguments = std::make_shared<DrainArguments>();
  CLI::App& app = *line.app.add_subcommand("drain", "Consume a stream without a trainer: read, check, acknowledge");
  add_store_path(app, arguments->store);
  app.add_option("--ledger", arguments->ledger, "the ledger's file or URL, or a run's folder")->required()->type_name("PATH");
  app.add_option("--group", arguments->group, "consumer group")->capture_default_str();
  app.add_option("--window", arguments->window, "samples of one acknowledgement; fixed for the group")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--idle-seconds", arguments->idle_seconds, "end after so long without a window; 0: at the stream's end")
      ->capture_default_str();
  app.add_flag("--json", arguments->json, "print the result as JSON");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli
