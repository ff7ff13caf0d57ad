// SPDX-License-Identifier: Apache-2.0
//
// draftflow bench ledger: the ledger beside the same rows written and read by its engine alone.
#include "cli/bench_ledger.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <ostream>

#include "cli/app.h"
#include "cli/stop.h"
#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow bench ledger --quick\n"
    "  draftflow bench ledger --rows sqlite_commit_256,sqlite_lease_ack_256 --behind 10000000 --dir /data --json\n"
    "\n"
    "Value and limit are medians, measured in turns; the limit is what the engine reaches alone with the same rows in tables\n"
    "of its own. The folder it works in is removed. --behind sets how many finished samples are there before: a million take\n"
    "some 90 s and 2 GB, twice. The PostgreSQL row starts a server of its own, and is left out where none is installed.";

// In the order in which they are shown.
struct RowsOfFile {
  std::vector<std::string> names;
  std::vector<BenchRow> (*measure)(LedgerBench& bench);
};
const std::vector<RowsOfFile> kRows{
    {{"sqlite_commit_256", "sqlite_commit_256_random", "sqlite_lease_ack_256", "sqlite_lease_behind_1m", "window_256_8_ms"},
     sqlite_ledger_rows},
    {{"reconcile_1m_s", "reconcile_1m_rss_mib"}, reconcile_ledger_rows},
    {{"memory_lease_ack_1m"}, memory_ledger_rows},
    {{"postgres_lease_ack_256_4"}, postgres_ledger_rows}};

std::vector<std::string> row_names() {
  std::vector<std::string> names;
  for (const RowsOfFile& rows : kRows) names.insert(names.end(), rows.names.begin(), rows.names.end());
  return names;
}

}  // namespace

std::vector<SampleRef> LedgerBench::refs(std::int64_t count, bool random) {
  std::vector<SampleRef> made;
  constexpr const char* kNames[] = {"input_ids", "loss_mask", "hidden_state", "aux_hidden_state"};
  std::vector<FeatureSpec> specs;
  for (const char* const name : kNames) specs.push_back({.name = name, .shape = {1, 192, 4096}, .dtype = DType::kBFloat16});
  for (std::int64_t i = 0; i < count; ++i) {
    const std::string id = random ? random_hex128() : fmt::format("run:{:08}", next_++);
    SampleRef ref{.sample_id = SampleId(id), .run_id = RunId("run")};
    ref.feature_store_uri = "disagg://store/" + id;
    ref.feature_specs = specs;
    for (const char* const name : kNames) ref.feature_keys.emplace_back(name, id + "/" + name);
    ref.source_task_id = id;
    ref.set_metadata("source", fmt::format("\"train.jsonl:{}\"", i));
    ref.generation = 1;
    ref.incarnation = "0123456789abcdef0123456789abcdef";
    ref.num_tokens = 192;
    ref.estimated_bytes = 4ULL * 192 * 4096 * 2;
    made.push_back(std::move(ref));
  }
  return made;
}

void LedgerBench::fill(std::int64_t count, bool random, const Use& use) {
  constexpr std::int64_t kStep = 4096;  // what one lease may give
  const auto begin = std::chrono::steady_clock::now();
  for (std::int64_t done = 0; done < count;) {
    check_bench_stop();
    const auto batch = refs(std::min(kStep, count - done), random);
    use(batch);
    done += static_cast<std::int64_t>(batch.size());
    if (done % (1 << 18) >= kStep && done < count) continue;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    progress_ << fmt::format("samples behind: {} of {} after {:.0f} s", done, count, seconds) << std::endl;
  }
}

void LedgerBench::remove_files(const std::string& prefix) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    if (entry.path().filename().string().starts_with(prefix)) files.push_back(entry.path());
  }
  for (const auto& path : files) std::filesystem::remove(path);
}

const GroupId& bench_queue() {
  static const GroupId queue("queue");
  return queue;
}

void finish_batch(Ledger& ledger, const std::vector<SampleRef>& batch) {
  const int size = static_cast<int>(batch.size());
  ledger.commit_samples(batch, {});
  ledger.ack_refs(bench_queue(), ledger.lease_refs({.group = bench_queue(), .max_refs = size}).leases);
  std::vector<SampleId> gone;
  for (const SampleRef& ref : ledger.freeable(size)) gone.push_back(ref.sample_id);
  ledger.freed(gone);
  if (gone.size() != batch.size()) throw std::logic_error("bench: a batch is not finished");
}

namespace {

struct Arguments {
  std::filesystem::path dir = ".";
  std::vector<std::string> rows;
  std::int64_t behind = LedgerSizes().behind;
  bool json = false, quick = false, tiny = false;
};

LedgerSizes sizes_of(const Arguments& arguments) {
  if (arguments.behind < 0) throw InvalidArgument(fmt::format("--behind is {}: 0 or more is allowed", arguments.behind));
  if (arguments.tiny) {
    return {.behind = 256,
            .few_behind = 8,
            .many_behind = 300,
            .reconciled = 1024,
            .repetitions = 2,
            .batches = 2,
            .windows = 2,
            .single_leases = 3,
            .client_repetitions = 2,
            .client_batches = 2};
  }
  if (arguments.quick) return {.behind = 20'000, .many_behind = 20'000, .reconciled = 50'000, .client_repetitions = 3};
  return {.behind = arguments.behind};
}

int run(const Arguments& arguments, const Console& console) {
  const std::vector<std::string> known = row_names();
  for (const std::string& row : arguments.rows) {
    if (std::find(known.begin(), known.end(), row) != known.end()) continue;
    throw InvalidArgument(fmt::format("--rows: '{}' is no row; there are {}", printable(row), fmt::join(known, ", ")));
  }
  const auto& names = arguments.rows.empty() ? known : arguments.rows;
  const LedgerSizes sizes = sizes_of(arguments);
  try {
    Workplace place({arguments.dir});
    LedgerBench bench(place.folder(0), sizes, {names.begin(), names.end()}, console.err);
    std::vector<BenchRow> rows;
    for (const RowsOfFile& some : kRows) {
      for (BenchRow& row : some.measure(bench)) rows.push_back(std::move(row));
    }
    place.remove();
    console.out << (arguments.json ? bench_json(rows) : bench_table(rows));
    return 0;
  } catch (const BenchStopped&) {
    console.err << "draftflow bench: interrupted; what was made is removed" << std::endl;
    return kInterruptedExitCode;
  }
}

}  // namespace

void add_bench_ledger_command(CLI::App& bench, CommandLine& line) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App& app = *bench.add_subcommand("ledger", "The ledger beside its engine alone");
  app.add_option("--dir", arguments->dir, "an existing folder on the file system to measure")
      ->type_name("PATH")
      ->capture_default_str();
  app.add_option("--rows", arguments->rows, "only these rows, separated by commas")->delimiter(',')->type_name("NAME,...");
  app.add_option("--behind", arguments->behind, "finished samples that are there before SQLite's rows are measured")
      ->capture_default_str();
  app.add_flag("--quick", arguments->quick, "20,000 samples behind, 50,000 to reconcile");
  app.add_flag("--json", arguments->json, "print JSON");
  app.add_flag("--tiny", arguments->tiny, "sizes for tests; the numbers say nothing")->group("");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli
