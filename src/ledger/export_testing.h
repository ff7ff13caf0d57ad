// SPDX-License-Identifier: Apache-2.0
//
// For tests only: a ledger's export in memory.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "draftflow/ledger/ledger.h"

namespace draftflow::testing_support {

inline std::vector<std::string> export_of(Ledger& ledger) {
  std::vector<std::string> lines;
  ledger.export_to([&](const std::string& line) { lines.push_back(line); });
  return lines;
}

inline void import_into(Ledger& ledger, const std::vector<std::string>& lines) {
  std::size_t at = 0;
  ledger.import_from([&] { return at < lines.size() ? std::optional(lines[at++]) : std::nullopt; });
}

}  // namespace draftflow::testing_support
