// SPDX-License-Identifier: Apache-2.0
//
// draftflow train: one trainer.
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
#include "cli/store_command.h"

namespace draftflow::cli {
namespace {

struct TrainArguments {
  TrainOptions options;
  std::filesystem::path metrics;
  bool json = false;
};

constexpr const char* kExample =
    "Example:\n"
    "  draftflow train --target examples/target --ledger out/ledger.sqlite3 --store out/store/features --out out/train\n"
    "Killed or stopped, it can be run again and goes on from its last checkpoint.";

int run(TrainArguments arguments, const Console& console) {
  arguments.options.secret = take_secret("");  // before there are threads
  const Models& models = load_models();
  std::optional<MetricsWriter> metrics;
  if (!arguments.metrics.empty()) metrics.emplace(arguments.metrics);
  SingleProgress progress(console.err, console.err_is_terminal, "train", "steps");
  const auto on_step = [&](const TrainProgress& now) {
    progress.show(now.step, now.total_steps, fmt::format("loss {:.4f}", now.loss_total));
    if (!metrics) return;
    Json record = to_json(now);
    record["libtorch"] = models.libtorch_version;
    metrics->append(record);
  };
  const TrainProgress result = models.train(arguments.options, on_step, stop_flag());
  progress.finish();
  if (arguments.json) {
    console.out << to_json(result).dump() << "\n";
  } else {
    const std::string loss = !result.loss.empty() ? fmt::format("last loss {:.4f}", result.loss_total)
                             : stop_flag()        ? "before a step of this start was made"
                                                  : "no step was left to train";
    if (result.lost > 0) console.out << fmt::format("{} samples were lost with their bytes, as accepted\n", result.lost);
    console.out << fmt::format("{} {} steps, {} samples, {} tokens; {} samples failed; {}; {}\n",
                               stop_flag() ? "stopped after" : "trained", result.step, result.samples, result.tokens,
                               result.failed, loss, (arguments.options.out / (stop_flag() ? "checkpoints" : "draft")).string());
  }
  return stop_flag() ? kInterruptedExitCode : 0;
}

}  // namespace

void add_train_command(CommandLine& line) {
  auto arguments = std::make_shared<TrainArguments>();
  CLI::App& app = *line.app.add_subcommand("train", "Train an EAGLE-3 draft on the samples of a ledger");
  add_fields(app, train_fields(arguments->options));
  app.add_flag("--accept-loss", arguments->options.accept_loss,
               "resume from a checkpoint although samples that it lacks are freed; they are dropped, by name");
  TrainOptions& o = arguments->options;
  app.add_option("--rank", o.rank, "which of --ranks this process is, from 0")->capture_default_str()->type_name("R");
  app.add_option("--launch", o.launch, "a name that the ranks of one start share, never used again")->type_name("NAME");
  app.add_option("--rendezvous", o.rendezvous, "where ranks meet: file:///new/file on one host, or tcp://host:port of rank 0")
      ->type_name("URL");
  app.add_option("--metrics", arguments->metrics, "append a JSON line a step to this file (docs/formats/metrics.md)");
  app.add_flag("--json", arguments->json, "print the result as JSON");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli
