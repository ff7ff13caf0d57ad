// SPDX-License-Identifier: Apache-2.0
//
// draftflow top: a run as it goes, from its ledger.
#include <poll.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <ostream>

#include "cli/app.h"
#include "cli/inspect.h"
#include "cli/progress_bar.h"
#include "cli/run_view.h"
#include "cli/stop.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow top --ledger out/demo\n"
    "  draftflow top --ledger postgresql://host/runs --seconds 5 --json\n"
    "Shows what 'draftflow status' does again and again, with rates and what limits the run. Ends with Ctrl-C.";

struct TopArguments {
  std::filesystem::path ledger;
  StorePath store;
  std::string high_watermark;
  double seconds = 1;
  int count = 0;
  bool json = false;
};

int run(const TopArguments& arguments, const Console& console) {
  const auto ledger = open_ledger_read_only(ledger_path(arguments.ledger).string());
  const std::uint64_t high = arguments.high_watermark.empty() ? 0 : parse_byte_size(arguments.high_watermark);
  const ByteBudget budget = find_budget(high, arguments.ledger, arguments.store);
  LedgerStatus before = ledger->status();
  double then = steady_seconds();
  for (int i = 0; (arguments.count == 0 || i < arguments.count) && !stop_flag(); ++i) {
    for (double left = arguments.seconds; left > 0 && !stop_flag(); left -= 0.1) {
      ::poll(nullptr, 0, static_cast<int>(1000 * std::min(left, 0.1)));
    }
    RunView now = look(*ledger, budget);
    const double seconds = std::max(steady_seconds() - then, 1e-3);
    now.rates = rates_between(before, now.status, seconds);
    if (arguments.json) {
      console.out << to_json(now).dump() << std::endl;
    } else {
      if (console.err_is_terminal) console.out << "\x1b[H\x1b[2J";
      console.out << run_view_text(now) << "limit      " << what_limits(now) << "\n" << std::endl;
    }
    before = std::move(now.status);
    then += seconds;
  }
  return stop_flag() ? kInterruptedExitCode : 0;
}

}  // namespace

void add_top_command(CommandLine& line) {
  auto arguments = std::make_shared<TopArguments>();
  CLI::App& app = *line.app.add_subcommand("top", "Watch a run: counters, leases, rates, and what limits it");
  app.add_option("--ledger", arguments->ledger, "the ledger's file or URL, or a run's folder")->required()->type_name("PATH");
  app.add_option("--store", arguments->store.path, "the store's folder, for its cap of resident bytes")->type_name("PATH");
  add_secret_file(app, arguments->store.secret_file);
  app.add_option("--high-watermark", arguments->high_watermark, "resident bytes at which producers pause")->type_name("BYTES");
  app.add_option("--seconds", arguments->seconds, "between two looks")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--count", arguments->count, "end after so many looks; 0: never")->capture_default_str();
  app.add_flag("--json", arguments->json, "print a JSON object a look");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli
