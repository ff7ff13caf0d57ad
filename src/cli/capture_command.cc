// SPDX-License-Identifier: Apache-2.0
//
// draftflow capture: one producer.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <ostream>

#include "cli/app.h"
#include "cli/inspect.h"
#include "cli/metrics.h"
#include "cli/models.h"
#include "cli/progress_bar.h"
#include "cli/stop.h"
#include "cli/store_command.h"
#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {
namespace {

struct CaptureArguments {
  CaptureOptions options;
  std::filesystem::path metrics;
  bool json = false;
};

constexpr const char* kExample =
    "Example:\n"
    "  draftflow capture --target examples/target --prompts examples/prompts/train.jsonl \\\n"
    "                    --ledger out/ledger.sqlite3 --store out/store/features\n"
    "Run it several times at once for several producers; killed, it can be run again and goes on.";

int run(CaptureArguments arguments, const Console& console) {
  arguments.options.secret = take_secret("");  // before there are threads
  const Models& models = load_models();
  std::optional<MetricsWriter> metrics;
  if (!arguments.metrics.empty()) metrics.emplace(arguments.metrics);
  SingleProgress progress(console.err, console.err_is_terminal, "capture", "prompts");
  double last = 0;
  const auto on_progress = [&](const CaptureProgress& now) {
    progress.show(now.done, now.total, now.paused ? "paused: " + now.pause_reason : human_bytes(now.bytes));
    if (metrics && steady_seconds() - last >= 1) {
      last = steady_seconds();
      metrics->append(to_json(now));
    }
  };
  const CaptureProgress result = models.capture(arguments.options, on_progress, stop_flag());
  if (metrics) metrics->append(to_json(result));
  progress.finish();
  if (arguments.json) {
    console.out << to_json(result).dump() << "\n";
  } else {
    console.out << fmt::format("captured {} samples, {} tokens, {}; {} prompts failed\n", result.captured, result.tokens,
                               human_bytes(result.bytes), result.failed);
  }
  if (stop_flag()) return kInterruptedExitCode;
  if (result.failed > 0) show_failed_prompts(arguments.options.ledger, console);
  // Nothing but failures is a wrong target or a wrong file, not a result.
  return result.failed > 0 && result.captured == 0 && result.done == result.failed ? exit_code(ErrorKind::kCorrupt) : 0;
}

}  // namespace

void show_failed_prompts(const std::filesystem::path& ledger, const Console& console) {
  constexpr int kShown = 5;
  const auto opened = open_ledger_read_only(ledger.string());
  const auto failed = opened->failed_prompts(kShown);
  for (const auto& [task, reason] : failed) console.err << fmt::format("failed: {}\n", printable(reason, 400));
  const std::int64_t more = opened->status().prompts_failed - static_cast<std::int64_t>(failed.size());
  if (more > 0) console.err << fmt::format("failed: and {} more\n", more);
}

void add_capture_command(CommandLine& line) {
  auto arguments = std::make_shared<CaptureArguments>();
  CLI::App& app = *line.app.add_subcommand("capture", "Capture a target's hidden states of prompts into a feature store");
  add_fields(app, capture_fields(arguments->options));
  app.add_option("--metrics", arguments->metrics, "append a JSON line a second to this file (docs/formats/metrics.md)");
  app.add_flag("--json", arguments->json, "print the result as JSON");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli
