// SPDX-License-Identifier: Apache-2.0
//
// Supervisor of one `draftflow run`: takes the run's folder, starts the stages' processes, watches them and the ledger,
// and writes summary and report. Everything it does can be done again: what is finished is skipped. If one process fails
// or a stop is asked for, the others end cleanly first. One thread; one object per process.
//
//   return Supervisor(config, {}, console).run();   // the exit code
#pragma once

#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "cli/app.h"
#include "cli/child.h"
#include "cli/config.h"
#include "cli/metrics.h"
#include "cli/progress_bar.h"
#include "cli/run_folder.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {

struct SupervisorOptions {
  std::filesystem::path executable = "/proc/self/exe";  // a seam for tests
  double grace_seconds = 20;
  std::chrono::milliseconds lock_wait{30'000};
  bool fresh = false;
  bool json = false;
};

class Supervisor {
 public:
  Supervisor(RunConfig config, SupervisorOptions options, const Console& console);
  int run();

 private:
  int run_stages();
  int run_stage(const std::string& name, const std::vector<ChildSpec>& specs);
  int watch(Children& children);
  int finish_child(const ChildExit& exit, Children& children);
  int start_again(const ChildExit& exit, Children& children);
  int fail(const ChildExit& exit, Children& children);
  int interrupted(Children& children);
  void sample();
  std::vector<ProgressLine> train_lines(const LedgerStatus& status);
  std::vector<ProgressLine> eval_lines();
  void write_results();
  int show_results();

  RunConfig config_;
  SupervisorOptions options_;
  const Console& console_;
  std::unique_ptr<RunFolder> folder_;
  RunState state_;
  std::unique_ptr<MetricsWriter> ledger_metrics_, process_metrics_;
  std::unique_ptr<Ledger> ledger_;
  std::unique_ptr<MetricsReader> train_reader_, eval_readers_[2];
  Json last_train_ = Json::object(), last_eval_[2];
  RateMeter capture_meter_, train_meter_, eval_meters_[2];
  std::unique_ptr<ProgressBoard> board_;
  std::string stage_;
  struct Restarts {
    int count = 0;               // without progress
    std::int64_t progress = -1;  // what was done when it was started last
  };
  std::map<std::string, Restarts> restarts_;  // by unit
  std::string launch_;
};

}  // namespace draftflow::cli
