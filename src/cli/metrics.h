// SPDX-License-Identifier: Apache-2.0
//
// Metrics files: JSON lines that a run appends while it works, read again for progress, summary and report
// (docs/formats/metrics.md). One write per line, so a killed process leaves at most one torn line, which readers skip.
// A MetricsWriter or MetricsReader is used by one thread; several processes may append to different files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "draftflow/base/file.h"
#include "draftflow/capture/worker.h"
#include "draftflow/ledger/ledger.h"
#include "draftflow/train/evaluate.h"
#include "draftflow/train/trainer.h"

namespace draftflow::cli {

using Json = nlohmann::ordered_json;

double wall_clock_seconds();  // since 1970, UTC

class MetricsWriter {
 public:
  explicit MetricsWriter(std::filesystem::path path);  // makes the file and its folder; ends a torn last line
  void append(const Json& record);                     // adds "time" and "process" in front

 private:
  std::filesystem::path path_;
  UniqueFd file_;
  std::string process_;  // random: tells the processes of a resumed run apart
};

// Reads what was appended since the last call. A file that is not there yet reads as empty.
class MetricsReader {
 public:
  explicit MetricsReader(std::filesystem::path path) : path_(std::move(path)) {}
  std::vector<Json> read_new();

 private:
  std::filesystem::path path_;
  std::uint64_t offset_ = 0;
};

std::vector<Json> read_metrics(const std::filesystem::path& path);

Json to_json(const CaptureProgress& progress);
Json to_json(const TrainProgress& progress);
Json to_json(const EvalReport& report);
Json to_json(const LedgerStatus& status);

// A number of a record, or `otherwise` where it is absent or null (JSON has no NaN).
double number_or(const Json& record, const char* key, double otherwise);

// Text for a JSON string whatever its bytes were: invalid UTF-8 escaped.
std::string json_text(const std::string& text);

}  // namespace draftflow::cli
