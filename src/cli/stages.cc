// SPDX-License-Identifier: Apache-2.0
#include "cli/stages.h"

#include <fmt/format.h>

#include "cli/records.h"

namespace draftflow::cli {
namespace {

ChildSpec spec_of(const std::string& command, const std::string& name, const Fields& fields, const RunFolder& folder) {
  ChildSpec spec{name, {command}, folder.log(name), {}};
  for (std::string& argument : to_arguments(fields)) spec.arguments.push_back(std::move(argument));
  return spec;
}

void add_metrics(ChildSpec& spec, const RunFolder& folder) {
  spec.arguments.push_back("--metrics=" + folder.metrics(spec.name).string());
}

CaptureOptions capture_options(const RunConfig& config, const RunFolder& folder) {
  CaptureOptions options = config.capture;
  options.ledger = ledger_of(config, folder);
  options.store = folder.store();
  return options;
}

}  // namespace

std::string ledger_of(const RunConfig& config, const RunFolder& folder) {
  return config.ledger.empty() ? folder.ledger().string() : config.ledger;
}

std::vector<ChildSpec> ingest_children(const RunConfig& config, const RunFolder& folder) {
  CaptureOptions options = capture_options(config, folder);
  options.ingest_only = true;
  return {spec_of("capture", "ingest", capture_fields(options), folder)};
}

std::vector<ChildSpec> train_children(const RunConfig& config, const RunFolder& folder, const std::string& launch) {
  std::vector<ChildSpec> specs;
  CaptureOptions capture = capture_options(config, folder);
  capture.prompts.clear();  // they are on the books
  for (int worker = 1; worker <= config.workers; ++worker) {
    specs.push_back(spec_of("capture", fmt::format("capture-{}", worker), capture_fields(capture), folder));
    specs.back().unit = specs.back().name;
    add_metrics(specs.back(), folder);
  }
  TrainOptions train = config.train;
  train.ledger = ledger_of(config, folder);
  train.store = folder.store();
  train.secret_file = capture.secret_file;
  train.out = folder.train();
  for (int rank = 0; rank < train.ranks; ++rank) {
    specs.push_back(spec_of("train", rank == 0 ? "train" : fmt::format("train-{}", rank), train_fields(train), folder));
    ChildSpec& spec = specs.back();
    spec.unit = kTrainUnit;
    if (rank == 0) add_metrics(spec, folder);
    if (train.ranks == 1) continue;
    spec.arguments.push_back(fmt::format("--rank={}", rank));
    spec.arguments.push_back("--launch=" + launch);
    spec.arguments.push_back("--rendezvous=file://" + std::filesystem::absolute(folder.rendezvous(launch)).string());
  }
  return specs;
}

std::vector<ChildSpec> eval_children(const RunConfig& config, const RunFolder& folder) {
  std::vector<ChildSpec> specs;
  for (const auto& [name, draft] : {std::pair{"untrained", "draft-untrained"}, std::pair{"trained", "draft"}}) {
    if (!load_eval(folder.eval(name)).is_null()) continue;
    EvalOptions options = config.eval;
    options.draft = folder.train() / draft;
    ChildSpec spec = spec_of("eval", std::string("eval-") + name, eval_fields(options), folder);
    spec.arguments.push_back("--json");
    spec.output = folder.eval(std::string(name) + ".partial");
    add_metrics(spec, folder);
    specs.push_back(std::move(spec));
  }
  return specs;
}

}  // namespace draftflow::cli
