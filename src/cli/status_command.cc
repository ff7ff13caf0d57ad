// SPDX-License-Identifier: Apache-2.0
//
// draftflow status: one screen about a run, from its ledger's counters alone.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <ostream>

#include "cli/app.h"
#include "cli/inspect.h"
#include "cli/metrics.h"
#include "draftflow/base/text.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow status --ledger out/demo\n"
    "  draftflow status --ledger out/demo/ledger.sqlite3 --json";

int run(const std::filesystem::path& where, bool json, const Console& console) {
  const LedgerStatus status = open_ledger_read_only(ledger_path(where).string())->status();
  console.out << (json ? to_json(status).dump() + "\n" : status_text(status));
  if (!json && status.prompts_failed > 0) show_failed_prompts(ledger_path(where), console);
  return 0;
}

}  // namespace

std::filesystem::path ledger_path(const std::filesystem::path& where) {
  std::error_code ignored;
  return std::filesystem::is_directory(where, ignored) ? where / "ledger.sqlite3" : where;
}

std::string status_text(const LedgerStatus& s) {
  std::string text = fmt::format("run        {}   ledger {}\n", printable(s.run_id.empty() ? "-" : s.run_id), s.ledger_id);
  text +=
      fmt::format("prompts    {} on the books ({}): {} pending, {} leased, {} done, {} failed\n", s.prompts,
                  s.prompts_closed ? "closed" : "open", s.prompts_pending, s.prompts_leased, s.prompts_done, s.prompts_failed);
  text +=
      fmt::format("samples    {} committed, {} tokens\n", s.committed, human_count(static_cast<double>(s.committed_tokens)));
  text += fmt::format("bytes      {} resident, {} samples freed\n", human_bytes(s.resident_bytes), s.freed);
  for (const GroupStatus& g : s.groups) {
    if (g.kind == GroupKind::kQueue) {
      text += fmt::format(
          "queue      {}{}: {} available, {} leased, {} acknowledged; aside: {} dropped, {} failed; {} stay for it\n",
          printable(g.group), g.open ? "" : " (closed)", g.available, g.leased, g.durable, g.dropped, g.failed, g.pinned);
      continue;
    }
    text += fmt::format(
        "group      {}{}: {} available, {} in windows of {}, {} trained, {} durable; aside: {} dropped, {} failed\n",
        printable(g.group), g.open ? "" : " (closed)", g.available, g.windowed, g.window, g.trained, g.durable, g.dropped,
        g.failed);
    text +=
        fmt::format("           timeline {} with {} rank{}, trained to step {}, durable to step {}; {} samples stay for it\n",
                    g.timeline, g.width, g.width == 1 ? "" : "s", g.trained_step, g.durable_step, g.pinned);
  }
  return text;
}

void add_status_command(CommandLine& line) {
  struct Arguments {
    std::filesystem::path ledger;
    bool json = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App& app = *line.app.add_subcommand("status", "Show where a run stands");
  app.add_option("--ledger", arguments->ledger, "the ledger's file, or a run's folder")->required()->type_name("PATH");
  app.add_flag("--json", arguments->json, "print JSON");
  app.footer(kExample);
  app.callback([&line, arguments] {
    line.action = [&line, arguments] { return run(arguments->ledger, arguments->json, line.console); };
  });
}

}  // namespace draftflow::cli
