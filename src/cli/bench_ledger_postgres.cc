// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_ledger.h"

namespace draftflow::cli {
std::vector<BenchRow> postgres_ledger_rows(LedgerBench&) {
  return {};
}
}  // namespace draftflow::cli
