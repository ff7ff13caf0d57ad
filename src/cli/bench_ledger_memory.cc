// SPDX-License-Identifier: Apache-2.0
//
// The row of draftflow bench ledger on the ledger in memory.
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "cli/bench_ledger.h"

namespace draftflow::cli {

// One shard in eight, sixteen refs a call, while many others wait; the limit is the same while 1,000 do.
std::vector<BenchRow> memory_ledger_rows(LedgerBench& bench) {
  if (!bench.wants("memory_lease_ack_1m")) return {};
  constexpr int kShards = 8, kRefs = 16;
  const std::int64_t pending = bench.sizes().reconciled;
  const int calls = 25 * bench.sizes().batches;
  int shard = 0;
  const auto filled = [&](std::int64_t count) {
    auto ledger = open_memory_ledger(make_memory_ledger());
    ledger->declare_group({.group = bench_queue(), .kind = GroupKind::kQueue});
    bench.fill(count, false, [&](const std::vector<SampleRef>& batch) { ledger->commit_samples(batch, {}); });
    return ledger;
  };
  const auto repetition = [&](Ledger& ledger) {
    double seconds = 0;
    for (int call = 0; call < calls; ++call) {
      std::int64_t given = 0;
      seconds += seconds_of([&] {
        const QueueAnswer answer =
            ledger.lease_refs({.group = bench_queue(), .max_refs = kRefs, .partition = Partition{shard++ % kShards, kShards}});
        ledger.ack_refs(bench_queue(), answer.leases);
        given = static_cast<std::int64_t>(answer.leases.size());
      });
      ledger.commit_samples(bench.refs(given, false), {});  // as many wait as before
    }
    return std::vector{seconds};
  };
  const auto many = filled(pending), few = filled(std::min<std::int64_t>(pending, 1000));
  const auto medians = alternate(
      bench.sizes().repetitions, [&] { return repetition(*many); }, [&] { return repetition(*few); });
  BenchRow row = rate_row("memory_lease_ack_1m", calls * kRefs, "ref/s", medians[0], value_at_least(1'000'000));
  row.note = fmt::format("{} pending; the limit at 1000; also >= 0.4 of it", pending);
  return {row};
}

}  // namespace draftflow::cli
