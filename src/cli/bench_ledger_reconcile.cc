// SPDX-License-Identifier: Apache-2.0
//
// The rows of draftflow bench ledger on what a trainer waits for that starts after a crash.
#include <fmt/format.h>
#include <sys/resource.h>

#include <sstream>

#include "cli/bench_ledger.h"
#include "cli/bench_raw_sqlite.h"

namespace draftflow::cli {
namespace {

struct Outcome {
  double seconds = 0, peak_mib = 0;  // the process's largest resident memory
};

// In a process of its own, so that the memory is its own.
template <class Work>
Outcome alone(Work&& work) {
  ForkedChild child([&] {
    const double seconds = seconds_of(work);
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return fmt::format("{} {}", seconds, static_cast<double>(usage.ru_maxrss) / 1024);
  });
  Outcome outcome;
  std::istringstream(child.result()) >> outcome.seconds >> outcome.peak_mib;
  return outcome;
}

// Ends as if it were killed: the ledger is not closed.
template <class Work>
void killed(const std::filesystem::path& file, Work&& work) {
  ForkedChild child([&] {
    Ledger& ledger = *open_sqlite_ledger(file).release();
    work(ledger);
    return std::string("done");
  });
  child.result();
}

}  // namespace

// A trainer had trained everything and saved nothing when it was killed: all of it is taken back by the one that comes next.
std::vector<BenchRow> reconcile_ledger_rows(LedgerBench& bench) {
  if (!bench.wants("reconcile_1m_s") && !bench.wants("reconcile_1m_rss_mib")) return {};
  constexpr int kTimes = 3;
  const GroupId group("train");
  const auto file = bench.file("reconcile.sqlite3"), raw_file = bench.file("reconcile.raw");
  const std::int64_t windows = bench.sizes().reconciled / kBatch;
  killed(file, [&](Ledger& ledger) {
    RawSqlite raw(raw_file);
    ledger.declare_group({.group = group, .window = kBatch});
    bench.fill(bench.sizes().reconciled, false, [&](const std::vector<SampleRef>& batch) {
      ledger.commit_samples(batch, {});
      raw.commit(RawSqlite::rows_of(batch));
    });
  });
  std::vector<double> seconds, peaks, limits, limit_peaks;
  for (int i = 0; i < kTimes; ++i) {
    killed(file, [&](Ledger& ledger) {
      const TimelineInfo timeline = ledger.open_timeline({.group = group});
      for (std::int64_t window = 0; window < windows; ++window) {
        check_bench_stop();
        if (i == 0) ledger.read_window(group, timeline.number, window);
        ledger.trained(group, timeline.number, window, window + 1, {});
      }
    });
    const Outcome mine = alone([&] { open_sqlite_ledger(file)->open_timeline({.group = group}); });
    const Outcome raw = alone([&] { RawSqlite(raw_file).scan(); });
    seconds.push_back(mine.seconds);
    peaks.push_back(mine.peak_mib);
    limits.push_back(raw.seconds);
    limit_peaks.push_back(raw.peak_mib);
  }
  bench.remove_files("reconcile.");
  std::vector<BenchRow> rows;
  const std::string what = fmt::format("{} samples of a trainer that was killed", windows * kBatch);
  if (bench.wants("reconcile_1m_s")) {
    rows.push_back({"reconcile_1m_s", median_of(seconds), "s", median_of(limits), value_at_most(10),
                    what + "; the limit scans as many rows"});
  }
  if (bench.wants("reconcile_1m_rss_mib")) {
    rows.push_back({"reconcile_1m_rss_mib", median_of(peaks), "MiB", median_of(limit_peaks), value_at_most(256),
                    "the whole process at its largest, and one that scans as many rows"});
  }
  return rows;
}

}  // namespace draftflow::cli
