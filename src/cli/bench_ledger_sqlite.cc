// SPDX-License-Identifier: Apache-2.0
//
// The rows of draftflow bench ledger that work on a SQLite file: commits, leases and acks with finished samples behind them,
// and windows.
#include <fmt/format.h>

#include <barrier>
#include <memory>
#include <thread>

#include "cli/bench_ledger.h"
#include "cli/bench_raw_sqlite.h"

namespace draftflow::cli {
namespace {

constexpr int kRanks = 8;

// A ledger and the engine alone with as much behind them.
struct Pair {
  std::unique_ptr<Ledger> ledger;
  std::unique_ptr<RawSqlite> raw;  // where it is needed
};

Pair finished(LedgerBench& bench, const std::string& name, std::int64_t behind, bool random, bool with_raw = true) {
  Pair pair{open_sqlite_ledger(bench.file(name + ".sqlite3")), nullptr};
  if (with_raw) pair.raw = std::make_unique<RawSqlite>(bench.file(name + ".raw"));
  pair.ledger->declare_group({.group = bench_queue(), .kind = GroupKind::kQueue});
  bench.fill(behind, random, [&](const std::vector<SampleRef>& batch) {
    finish_batch(*pair.ledger, batch);
    if (!pair.raw) return;
    pair.raw->commit(RawSqlite::rows_of(batch));
    pair.raw->enqueue(static_cast<std::int64_t>(batch.size()), /*finished=*/true);
  });
  return pair;
}

std::string behind_text(std::int64_t behind) {
  return fmt::format("{} finished samples behind", behind);
}

void commit_both(LedgerBench& bench, const Pair& pair, int batches) {
  for (int i = 0; i < batches; ++i) {
    const auto batch = bench.refs(kBatch, false);
    pair.ledger->commit_samples(batch, {});
    pair.raw->commit(RawSqlite::rows_of(batch));
    pair.raw->enqueue(kBatch, /*finished=*/false);
  }
}

BenchRow lease_ack_row(LedgerBench& bench, const Pair& pair) {
  const int batches = bench.sizes().batches;
  commit_both(bench, pair, batches * (bench.sizes().repetitions + 1));
  const auto medians = alternate(
      bench.sizes().repetitions,
      [&] {
        return std::vector{seconds_of([&] {
          for (int i = 0; i < batches; ++i) {
            pair.ledger->ack_refs(bench_queue(), pair.ledger->lease_refs({.group = bench_queue(), .max_refs = kBatch}).leases);
          }
        })};
      },
      [&] {
        return std::vector{seconds_of([&] {
          for (int i = 0; i < batches; ++i) pair.raw->ack(pair.raw->lease(kBatch));
        })};
      });
  BenchRow row = rate_row("sqlite_lease_ack_256", batches * kBatch, "ref/s", medians[0], value_at_least(60'000));
  row.note = behind_text(bench.sizes().behind);
  return row;
}

// The limit is another ledger, with hardly anything behind it.
BenchRow lease_behind_row(LedgerBench& bench) {
  const LedgerSizes& sizes = bench.sizes();
  const std::int64_t behind = sizes.many_behind;
  const Pair many = finished(bench, "many", behind, false, /*with_raw=*/false);
  const Pair few = finished(bench, "few", sizes.few_behind, false, /*with_raw=*/false);
  const int leases = bench.sizes().single_leases;
  for (const Pair* pair : {&many, &few}) {
    for (int i = 0; i < leases + 1; ++i) pair->ledger->commit_samples(bench.refs(kBatch, false), {});
  }
  const auto lease_of = [&](const Pair& pair) {
    return [&] {
      QueueAnswer answer;
      const double seconds =
          seconds_of([&] { answer = pair.ledger->lease_refs({.group = bench_queue(), .max_refs = kBatch}); });
      pair.ledger->ack_refs(bench_queue(), answer.leases);
      return std::vector{seconds};
    };
  };
  const BenchMedians medians = alternate(leases, lease_of(many), lease_of(few))[0];
  return {"sqlite_lease_behind_1m",
          1e6 * medians.value,
          "us",
          1e6 * medians.limit,
          ratio_at_most(1.2),
          fmt::format("the next lease of {}: {}, the limit {}", kBatch, behind_text(behind), sizes.few_behind)};
}

BenchRow commit_row(LedgerBench& bench, const Pair& pair, const std::string& name, bool random) {
  pair.ledger->close_group(bench_queue());  // it would put each sample on a list, which the limit has not
  std::vector<std::vector<SampleRef>> batches;
  const auto make = [&] {
    batches.clear();
    for (int i = 0; i < bench.sizes().batches; ++i) batches.push_back(bench.refs(kBatch, random));
  };
  const auto medians = alternate(
      bench.sizes().repetitions,
      [&] {
        make();
        return std::vector{seconds_of([&] {
          for (const auto& batch : batches) pair.ledger->commit_samples(batch, {});
        })};
      },
      [&] {
        make();
        std::vector<RawSqlite::Rows> rows;
        for (const auto& batch : batches) rows.push_back(RawSqlite::rows_of(batch));
        return std::vector{seconds_of([&] {
          for (const auto& batch : rows) pair.raw->commit(batch);
        })};
      });
  BenchRow row = rate_row(name, bench.sizes().batches * kBatch, "ref/s", medians[0], value_at_least(100'000));
  row.note = behind_text(bench.sizes().behind);
  return row;
}

// What the slowest of the ranks waits that ask for a new window all at once.
BenchRow window_row(LedgerBench& bench) {
  const GroupId group("train");
  const int windows = bench.sizes().windows;
  const auto file = bench.file("window.sqlite3");
  const auto ledger = open_sqlite_ledger(file);
  RawSqlite raw(bench.file("window.raw"));
  ledger->declare_group({.group = group, .window = kBatch});
  bench.fill(std::int64_t{kBatch} * (windows + 1), false, [&](const std::vector<SampleRef>& batch) {
    ledger->commit_samples(batch, {});
    raw.commit(RawSqlite::rows_of(batch));
  });
  const TimelineInfo timeline = ledger->open_timeline({.group = group, .width = kRanks});
  const auto slowest = [&](const auto& ask, const auto& open) {
    std::vector<double> seconds;
    std::vector<std::vector<double>> by_rank(kRanks);
    std::barrier together(kRanks);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < kRanks; ++rank) {
      threads.emplace_back([&, rank] {
        auto mine = open();
        for (int window = 0; window < windows; ++window) {
          together.arrive_and_wait();
          by_rank[static_cast<std::size_t>(rank)].push_back(seconds_of([&] { ask(*mine, window, rank); }));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (int window = 1; window < windows; ++window) {
      double most = 0;
      for (const auto& rank : by_rank) most = std::max(most, rank[static_cast<std::size_t>(window)]);
      seconds.push_back(most);
    }
    return median_of(seconds);
  };
  BenchMedians medians;
  medians.value = slowest([&](Ledger& mine, int window,
                              int rank) { mine.read_window(group, timeline.number, window, {.rank = rank, .width = kRanks}); },
                          [&] { return open_sqlite_ledger(file); });
  medians.limit = slowest(
      [&](RawSqlite& mine, int window, int rank) {
        mine.read_share(std::int64_t{window} * kBatch, std::int64_t{window + 1} * kBatch, kRanks, rank);
      },
      [&] { return std::make_unique<RawSqlite>(bench.file("window.raw")); });
  return {"window_256_8_ms",   1e3 * medians.value, "ms",
          1e3 * medians.limit, value_at_most(10),   "the first rank deals; the limit only reads"};
}

}  // namespace

std::vector<BenchRow> sqlite_ledger_rows(LedgerBench& bench) {
  std::vector<BenchRow> commits, others;
  const bool commit = bench.wants("sqlite_commit_256"), lease_ack = bench.wants("sqlite_lease_ack_256");
  if (commit || lease_ack) {  // on one file, which takes long to fill
    const Pair pair = finished(bench, "ascending", bench.sizes().behind, false);
    if (lease_ack) others.push_back(lease_ack_row(bench, pair));
    if (commit) commits.push_back(commit_row(bench, pair, "sqlite_commit_256", false));
  }
  bench.remove_files("ascending.");
  if (bench.wants("sqlite_commit_256_random")) {
    const Pair pair = finished(bench, "random", bench.sizes().behind, true);
    commits.push_back(commit_row(bench, pair, "sqlite_commit_256_random", true));
  }
  bench.remove_files("random.");
  if (bench.wants("sqlite_lease_behind_1m")) others.push_back(lease_behind_row(bench));
  bench.remove_files("many.");
  if (bench.wants("window_256_8_ms")) others.push_back(window_row(bench));
  commits.insert(commits.end(), others.begin(), others.end());
  return commits;
}

}  // namespace draftflow::cli
