// SPDX-License-Identifier: Apache-2.0
//
// draftflow top: a run as it goes, from its ledger alone.
#include <fmt/format.h>
#include <poll.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <ostream>

#include "cli/app.h"
#include "cli/inspect.h"
#include "cli/metrics.h"
#include "cli/progress_bar.h"
#include "cli/stop.h"
#include "draftflow/base/text.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow top --ledger out/demo\n"
    "  draftflow top --ledger postgresql://host/runs --seconds 5 --json\n"
    "Shows the counters of 'draftflow status' again and again, with rates and what limits the run. Ends with Ctrl-C.";

struct TopArguments {
  std::filesystem::path ledger;
  double seconds = 1;
  int count = 0;
  bool json = false;
};

// The group that keeps the others' bytes: the open one that has seen the least.
GroupStatus slowest_group(const LedgerStatus& status) {
  const GroupStatus* slowest = nullptr;
  for (const GroupStatus& group : status.groups) {
    if (group.open && (slowest == nullptr || group.available + group.windowed > slowest->available + slowest->windowed)) {
      slowest = &group;
    }
  }
  return slowest != nullptr ? *slowest : status.of(GroupId("train"));
}

std::int64_t seen_by(const GroupStatus& group) {
  return group.trained + group.durable + group.failed;
}

int run(const TopArguments& arguments, const Console& console) {
  const auto ledger = open_ledger_read_only(ledger_path(arguments.ledger).string());
  LedgerStatus before = ledger->status();
  double then = steady_seconds();
  for (int i = 0; (arguments.count == 0 || i < arguments.count) && !stop_flag(); ++i) {
    for (double left = arguments.seconds; left > 0 && !stop_flag(); left -= 0.1) {
      ::poll(nullptr, 0, static_cast<int>(1000 * std::min(left, 0.1)));
    }
    const LedgerStatus now = ledger->status();
    const double seconds = std::max(steady_seconds() - then, 1e-3);
    const RunRates rates = rates_between(before, now, seconds);
    if (arguments.json) {
      Json line = to_json(now);
      line["committed_per_s"] = rates.committed;
      line["trained_per_s"] = rates.trained;
      line["limit"] = what_limits(now, rates);
      console.out << line.dump() << std::endl;
    } else {
      if (console.err_is_terminal) console.out << "\x1b[H\x1b[2J";
      console.out << status_text(now)
                  << fmt::format("rates      {:.1f} samples/s committed, {:.1f} trained\n", rates.committed, rates.trained)
                  << "limit      " << what_limits(now, rates) << "\n"
                  << std::endl;
    }
    before = now;
    then += seconds;
  }
  return stop_flag() ? kInterruptedExitCode : 0;
}

}  // namespace

RunRates rates_between(const LedgerStatus& before, const LedgerStatus& now, double seconds) {
  const GroupStatus slowest = slowest_group(now);
  return {static_cast<double>(now.committed - before.committed) / seconds,
          static_cast<double>(seen_by(slowest) - seen_by(before.of(GroupId(slowest.group)))) / seconds};
}

std::string what_limits(const LedgerStatus& now, const RunRates& rates) {
  const GroupStatus group = slowest_group(now);
  const std::int64_t waiting = group.available + group.windowed, window = std::max(group.window, 1);
  const bool captured = now.prompts_closed && now.prompts_pending + now.prompts_leased == 0;
  const std::string name = printable(group.group);
  if (now.groups.empty()) return fmt::format("no trainer has come yet; {} samples wait", now.committed);
  if (captured && waiting < window) return "nothing: everything is captured and trained";
  if (rates.committed == 0 && rates.trained == 0) {
    if (waiting >= window) {
      return fmt::format("nothing moves: {} samples wait for group '{}', whose trainer is not there or busy with one step",
                         waiting, name);
    }
    if (now.prompts_leased > 0) return fmt::format("capture: {} prompts are leased and none is done", now.prompts_leased);
    if (now.prompts_pending > 0) return fmt::format("capture: {} prompts wait and no worker takes them", now.prompts_pending);
    return "the prompts: none is waiting, and they are not closed";
  }
  if (waiting < 2 * window) return fmt::format("capture: group '{}' takes samples as they come ({} wait)", name, waiting);
  if (captured) return fmt::format("training: everything is captured, {} samples wait for group '{}'", waiting, name);
  if (rates.committed == 0) {
    return fmt::format("training: producers pause or are slow, {} samples ({}) wait for group '{}'", waiting,
                       human_bytes(now.resident_bytes), name);
  }
  return fmt::format("training: {} samples wait for group '{}'", waiting, name);
}

void add_top_command(CommandLine& line) {
  auto arguments = std::make_shared<TopArguments>();
  CLI::App& app = *line.app.add_subcommand("top", "Watch a run: counters, rates, and what limits it");
  app.add_option("--ledger", arguments->ledger, "the ledger's file or URL, or a run's folder")->required()->type_name("PATH");
  app.add_option("--seconds", arguments->seconds, "between two looks")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--count", arguments->count, "end after so many looks; 0: never")->capture_default_str();
  app.add_flag("--json", arguments->json, "print a JSON object a look");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli
