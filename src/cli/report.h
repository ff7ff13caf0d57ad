// SPDX-License-Identifier: Apache-2.0
//
// report.html of a run: one self-contained page (inline style and SVG, no script, no network). Every text that comes from
// outside is escaped: prompts and decoded text are hostile. Pure function.
#pragma once

#include <string>

#include "cli/config.h"
#include "cli/records.h"

namespace draftflow::cli {

struct ReportInput {
  const RunConfig& config;
  const RunRecords& records;
  const Json& summary;
};

std::string report_html(const ReportInput& input);

}  // namespace draftflow::cli
