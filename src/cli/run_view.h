// SPDX-License-Identifier: Apache-2.0
//
// RunView: what status and top show of a run: the ledger's counters, who has leased what, the bytes that may be resident, and
// in one sentence what limits the run just now. Plain values and pure functions, but for look(), which reads.
//
//   const RunView now = look(*ledger, budget);
//   console.out << run_view_text(now) << "limit      " << what_limits(now) << "\n";
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/metrics.h"
#include "cli/store_command.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {

// What resident bytes are held against; 0: not known.
struct ByteBudget {
  std::uint64_t high_bytes = 0;  // producers pause there
  std::uint64_t low_bytes = 0;   // and go on here
};
// As it was asked for (0: not); else of a run's folder, by its run.yaml; else the cap of the store, if one is named.
ByteBudget find_budget(std::uint64_t high_watermark, const std::filesystem::path& where, const StorePath& store);

// Seconds that each side has waited for the other, by the metrics of a run's folder. They call for opposite fixes.
struct Starvation {
  double producers_paused_s = 0, trainers_waited_s = 0;
};
std::optional<Starvation> find_starvation(const std::filesystem::path& where);  // nothing where there are no metrics

// Samples a second, between two looks; trained by the group that is behind.
struct RunRates {
  double committed = 0, trained = 0;
};
RunRates rates_between(const LedgerStatus& before, const LedgerStatus& now, double seconds);

struct RunView {
  LedgerStatus status;
  std::vector<HolderLeases> leases;
  ByteBudget budget;
  std::optional<RunRates> rates;  // of two looks
  std::optional<Starvation> starvation;
};
RunView look(Ledger& ledger, const ByteBudget& budget);

// One sentence, from the facts alone: producers pause, or trainers wait, or a group keeps the others' bytes, or the prompts are
// at their end. With rates it also says whether anything moves.
std::string what_limits(const RunView& view);

std::string run_view_text(const RunView& view);  // all but the sentence
Json to_json(const RunView& view);               // the counters, "leases", "high_watermark_bytes", rates, "limit"

}  // namespace draftflow::cli
