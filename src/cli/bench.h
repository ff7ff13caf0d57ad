// SPDX-License-Identifier: Apache-2.0
//
// draftflow bench: each row is something of ours beside its raw limit, both measured in the same run, repetition by repetition
// in turns, so that noise hits both. Medians; the first repetition is dropped. One thread; helpers are forked processes.
//
//   const auto medians = alternate(9, [&] { return std::vector{put()}; }, [&] { return std::vector{write()}; });
//   rows.push_back(rate_row("put_64mib", bytes / 1e9, "GB/s", medians[0], ratio_at_least(0.85)));
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cli/bench_process.h"
#include "draftflow/formats/tensor.h"
#include "draftflow/store/feature_store.h"

namespace draftflow::cli {

struct BenchGoal {
  bool of_ratio = false, at_least = false;
  double bound = 0;
};
inline BenchGoal ratio_at_least(double bound) {
  return {true, true, bound};
}
inline BenchGoal ratio_at_most(double bound) {
  return {true, false, bound};
}
inline BenchGoal value_at_least(double bound) {
  return {false, true, bound};
}
inline BenchGoal value_at_most(double bound) {
  return {false, false, bound};
}

struct BenchRow {
  std::string name;
  double value = 0;
  std::string unit;
  double limit = 0;
  BenchGoal goal;
  std::string note;

  double ratio() const { return value / limit; }
};

struct BenchSizes {
  std::uint64_t large_bytes = 64 << 20, medium_bytes = 1 << 20, small_bytes = 4 << 10, resident_bytes = 256;
  int repetitions = 9;
  int zero_copies = 50;      // a repetition
  int small_samples = 2000;  // a repetition
  int few_resident = 1000, many_resident = 1'000'000;
  int resident_samples = 400;  // a repetition
  int pipe_samples = 24, pipe_repetitions = 5;
};

struct Bench {
  BenchSizes sizes;
  std::set<std::string> wanted;        // names of rows
  std::filesystem::path disk, memory;  // empty folders; the second on tmpfs
  std::ostream& progress;

  bool wants(const std::string& row) const { return wanted.contains(row); }
};

// The stop flag was set: unwinds to the command, which ends with exit code 130.
struct BenchStopped {};
void check_bench_stop();

template <class Work>
double seconds_of(Work&& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// One repetition: the seconds of each of its phases.
using BenchRepetition = std::function<std::vector<double>()>;
struct BenchMedians {
  double value = 0, limit = 0;
};
std::vector<BenchMedians> alternate(int repetitions, const BenchRepetition& value, const BenchRepetition& limit);
double median_of(std::vector<double> numbers);

// `amount` a median second.
BenchRow rate_row(const std::string& name, double amount, const std::string& unit, const BenchMedians& seconds,
                  const BenchGoal& goal);

// One bf16 tensor of noise as a sample; the same for the same size.
TensorMap bench_sample(std::uint64_t bytes);
PutMetadata bench_metadata();

// A process that waits for the root of a store, attaches, puts, gets, removes and asks for health, and says by how many MiB
// its resident memory grew. To be made early: a heap with holes would hide growth.
class RssProbe {
 public:
  RssProbe();
  double measure(const std::filesystem::path& root);  // once

 private:
  std::pair<UniqueFd, UniqueFd> orders_;
  ForkedChild child_;
};

// The rows of the store, in files of their own. Each makes only what is wanted, and may leave its files in the folders.
std::vector<BenchRow> large_rows(const Bench& bench);
std::vector<BenchRow> small_rows(const Bench& bench);
std::vector<BenchRow> resident_rows(const Bench& bench, RssProbe* few_rss, RssProbe* many_rss);  // nullptr: no such row
std::vector<BenchRow> pipe_rows(const Bench& bench);

std::string bench_table(const std::vector<BenchRow>& rows);
std::string bench_json(const std::vector<BenchRow>& rows);

}  // namespace draftflow::cli
