// SPDX-License-Identifier: Apache-2.0
//
// draftflow run: the whole pipeline from one file.
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/app.h"
#include "cli/supervisor.h"
#include "draftflow/base/error.h"

namespace draftflow::cli {
namespace {

struct RunArguments {
  std::filesystem::path file, out;
  SupervisorOptions options;
};

constexpr const char* kExample =
    "Example:\n"
    "  draftflow run examples/demo.yaml\n"
    "  draftflow run examples/demo.yaml --out /scratch/demo --fresh\n"
    "Starts capture workers, a trainer and the evaluations as separate processes; Ctrl-C ends them cleanly, and the same\n"
    "command goes on where it was.";

int run(const RunArguments& arguments, const Console& console) {
  RunConfig config = load_run_config(arguments.file);
  if (!arguments.out.empty()) config.out = std::filesystem::absolute(arguments.out).lexically_normal();
  if (config.out.empty()) {
    throw InvalidArgument(arguments.file.string() + ": 'out' is missing: name the run's folder there or with --out DIR");
  }
  return Supervisor(std::move(config), arguments.options, console).run();
}

}  // namespace

void add_run_command(CommandLine& line) {
  auto arguments = std::make_shared<RunArguments>();
  CLI::App& app = *line.app.add_subcommand("run", "Run the whole pipeline from a configuration file");
  app.add_option("file", arguments->file, "the configuration (docs/configuration.md)")->required()->type_name("FILE.yaml");
  app.add_option("--out", arguments->out, "the run's folder, instead of the file's 'out'")->type_name("DIR");
  app.add_flag("--fresh", arguments->options.fresh, "remove the files of the run in that folder first and start over");
  app.add_flag("--json", arguments->options.json, "print summary.json instead of the table");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli
