// SPDX-License-Identifier: Apache-2.0
//
// draftflow bench ledger: the ledger beside the same rows written and read by its engine alone.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sqlite3.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <barrier>
#include <fstream>
#include <memory>
#include <ostream>
#include <thread>

#include "cli/app.h"
#include "cli/bench.h"
#include "cli/stop.h"
#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/base/text.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow bench ledger --quick\n"
    "  draftflow bench ledger --rows sqlite_commit_256 --behind 10000000 --dir /data --json\n"
    "\n"
    "Value and limit are medians, measured in turns; the limit is what SQLite reaches with the same rows in tables of its own. "
    "The\n"
    "folder it works in is removed. A million samples take a minute and 2 GB; --behind sets how many are there before.";

const std::vector<std::string> kRowNames{"sqlite_commit_256", "sqlite_commit_256_random", "window_256_8_ms", "reconcile_1m_s",
                                         "memory_lease_ack_1m"};
constexpr int kBatch = 256, kRanks = 8;

struct Sizes {
  std::int64_t behind = 1'000'000, reconciled = 1'000'000;
  int repetitions = 7, batches = 40, windows = 12;
};

// The engine alone, with the ledger's settings.
class RawSqlite {
 public:
  explicit RawSqlite(const std::filesystem::path& file) {
    sqlite3* handle = nullptr;
    sqlite3_open_v2(file.c_str(), &handle, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
    handle_.reset(handle);
    run("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY");
    run("CREATE TABLE IF NOT EXISTS raw(row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);"
        "CREATE TABLE IF NOT EXISTS raw_ref(row INTEGER PRIMARY KEY, json TEXT NOT NULL)");
    insert_ = prepare("INSERT INTO raw(id) VALUES (?1)");
    insert_ref_ = prepare("INSERT INTO raw_ref(json) VALUES (?1)");
    select_ = prepare("SELECT json FROM raw_ref WHERE row >= ?1 AND row < ?2 AND row % ?3 = ?4");
  }

  using Rows = std::vector<std::pair<std::string, std::string>>;  // id, JSON
  static Rows rows_of(const std::vector<SampleRef>& refs) {
    Rows rows;
    for (const SampleRef& ref : refs) rows.emplace_back(ref.sample_id.str(), sample_ref_to_json(ref));
    return rows;
  }

  void commit(const Rows& rows) {
    run("BEGIN IMMEDIATE");
    for (const auto& [id, json] : rows) {
      sqlite3_bind_text(insert_.get(), 1, id.data(), static_cast<int>(id.size()), SQLITE_STATIC);
      step(insert_.get());
      sqlite3_bind_text(insert_ref_.get(), 1, json.data(), static_cast<int>(json.size()), SQLITE_STATIC);
      step(insert_ref_.get());
    }
    run("COMMIT");
  }

  std::size_t read_share(std::int64_t first, std::int64_t end, int width, int rank) {
    std::size_t bytes = 0;
    const std::int64_t values[] = {first, end, width, rank};
    for (int i = 0; i < 4; ++i) sqlite3_bind_int64(select_.get(), i + 1, values[i]);
    while (sqlite3_step(select_.get()) == SQLITE_ROW) bytes += static_cast<std::size_t>(sqlite3_column_bytes(select_.get(), 0));
    sqlite3_reset(select_.get());
    return bytes;
  }

  void scan() { run("SELECT SUM(LENGTH(id)) FROM raw"); }

 private:
  struct Close {
    void operator()(sqlite3* handle) const { sqlite3_close_v2(handle); }
  };
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
  };
  using Prepared = std::unique_ptr<sqlite3_stmt, Finalize>;

  void check(int code) {
    if (code != SQLITE_OK && code != SQLITE_DONE && code != SQLITE_ROW) {
      throw Unavailable(fmt::format("bench: SQLite alone: {}", sqlite3_errmsg(handle_.get())));
    }
  }
  void run(const char* sql) { check(sqlite3_exec(handle_.get(), sql, nullptr, nullptr, nullptr)); }
  Prepared prepare(const char* sql) {
    sqlite3_stmt* made = nullptr;
    check(sqlite3_prepare_v2(handle_.get(), sql, -1, &made, nullptr));
    return Prepared(made);
  }
  void step(sqlite3_stmt* statement) {
    check(sqlite3_step(statement));
    sqlite3_reset(statement);
  }

  std::unique_ptr<sqlite3, Close> handle_;
  Prepared insert_, insert_ref_, select_;
};

class LedgerBench {
 public:
  LedgerBench(std::filesystem::path folder, const Sizes& sizes, std::set<std::string> wanted, std::ostream& progress)
      : folder_(std::move(folder)), sizes_(sizes), wanted_(std::move(wanted)), progress_(progress) {}

  std::vector<BenchRow> measure() {
    std::vector<BenchRow> rows;
    if (wants("sqlite_commit_256")) rows.push_back(commit_row("sqlite_commit_256", /*random=*/false));
    if (wants("sqlite_commit_256_random")) rows.push_back(commit_row("sqlite_commit_256_random", /*random=*/true));
    if (wants("window_256_8_ms")) rows.push_back(window_row());
    if (wants("reconcile_1m_s")) rows.push_back(reconcile_row());
    if (wants("memory_lease_ack_1m")) rows.push_back(memory_row());
    return rows;
  }

