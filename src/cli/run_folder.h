// SPDX-License-Identifier: Apache-2.0
//
// RunFolder: the folder of one `draftflow run`: who may work in it (locks), what belongs to it (layout), which stages are
// done (state.json). One process at a time holds it; a second one is refused. Not thread-safe.
//
//   run.yaml  run.lock  children.lock  state.json  ledger.sqlite3  store/features/  train/{checkpoints,draft,draft-untrained}/
//   eval/{untrained,trained}.json  logs/*.log  metrics/*.jsonl  summary.json  report.html
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "cli/config.h"
#include "draftflow/base/file.h"

namespace draftflow::cli {

struct RunState {
  std::set<std::string> done;             // stages
  std::map<std::string, double> seconds;  // per stage, over all starts
};

class RunFolder {
 public:
  // Makes the folder and takes its locks. Unavailable if another run works there (naming the process), or if processes of
  // an earlier run have not ended after `wait`; `say` is told when it waits.
  RunFolder(const std::filesystem::path& path, std::chrono::milliseconds wait,
            const std::function<void(const std::string&)>& say);

  // Records the configuration, or compares it with the one recorded: InvalidArgument with the differing keys.
  // InvalidArgument too if files of a run are there without its run.yaml.
  void adopt(const RunConfig& config);
  void remove_own_files();  // --fresh: only what a run makes; InvalidArgument if the folder is not a run's

  RunState load_state() const;
  void save_state(const RunState& state) const;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path ledger() const { return path_ / "ledger.sqlite3"; }
  std::filesystem::path store() const { return path_ / "store" / "features"; }
  std::filesystem::path train() const { return path_ / "train"; }
  std::filesystem::path log(const std::string& name) const { return path_ / "logs" / (name + ".log"); }
  std::filesystem::path metrics(const std::string& name) const { return path_ / "metrics" / (name + ".jsonl"); }
  std::filesystem::path eval(const std::string& name) const { return path_ / "eval" / (name + ".json"); }
  std::filesystem::path summary() const { return path_ / "summary.json"; }
  std::filesystem::path report() const { return path_ / "report.html"; }
  // A name for the trainer's ranks that no earlier ones had, and the file at which they meet.
  std::string new_launch() const;
  std::filesystem::path rendezvous(const std::string& launch) const { return path_ / "train" / "ranks" / launch; }
  int children_lock() const { return children_lock_.get(); }  // children inherit it: it is free once all have ended

 private:
  void take_run_lock();
  void take_children_lock(std::chrono::milliseconds wait, const std::function<void(const std::string&)>& say);

  std::filesystem::path path_;
  UniqueFd run_lock_, children_lock_;
};

}  // namespace draftflow::cli
