// SPDX-License-Identifier: Apache-2.0
//
// draftflow status: one screen about a run, from its ledger.
#include <CLI/CLI.hpp>
#include <memory>
#include <ostream>

#include "cli/app.h"
#include "cli/inspect.h"
#include "cli/run_view.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow status --ledger out/demo\n"
    "  draftflow status --ledger postgresql://host/runs --store /shared/store/features\n"
    "  draftflow status --ledger out/demo/ledger.sqlite3 --high-watermark 20GiB --json\n"
    "Counters, who holds which leases and for how long, resident bytes against what may be, and what limits the run, in a "
    "sentence.\n"
    "A run's folder knows its high watermark and how long each side has waited; 'draftflow top' adds rates.";

struct StatusArguments {
  std::filesystem::path ledger;
  StorePath store;
  std::string high_watermark;
  bool json = false;
};

int run(const StatusArguments& arguments, const Console& console) {
  const auto ledger = open_ledger_read_only(ledger_path(arguments.ledger).string());
  const std::uint64_t high = arguments.high_watermark.empty() ? 0 : parse_byte_size(arguments.high_watermark);
  RunView view = look(*ledger, find_budget(high, arguments.ledger, arguments.store));
  view.starvation = find_starvation(arguments.ledger);
  if (arguments.json) {
    console.out << to_json(view).dump() + "\n";
    return 0;
  }
  console.out << run_view_text(view) << "limit      " << what_limits(view) << "\n";
  if (view.status.prompts_failed > 0) show_failed_prompts(ledger_path(arguments.ledger), console);
  return 0;
}

}  // namespace

std::filesystem::path ledger_path(const std::filesystem::path& where) {
  std::error_code ignored;
  return std::filesystem::is_directory(where, ignored) ? where / "ledger.sqlite3" : where;
}

void add_status_command(CommandLine& line) {
  auto arguments = std::make_shared<StatusArguments>();
  CLI::App& app = *line.app.add_subcommand("status", "Show where a run stands");
  app.add_option("--ledger", arguments->ledger, "the ledger's file or URL, or a run's folder")->required()->type_name("PATH");
  app.add_option("--store", arguments->store.path, "the store's folder, for its cap of resident bytes")->type_name("PATH");
  add_secret_file(app, arguments->store.secret_file);
  app.add_option("--high-watermark", arguments->high_watermark, "resident bytes at which producers pause")->type_name("BYTES");
  app.add_flag("--json", arguments->json, "print JSON");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli
