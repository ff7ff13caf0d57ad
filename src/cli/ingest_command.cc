// SPDX-License-Identifier: Apache-2.0
//
// draftflow ingest: a folder of feature files as an offline set.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <ostream>

#include "cli/app.h"
#include "cli/metrics.h"
#include "cli/progress_bar.h"
#include "cli/stop.h"
#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/loader/ingest.h"

namespace draftflow::cli {
namespace {

struct IngestArguments {
  IngestOptions options;
  bool json = false;
};

constexpr const char* kExample =
    "Example:\n"
    "  draftflow ingest features/ --ledger out/offline.sqlite3\n"
    "  draftflow train --target model/ --ledger out/offline.sqlite3 --out out/train --epochs 2\n"
    "Takes .ckpt, .ckpt.gz and .safetensors as they are; a file that does not fit is named and left out.";

Json to_json(const IngestReport& report) {
  Json failed = Json::array();
  for (const IngestFailure& failure : report.failed) {
    failed.push_back({{"file", json_text(failure.file.string())}, {"reason", json_text(failure.reason)}});
  }
  return {{"files", report.files},   {"committed", report.committed}, {"already", report.already},
          {"tokens", report.tokens}, {"bytes", report.bytes},         {"failed", failed}};
}

int run(const IngestArguments& arguments, const Console& console) {
  SingleProgress progress(console.err, console.err_is_terminal, "ingest", "files");
  const IngestReport report = run_ingest(
      arguments.options, [&](std::int64_t done, std::int64_t total) { progress.show(done, total, ""); }, stop_flag());
  progress.finish();
  for (const IngestFailure& failure : report.failed) {
    console.err << "left out " << printable(failure.file.string(), 1000) << ": " << printable(failure.reason, 1000) << "\n";
  }
  if (arguments.json) {
    console.out << to_json(report).dump() << "\n";
  } else {
    console.out << fmt::format("{} files: {} committed, {} already there, {} left out; {} tokens, {}\n", report.files,
                               report.committed, report.already, report.failed.size(), report.tokens,
                               human_bytes(report.bytes));
  }
  if (stop_flag()) return kInterruptedExitCode;
  if (report.committed + report.already == 0) {
    throw Corrupt(fmt::format("none of the {} feature files in {} could be used; the reasons are above", report.files,
                              arguments.options.folder.string()));
  }
  return 0;
}

}  // namespace

void add_ingest_command(CommandLine& line) {
  auto arguments = std::make_shared<IngestArguments>();
  CLI::App& app = *line.app.add_subcommand("ingest", "Put a folder of captured feature files on a ledger, as they are");
  app.add_option("folder", arguments->options.folder, "folder with the feature files")->required()->type_name("DIR");
  app.add_option("--ledger", arguments->options.ledger, "ledger to commit to (SQLite file)")->required()->type_name("PATH");
  app.add_option("--run-id", arguments->options.run_id, "id of the run")->capture_default_str();
  app.add_option("--strategy", arguments->options.strategy, "what the features are for")->capture_default_str();
  app.add_option("--limit", arguments->options.limit, "files; 0: all")->capture_default_str()->check(CLI::NonNegativeNumber);
  app.add_flag("--json", arguments->json, "print the result as JSON");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli
