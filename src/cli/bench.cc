// SPDX-License-Identifier: Apache-2.0
#include "cli/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "cli/stop.h"
#include "draftflow/base/random.h"

namespace draftflow::cli {
namespace {

using Json = nlohmann::ordered_json;

bool is_met(const BenchRow& row) {
  const double found = row.goal.of_ratio ? row.ratio() : row.value;
  return row.goal.at_least ? found >= row.goal.bound : found <= row.goal.bound;
}

std::string goal_text(const BenchGoal& goal) {
  return fmt::format("{} {} {:g}", goal.of_ratio ? "ratio" : "value", goal.at_least ? ">=" : "<=", goal.bound);
}

std::string outcome_text(const BenchRow& row) {
  if (is_met(row)) return "met";
  const double found = row.goal.of_ratio ? row.ratio() : row.value;
  return fmt::format("missed by {:.0f} %", std::ceil(100 * std::abs(found / row.goal.bound - 1)));
}

std::string number_text(double number) {
  return std::abs(number) >= 1000 ? fmt::format("{:.0f}", number) : fmt::format("{:.3g}", number);
}

}  // namespace

void check_bench_stop() {
  if (stop_flag()) throw BenchStopped();
}

double median_of(std::vector<double> numbers) {
  std::sort(numbers.begin(), numbers.end());
  const std::size_t half = numbers.size() / 2;
  return numbers.size() % 2 == 1 ? numbers[half] : (numbers[half - 1] + numbers[half]) / 2;
}

std::vector<BenchMedians> alternate(int repetitions, const BenchRepetition& value, const BenchRepetition& limit) {
  std::vector<std::vector<double>> values, limits;  // by phase
  for (int i = 0; i <= repetitions; ++i) {
    check_bench_stop();
    std::vector<double> mine, raw;
    if (i % 2 == 0) mine = value();
    raw = limit();
    if (i % 2 == 1) mine = value();
    values.resize(mine.size());
    limits.resize(raw.size());
    for (std::size_t phase = 0; i > 0 && phase < mine.size(); ++phase) {
      values[phase].push_back(mine[phase]);
      limits[phase].push_back(raw[phase]);
    }
  }
  std::vector<BenchMedians> medians;
  for (std::size_t phase = 0; phase < values.size(); ++phase) {
    medians.push_back({median_of(values[phase]), median_of(limits[phase])});
  }
  return medians;
}

BenchRow rate_row(const std::string& name, double amount, const std::string& unit, const BenchMedians& seconds,
                  const BenchGoal& goal) {
  return {name, amount / seconds.value, unit, amount / seconds.limit, goal, ""};
}

TensorMap bench_sample(std::uint64_t bytes) {
  auto [tensor, out] = Tensor::allocate(DType::kBFloat16, {static_cast<std::int64_t>(bytes / 2)});
  Random random(bytes);
  for (std::size_t at = 0; at < out.size(); at += sizeof(std::uint64_t)) {
    const std::uint64_t noise = random.next();
    std::memcpy(out.data() + at, &noise, std::min(sizeof noise, out.size() - at));
  }
  return {{"hidden_state", tensor}};
}

PutMetadata bench_metadata() {
  return {.run_id = RunId("bench")};
}

std::string bench_table(const std::vector<BenchRow>& rows) {
  std::string text =
      fmt::format("{:<22} {:>9} {:<5} {:>9} {:>6}  {:<15} {}\n", "row", "value", "unit", "limit", "ratio", "goal", "outcome");
  for (const BenchRow& row : rows) {
    text += fmt::format("{:<22} {:>9} {:<5} {:>9} {:>6.2f}  {:<15} {}{}\n", row.name, number_text(row.value), row.unit,
                        number_text(row.limit), row.ratio(), goal_text(row.goal), outcome_text(row),
                        row.note.empty() ? "" : "; " + row.note);
  }
  return text;
}

std::string bench_json(const std::vector<BenchRow>& rows) {
  Json list = Json::array();
  for (const BenchRow& row : rows) {
    list.push_back({{"name", row.name},
                    {"value", row.value},
                    {"unit", row.unit},
                    {"limit", row.limit},
                    {"ratio", row.ratio()},
                    {"goal", goal_text(row.goal)},
                    {"met", is_met(row)},
                    {"note", row.note}});
  }
  return list.dump() + "\n";
}

}  // namespace draftflow::cli
