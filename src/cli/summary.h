// SPDX-License-Identifier: Apache-2.0
//
// The figures of a finished run: summary.json (docs/formats/metrics.md) and the table a person sees. Pure functions.
#pragma once

#include <string>

#include "cli/config.h"
#include "cli/records.h"

namespace draftflow::cli {

Json make_summary(const RunConfig& config, const RunRecords& records, const RunState& state, std::int64_t samples,
                  std::int64_t optimizer_steps);

// Total wait over total wall time after the first optimizer step, over all trainer processes; 0 if none did two steps.
double data_wait_fraction(const RunRecords& records);

std::string summary_table(const Json& summary, const std::filesystem::path& report);

}  // namespace draftflow::cli
