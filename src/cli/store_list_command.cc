// SPDX-License-Identifier: Apache-2.0
//
// draftflow store ls: what is in a store, a row at a time.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <ostream>

#include "cli/metrics.h"
#include "cli/stop.h"
#include "cli/store_command.h"
#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow store ls out/store\n"
    "  draftflow store ls out/store --limit 20\n"
    "  draftflow store ls out/store --json | jq -r 'select(.leases > 0) | .path'\n"
    "Rows come as they are found, in no order. Control characters of ids are escaped; --json has the ids as they are.";

struct ListArguments {
  StorePath store;
  std::uint64_t limit = 0;
  bool json = false;
};

// The id comes last: it alone may be long or hold spaces.
std::string plain_row(const ResidentSample& sample) {
  return fmt::format("{:>16}  {:>10}  {:>6}  {:>12}  {}\n", sample.generation, human_bytes(sample.bytes), sample.leases,
                     human_seconds(sample.age_s), printable_id(sample.sample_id));
}

Json to_json(const ResidentSample& sample) {
  return {{"sample_id", sample.sample_id.str()},
          {"generation", sample.generation},
          {"bytes", sample.bytes},
          {"leases", sample.leases},
          {"age_s", sample.age_s},
          {"path", json_text(sample.path.string())}};
}

int run(const ListArguments& arguments, const Console& console) {
  const OpenedStore opened = open_store(arguments.store);
  std::uint64_t rows = 0, damaged = 0;
  if (!arguments.json) {
    console.out << fmt::format("{:>16}  {:>10}  {:>6}  {:>12}  {}\n", "GENERATION", "BYTES", "LEASES", "AGE", "ID")
                << std::flush;
  }
  opened.store->for_each(
      [&](const ResidentSample& sample) {
        if (stop_flag()) return false;
        console.out << (arguments.json ? json_line(to_json(sample)) : plain_row(sample)) << std::flush;
        return console.out.good() && ++rows != arguments.limit;
      },
      [&](const std::filesystem::path& path, const std::string& why) {
        ++damaged;
        console.err << damage_text(path, why) << "\n";
      });
  if (stop_flag()) return kInterruptedExitCode;
  if (damaged == 0) return 0;
  throw Corrupt(
      fmt::format("{} of the files in {} could not be understood and are named above: 'draftflow store verify {}' reads "
                  "everything",
                  damaged, printable(arguments.store.path.string(), 4096), printable(arguments.store.path.string(), 4096)));
}

}  // namespace

void add_store_list_command(CLI::App& group, CommandLine& line) {
  auto arguments = std::make_shared<ListArguments>();
  CLI::App& app = *group.add_subcommand("ls", "List a store's samples, one row a generation");
  add_store_path(app, arguments->store);
  app.add_option("--limit", arguments->limit, "rows; 0: all")
      ->capture_default_str()
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--json", arguments->json, "print one JSON object a line");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli
