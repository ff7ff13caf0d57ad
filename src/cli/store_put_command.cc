// SPDX-License-Identifier: Apache-2.0
//
// draftflow store put, get: feature files into a store and out of it.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <ostream>

#include "cli/metrics.h"
#include "cli/stop.h"
#include "cli/store_command.h"
#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/formats/safetensors.h"

namespace draftflow::cli {
namespace {

constexpr const char* kPutExample =
    "Example:\n"
    "  draftflow store put out/store features/0000.ckpt --id sample-0\n"
    "  draftflow store put out/store features/0001.safetensors --id run:1 --run-id run > ref.json\n"
    "Prints the sample's ref, which is what a ledger commits. Putting an id again makes a new generation.";

constexpr const char* kGetExample =
    "Example:\n"
    "  draftflow store get out/store sample-0 --out sample-0.safetensors\n"
    "  draftflow store get out/store sample-0 --generation 3 --out old.safetensors --force --json\n"
    "Copies, checking every byte; consumes nothing. An id that begins with a dash goes after '--'.";

struct PutArguments {
  StorePath store;
  std::filesystem::path file;
  std::string id, run_id = "manual";
  bool json = false;
};

struct GetArguments {
  StorePath store;
  std::filesystem::path out;
  std::string id;
  std::optional<std::uint64_t> generation;
  bool force = false, json = false;
};

// Of an EAGLE-3 sample, [T]; of anything else not known.
std::int64_t token_count(const TensorMap& tensors) {
  const Tensor* ids = find_tensor(tensors, "input_ids");
  return ids != nullptr && ids->shape.size() == 1 ? ids->shape[0] : 0;
}

int run_put(const PutArguments& arguments, const Console& console) {
  const SampleId id(arguments.id);
  const PutMetadata metadata{.run_id = RunId(arguments.run_id)};
  const OpenedStore opened = open_store(arguments.store);
  const TensorMap tensors = load_feature_file(arguments.file);
  if (stop_flag()) return kInterruptedExitCode;
  PutMetadata told = metadata;
  told.num_tokens = token_count(tensors);
  console.out << sample_ref_to_json(opened.store->put(tensors, id, told)) << "\n";
  return 0;
}

void check_out(const GetArguments& arguments) {
  if (!arguments.out.string().ends_with(".safetensors")) {
    throw InvalidArgument(
        fmt::format("--out is '{}': a name that ends with .safetensors is needed, the format it is written in",
                    printable(arguments.out.string(), 4096)));
  }
  std::error_code ignored;
  if (arguments.force || !std::filesystem::exists(std::filesystem::symlink_status(arguments.out, ignored))) return;
  throw InvalidArgument(fmt::format("{} is there already and was left alone: choose another name, or --force to replace it",
                                    printable(arguments.out.string(), 4096)));
}

int run_get(const GetArguments& arguments, const Console& console) {
  check_out(arguments);
  const OpenedStore opened = open_store(arguments.store);
  const SampleRef ref = find_sample(opened, arguments.id, arguments.generation);
  const TensorMap tensors = opened.store->read(ref);
  if (stop_flag()) return kInterruptedExitCode;
  check_out(arguments);  // reading may have taken a while
  write_safetensors(arguments.out, tensors,
                    {{"store_id", opened.id.str()},
                     {"incarnation", ref.incarnation},
                     {"sample_id", ref.sample_id.str()},
                     {"generation", std::to_string(ref.generation)}});
  if (arguments.json) {
    console.out << json_line({{"out", json_text(arguments.out.string())},
                              {"sample_id", ref.sample_id.str()},
                              {"generation", ref.generation},
                              {"tensors", tensors.size()},
                              {"bytes", ref.estimated_bytes}});
  } else {
    console.out << fmt::format("wrote {}: sample '{}' generation {}, {} tensors, {}\n", printable(arguments.out.string(), 4096),
                               printable_id(ref.sample_id), ref.generation, tensors.size(), human_bytes(ref.estimated_bytes));
  }
  return 0;
}

void add_get(CLI::App& group, CommandLine& line) {
  auto arguments = std::make_shared<GetArguments>();
  CLI::App& app = *group.add_subcommand("get", "Copy a sample out of a store, checked, as a .safetensors file");
  add_store_path(app, arguments->store);
  app.add_option("id", arguments->id, "the sample's id")->required()->type_name("ID");
  app.add_option("--generation", arguments->generation, "which generation; default: the current one")
      ->type_name("N")
      ->check(CLI::PositiveNumber);
  app.add_option("--out", arguments->out, "file to write")->required()->type_name("FILE.safetensors");
  app.add_flag("--force", arguments->force, "replace the file if it is there");
  app.add_flag("--json", arguments->json, "print the result as JSON");
  app.footer(kGetExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run_get(*arguments, line.console); }; });
}

}  // namespace

void add_store_put_command(CLI::App& group, CommandLine& line) {
  auto arguments = std::make_shared<PutArguments>();
  CLI::App& app = *group.add_subcommand("put", "Put a feature file into a store");
  add_store_path(app, arguments->store);
  app.add_option("file", arguments->file, ".ckpt, .ckpt.gz or .safetensors")->required()->type_name("FILE");
  app.add_option("--id", arguments->id, "the sample's id")->required()->type_name("ID");
  app.add_option("--run-id", arguments->run_id, "the run that the ref names")->capture_default_str()->type_name("R");
  app.add_flag("--json", arguments->json, "no difference: the ref is JSON always");
  app.footer(kPutExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run_put(*arguments, line.console); }; });
  add_get(group, line);
}

}  // namespace draftflow::cli
