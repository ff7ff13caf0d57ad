// SPDX-License-Identifier: Apache-2.0
//
// draftflow eval: what a draft is worth.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <ostream>

#include "cli/app.h"
#include "cli/metrics.h"
#include "cli/models.h"
#include "cli/progress_bar.h"
#include "cli/stop.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

struct EvalArguments {
  EvalOptions options;
  std::filesystem::path metrics;
  bool json = false;
};

constexpr const char* kExample =
    "Example:\n"
    "  draftflow eval --target examples/target --draft out/train/draft --prompts examples/prompts/held_out.jsonl\n"
    "Prints the mean number of tokens emitted per pass of the target (1.0 = no help) and whether the text is exactly the\n"
    "target's own greedy decoding.";

std::string table(const EvalReport& report) {
  std::string text = fmt::format("prompts              {} ({} skipped)\n", report.prompts, report.skipped) +
                     fmt::format("tokens               {} in {} target passes\n", report.tokens, report.target_passes) +
                     fmt::format("tokens per pass      {:.3f}\n", report.acceptance_length);
  for (std::size_t i = 0; i < report.acceptance.size(); ++i) {
    text += fmt::format("accepted at {:<8} {:.1f} %\n", i + 1, 100 * report.acceptance[i]);
  }
  text += fmt::format("lossless             {}\n", report.lossless
                                                       ? "yes: every token is the target's own"
                                                       : fmt::format("NO: {} prompts differ", report.mismatched_prompts));
  text += fmt::format("time                 plain {}, speculative {}\n", human_seconds(report.plain_seconds),
                      human_seconds(report.speculative_seconds));
  return text +
         fmt::format("example              {} | {}\n", printable(report.example_prompt), printable(report.example_text, 400));
}

int run(const EvalArguments& arguments, const Console& console) {
  const Models& models = load_models();
  std::optional<MetricsWriter> metrics;
  if (!arguments.metrics.empty()) metrics.emplace(arguments.metrics);
  SingleProgress progress(console.err, console.err_is_terminal, "eval", "prompts");
  const auto on_prompt = [&](std::int64_t done, std::int64_t total) {
    progress.show(done, total, "");
    if (metrics) metrics->append({{"done", done}, {"total", total}});
  };
  const EvalReport report = models.eval(arguments.options, on_prompt, stop_flag());
  progress.finish();
  if (stop_flag()) return kInterruptedExitCode;  // part of the prompts only: no result
  if (arguments.json) {
    Json record = to_json(report);
    record["libtorch"] = models.libtorch_version;
    console.out << record.dump() << "\n";
  } else {
    console.out << table(report);
  }
  return 0;
}

}  // namespace

void add_eval_command(CommandLine& line) {
  auto arguments = std::make_shared<EvalArguments>();
  CLI::App& app = *line.app.add_subcommand("eval", "Measure a draft by real speculative decoding of held-out prompts");
  add_fields(app, eval_fields(arguments->options));
  app.add_option("--metrics", arguments->metrics, "append a JSON line a prompt to this file (docs/formats/metrics.md)");
  app.add_flag("--json", arguments->json, "print the result as JSON");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli
