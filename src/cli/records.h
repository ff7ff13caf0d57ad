// SPDX-License-Identifier: Apache-2.0
//
// RunRecords: what a run's metrics files and evaluations say, read once for summary and report. A trainer that was killed
// does steps again after its last checkpoint: the last record of a step counts. Plain value.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "cli/metrics.h"
#include "cli/run_folder.h"

namespace draftflow::cli {

struct RunRecords {
  std::vector<Json> ledger;               // a record a second
  std::map<std::int64_t, Json> train;     // by optimizer step
  std::map<std::string, Json> trainers;   // the last record of each trainer process
  std::map<std::string, Json> producers;  // the last record of each capture process
  std::vector<Json> processes;            // each process that took part
  Json untrained, trained;                // evaluations; null where missing

  void add_train(const std::vector<Json>& records);
};

RunRecords load_run_records(const RunFolder& folder);
Json load_eval(const std::filesystem::path& path);  // null if it is missing or no evaluation

// Wall time with the pauses between two starts of a run cut out: the x axis of everything over time.
class ActiveClock {
 public:
  explicit ActiveClock(const std::vector<Json>& ledger);
  double seconds(double time) const;  // since the run's first record
  double total() const;

 private:
  std::vector<std::pair<double, double>> points_;  // wall clock, active seconds
};

}  // namespace draftflow::cli
