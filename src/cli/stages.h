// SPDX-License-Identifier: Apache-2.0
//
// The stages of a run as lists of processes to start. Pure functions of the configuration and the folder.
#pragma once

#include <vector>

#include "cli/child.h"
#include "cli/config.h"
#include "cli/run_folder.h"

namespace draftflow::cli {

inline constexpr const char* kIngestStage = "ingest";
inline constexpr const char* kTrainStage = "capture and train";
inline constexpr const char* kEvalStage = "eval";
inline constexpr const char* kReportStage = "report";
inline constexpr const char* kTrainUnit = "train";

std::string ledger_of(const RunConfig& config, const RunFolder& folder);  // what open_ledger takes

std::vector<ChildSpec> ingest_children(const RunConfig& config, const RunFolder& folder);
// N workers, each a unit, and the trainer's ranks, the unit "train"; `launch`: a name that no earlier ranks had.
std::vector<ChildSpec> train_children(const RunConfig& config, const RunFolder& folder, const std::string& launch);
std::vector<ChildSpec> eval_children(const RunConfig& config, const RunFolder& folder);  // those whose result is missing

}  // namespace draftflow::cli
