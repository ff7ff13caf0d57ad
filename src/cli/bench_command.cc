// SPDX-License-Identifier: Apache-2.0
//
// draftflow bench: the group, and store: the feature store beside the raw system calls.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/vfs.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <optional>
#include <ostream>

#include "cli/app.h"
#include "cli/bench.h"
#include "cli/stop.h"
#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow bench store --quick\n"
    "  draftflow bench store --rows put_4kib,get_4kib --dir /data --json\n"
    "\n"
    "Value and limit are medians, measured in turns; the limit is what the raw system calls reach. The folders it works in\n"
    "are removed, also after an interrupt. The rows with a million resident samples take minutes, 2 million inodes and 9 GB.";

const std::vector<std::string> kRowNames{
    "put_64mib_ext4",  "put_64mib_tmpfs",    "get_clone_64mib",       "get_zero_copy_64mib_us",
    "put_4kib",        "get_4kib",           "release_4kib",          "put_1m_resident",
    "get_1m_resident", "remove_1m_resident", "health_1m_resident_us", "rss_1m_mib",
    "pipe_64mib"};

struct Arguments {
  std::filesystem::path dir = ".", tmpfs = "/dev/shm";
  std::vector<std::string> rows;
  bool json = false, quick = false, tiny = false;
};

BenchSizes sizes_of(const Arguments& arguments) {
  BenchSizes sizes;
  if (arguments.quick) sizes.many_resident = 20'000;
  if (!arguments.tiny) return sizes;
  return {.large_bytes = (1 << 20) + 6,
          .medium_bytes = 4096,
          .repetitions = 2,
          .zero_copies = 2,
          .small_samples = 10,
          .few_resident = 20,
          .many_resident = 100,
          .resident_samples = 5,
          .pipe_samples = 6,
          .pipe_repetitions = 1};
}

std::set<std::string> wanted_rows(const Arguments& arguments) {
  for (const std::string& row : arguments.rows) {
    if (std::find(kRowNames.begin(), kRowNames.end(), row) != kRowNames.end()) continue;
    throw InvalidArgument(fmt::format("--rows: '{}' is no row; there are {}", printable(row), fmt::join(kRowNames, ", ")));
  }
  const auto& rows = arguments.rows.empty() ? kRowNames : arguments.rows;
  return {rows.begin(), rows.end()};
}

bool any_of(const Bench& bench, std::initializer_list<const char*> rows) {
  return std::any_of(rows.begin(), rows.end(), [&](const char* row) { return bench.wants(row); });
}

// What the folder is on, where that is not what the row's name says.
std::string other_file_system(const std::filesystem::path& folder, long expected) {
  struct statfs status {};
  if (::statfs(folder.c_str(), &status) != 0 || status.f_type == expected) return "";
  return fmt::format("not on the file system of the name, but on type {:#x}", static_cast<unsigned long>(status.f_type));
}

std::vector<BenchRow> measure(const Bench& bench) {
  std::optional<RssProbe> few_rss, many_rss;
  if (bench.wants("rss_1m_mib")) {
    few_rss.emplace();
    many_rss.emplace();
  }
  std::vector<BenchRow> rows;
  const auto append = [&rows](std::vector<BenchRow> more) { rows.insert(rows.end(), more.begin(), more.end()); };
  if (any_of(bench, {"put_64mib_ext4", "put_64mib_tmpfs", "get_clone_64mib", "get_zero_copy_64mib_us"})) {
    append(large_rows(bench));
  }
  if (any_of(bench, {"put_4kib", "get_4kib", "release_4kib"})) append(small_rows(bench));
  if (any_of(bench, {"pipe_64mib"})) append(pipe_rows(bench));
  if (any_of(bench, {"put_1m_resident", "get_1m_resident", "remove_1m_resident", "health_1m_resident_us", "rss_1m_mib"})) {
    append(resident_rows(bench, few_rss ? &*few_rss : nullptr, many_rss ? &*many_rss : nullptr));
  }
  for (BenchRow& row : rows) {
    constexpr long kExt4 = 0xEF53, kTmpfs = 0x01021994;
    if (row.name == "put_64mib_ext4") row.note = other_file_system(bench.disk, kExt4);
    if (row.name == "put_64mib_tmpfs") row.note = other_file_system(bench.memory, kTmpfs);
  }
  return rows;
}

int run(const Arguments& arguments, const Console& console) {
  const std::set<std::string> wanted = wanted_rows(arguments);
  std::vector<std::filesystem::path> parents{arguments.dir};
  if (wanted.contains("put_64mib_tmpfs")) parents.push_back(arguments.tmpfs);
  try {
    Workplace place(parents);
    const Bench bench{sizes_of(arguments), wanted, place.folder(0), place.folder(parents.size() - 1), console.err};
    const std::vector<BenchRow> rows = measure(bench);
    console.err << "removing what was made" << std::endl;
    place.remove();
    console.out << (arguments.json ? bench_json(rows) : bench_table(rows));
    return 0;
  } catch (const BenchStopped&) {
    console.err << "draftflow bench: interrupted; what was made is removed" << std::endl;
    return kInterruptedExitCode;
  }
}

}  // namespace

void add_bench_command(CommandLine& line) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App& bench = *line.app.add_subcommand("bench", "Measure draftflow on this machine, each row beside its raw limit");
  bench.require_subcommand(1);
  bench.footer(kExample);
  CLI::App& app = *bench.add_subcommand("store", "The feature store beside plain files and system calls");
  app.add_option("--dir", arguments->dir, "an existing folder on the file system to measure")
      ->type_name("PATH")
      ->capture_default_str();
  app.add_option("--tmpfs", arguments->tmpfs, "an existing folder on tmpfs")->type_name("PATH")->capture_default_str();
  app.add_option("--rows", arguments->rows, "only these rows, separated by commas")->delimiter(',')->type_name("NAME,...");
  app.add_flag("--quick", arguments->quick, "20,000 resident samples instead of a million");
  app.add_flag("--json", arguments->json, "print JSON");
  app.add_flag("--tiny", arguments->tiny, "sizes for tests; the numbers say nothing")->group("");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
  add_bench_ledger_command(bench, line);
  add_bench_python_command(bench, line);
}

}  // namespace draftflow::cli
