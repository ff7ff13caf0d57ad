// SPDX-License-Identifier: Apache-2.0
#include "cli/records.h"

#include <algorithm>

namespace draftflow::cli {
namespace {

constexpr double kPauseSeconds = 5;  // a longer silence of the ledger's sampler is the pause between two starts

void keep_last_by_process(std::map<std::string, Json>& last, const Json& record) {
  const auto process = record.find("process");
  if (process != record.end() && process->is_string()) last[process->get<std::string>()] = record;
}

}  // namespace

void RunRecords::add_train(const std::vector<Json>& records) {
  for (const Json& record : records) {
    const double step = number_or(record, "step", -1);
    if (step < 1) continue;
    train[static_cast<std::int64_t>(step)] = record;
    keep_last_by_process(trainers, record);
  }
}

Json load_eval(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return nullptr;
  Json report = Json::parse(read_text_file(path, 64 << 20), nullptr, /*allow_exceptions=*/false);
  return report.is_object() && report.contains("acceptance_length") && report.contains("lossless") ? report : Json(nullptr);
}

RunRecords load_run_records(const RunFolder& folder) {
  RunRecords records;
  records.ledger = read_metrics(folder.metrics("ledger"));
  records.add_train(read_metrics(folder.metrics("train")));
  records.processes = read_metrics(folder.metrics("processes"));
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path() / "metrics", ignored)) {
    if (!entry.path().filename().string().starts_with("capture-")) continue;
    for (const Json& record : read_metrics(entry.path())) keep_last_by_process(records.producers, record);
  }
  records.untrained = load_eval(folder.eval("untrained"));
  records.trained = load_eval(folder.eval("trained"));
  return records;
}

ActiveClock::ActiveClock(const std::vector<Json>& ledger) {
  double active = 0;
  for (const Json& record : ledger) {
    const double time = number_or(record, "time", 0);
    if (!points_.empty()) {
      const double step = time - points_.back().first;
      if (step <= 0) continue;
      active += step > kPauseSeconds ? 1 : step;
    }
    points_.emplace_back(time, active);
  }
}

double ActiveClock::seconds(double time) const {
  const auto after =
      std::lower_bound(points_.begin(), points_.end(), time, [](const auto& p, double t) { return p.first < t; });
  if (after == points_.begin()) return 0;
  if (after == points_.end()) return total();
  const auto before = after - 1;
  const double share = (time - before->first) / (after->first - before->first);
  return before->second + share * (after->second - before->second);
}

double ActiveClock::total() const {
  return points_.empty() ? 0 : points_.back().second;
}

}  // namespace draftflow::cli