 private:
  bool wants(const std::string& row) const { return wanted_.contains(row); }

  std::vector<SampleRef> refs(std::int64_t count, bool random) {
    std::vector<SampleRef> made;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::string id = random ? random_hex128() : fmt::format("run:{:08}", next_++);
      SampleRef ref{.sample_id = SampleId(id), .run_id = RunId("run")};
      ref.feature_store_uri = "disagg://store/" + id;
      for (const char* const name : {"input_ids", "loss_mask", "hidden_state", "aux_hidden_state"}) {
        ref.feature_specs.push_back({.name = name, .shape = {1, 192, 4096}, .dtype = DType::kBFloat16});
        ref.feature_keys.emplace_back(name, id + "/" + name);
      }
      ref.generation = 1;
      ref.incarnation = "0123456789abcdef0123456789abcdef";
      ref.num_tokens = 192;
      ref.estimated_bytes = 4ULL * 192 * 4096 * 2;
      made.push_back(std::move(ref));
    }
    return made;
  }

  void fill(Ledger& ledger, std::int64_t count, bool random, RawSqlite* raw) {
    for (std::int64_t done = 0; done < count;) {
      check_bench_stop();
      const auto batch = refs(std::min<std::int64_t>(4096, count - done), random);
      ledger.commit_samples(batch, {});
      if (raw != nullptr) raw->commit(RawSqlite::rows_of(batch));
      done += static_cast<std::int64_t>(batch.size());
      if (done % (1 << 18) < 4096) progress_ << "samples behind: " << done << " of " << count << std::endl;
    }
  }

  BenchRow commit_row(const std::string& name, bool random) {
    const auto ledger = open_sqlite_ledger(folder_ / (name + ".sqlite3"));
    RawSqlite raw(folder_ / (name + ".raw"));
    fill(*ledger, sizes_.behind, random, &raw);
    std::vector<std::vector<SampleRef>> batches;
    const auto make = [&] {
      batches.clear();
      for (int i = 0; i < sizes_.batches; ++i) batches.push_back(refs(kBatch, random));
    };
    const auto medians = alternate(
        sizes_.repetitions,
        [&] {
          make();
          return std::vector{seconds_of([&] {
            for (const auto& batch : batches) ledger->commit_samples(batch, {});
          })};
        },
        [&] {
          make();
          std::vector<RawSqlite::Rows> rows;
          for (const auto& batch : batches) rows.push_back(RawSqlite::rows_of(batch));
          return std::vector{seconds_of([&] {
            for (const auto& batch : rows) raw.commit(batch);
          })};
        });
    BenchRow row = rate_row(name, sizes_.batches * kBatch, "ref/s", medians[0], value_at_least(100'000));
    row.note = fmt::format("{} samples behind", sizes_.behind);
    return row;
  }

  // What the slowest of the ranks waits that ask for a new window all at once.
  BenchRow window_row() {
    const GroupId group("train");
    const auto file = folder_ / "window.sqlite3";
    const auto ledger = open_sqlite_ledger(file);
    RawSqlite raw(folder_ / "window.raw");
    ledger->declare_group({.group = group, .window = kBatch});
    fill(*ledger, std::int64_t{kBatch} * (sizes_.windows + 1), false, &raw);
    const TimelineInfo timeline = ledger->open_timeline({.group = group, .width = kRanks});
    std::vector<double> values, limits;
    const auto slowest = [&](const auto& ask, const auto& open) {
      std::vector<double> seconds;
      std::vector<std::vector<double>> by_rank(kRanks);
      std::barrier together(kRanks);
      std::vector<std::thread> threads;
      for (int rank = 0; rank < kRanks; ++rank) {
        threads.emplace_back([&, rank] {
          auto mine = open();
          for (int window = 0; window < sizes_.windows; ++window) {
            together.arrive_and_wait();
            by_rank[static_cast<std::size_t>(rank)].push_back(seconds_of([&] { ask(*mine, window, rank); }));
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
      for (int window = 1; window < sizes_.windows; ++window) {
        double most = 0;
        for (const auto& rank : by_rank) most = std::max(most, rank[static_cast<std::size_t>(window)]);
        seconds.push_back(most);
      }
      return median_of(seconds);
    };
    BenchMedians medians;
    medians.value =
        slowest([&](Ledger& mine, int window,
                    int rank) { mine.read_window(group, timeline.number, window, {.rank = rank, .width = kRanks}); },
                [&] { return open_sqlite_ledger(file); });
    medians.limit = slowest(
        [&](RawSqlite& mine, int window, int rank) {
          mine.read_share(std::int64_t{window} * kBatch, std::int64_t{window + 1} * kBatch, kRanks, rank);
        },
        [&] { return std::make_unique<RawSqlite>(folder_ / "window.raw"); });
    return {"window_256_8_ms",   1e3 * medians.value, "ms",
            1e3 * medians.limit, value_at_most(10),   "the first rank deals; the limit only reads"};
  }

  static double rss_mib() {
    std::ifstream file("/proc/self/statm");
    double pages = 0, resident = 0;
    file >> pages >> resident;
    return resident * 4096 / (1 << 20);
  }

  // A trainer that had trained everything and saved nothing: all of it is taken back.
  BenchRow reconcile_row() {
    const GroupId group("train");
    const auto ledger = open_sqlite_ledger(folder_ / "reconcile.sqlite3");
    RawSqlite raw(folder_ / "reconcile.raw");
    ledger->declare_group({.group = group, .window = kBatch});
    fill(*ledger, sizes_.reconciled, false, &raw);
    const std::int64_t windows = sizes_.reconciled / kBatch;
    std::vector<double> seconds, limits;
    const double before = rss_mib();
    double grown = 0;
    for (int i = 0; i < 3; ++i) {
      const TimelineInfo timeline = ledger->open_timeline({.group = group});
      for (std::int64_t window = 0; window < windows; ++window) {
        check_bench_stop();
        if (i == 0) ledger->read_window(group, timeline.number, window);
        ledger->trained(group, timeline.number, window, window + 1, {});
      }
      seconds.push_back(seconds_of([&] { ledger->open_timeline({.group = group}); }));
      limits.push_back(seconds_of([&] { raw.scan(); }));
      grown = std::max(grown, rss_mib() - before);
    }
    return {"reconcile_1m_s",
            median_of(seconds),
            "s",
            median_of(limits),
            value_at_most(10),
            fmt::format("{} samples, {:.0f} MiB more memory; the limit scans as many rows", sizes_.reconciled, grown)};
  }

  // One shard in eight, sixteen refs a call, while many others wait; the limit is the same while 1,000 do.
  BenchRow memory_row() {
    constexpr int kShards = 8, kRefs = 16;
    const GroupId group("queue");
    const double before = rss_mib();
    const int calls = 25 * sizes_.batches;
    int shard = 0;
    const auto filled = [&](std::int64_t pending) {
      auto ledger = open_memory_ledger(make_memory_ledger());
      ledger->declare_group({.group = group, .kind = GroupKind::kQueue});
      fill(*ledger, pending, false, nullptr);
      return ledger;
    };
    const auto repetition = [&](Ledger& ledger) {
      double seconds = 0;
      for (int call = 0; call < calls; ++call) {
        std::int64_t given = 0;
        seconds += seconds_of([&] {
          const QueueAnswer answer =
              ledger.lease_refs({.group = group, .max_refs = kRefs, .partition = Partition{shard++ % kShards, kShards}});
          ledger.ack_refs(group, answer.leases);
          given = static_cast<std::int64_t>(answer.leases.size());
        });
        ledger.commit_samples(refs(given, false), {});  // as many wait as before
      }
      return std::vector{seconds};
    };
    const auto many = filled(sizes_.behind);
    const double grown = rss_mib() - before;
    const auto few = filled(std::min<std::int64_t>(sizes_.behind, 1000));
    const auto medians = alternate(
        sizes_.repetitions, [&] { return repetition(*many); }, [&] { return repetition(*few); });
    BenchRow row = rate_row("memory_lease_ack_1m", calls * kRefs, "ref/s", medians[0], ratio_at_least(0.4));
    row.note = fmt::format("{} pending, {:.0f} MiB; the limit at 1000", sizes_.behind, grown);
    return row;
  }

  const std::filesystem::path folder_;
  const Sizes sizes_;
  const std::set<std::string> wanted_;
  std::ostream& progress_;
  std::int64_t next_ = 0;
};

struct Arguments {
  std::filesystem::path dir = ".";
  std::vector<std::string> rows;
  std::int64_t behind = 1'000'000;
  bool json = false, quick = false, tiny = false;
};

int run(const Arguments& arguments, const Console& console) {
  for (const std::string& row : arguments.rows) {
    if (std::find(kRowNames.begin(), kRowNames.end(), row) != kRowNames.end()) continue;
    throw InvalidArgument(fmt::format("--rows: '{}' is no row; there are {}", printable(row), fmt::join(kRowNames, ", ")));
  }
  const auto& names = arguments.rows.empty() ? kRowNames : arguments.rows;
  Sizes sizes{.behind = arguments.behind};
  if (arguments.quick) sizes = {.behind = 20'000, .reconciled = 50'000};
  if (arguments.tiny) sizes = {.behind = 256, .reconciled = 1024, .repetitions = 2, .batches = 2, .windows = 2};
  try {
    Workplace place({arguments.dir});
    LedgerBench bench(place.folder(0), sizes, {names.begin(), names.end()}, console.err);
    const std::vector<BenchRow> rows = bench.measure();
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
  app.add_option("--behind", arguments->behind, "samples that are there before a commit is measured")->capture_default_str();
  app.add_flag("--quick", arguments->quick, "20,000 samples behind, 50,000 to reconcile");
  app.add_flag("--json", arguments->json, "print JSON");
  app.add_flag("--tiny", arguments->tiny, "sizes for tests; the numbers say nothing")->group("");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli
