// SPDX-License-Identifier: Apache-2.0
//
// What the rows of `draftflow bench ledger` have in common. The rows stand in files of their own; each function makes only what
// is wanted, in the bench's folder. One thread owns it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <set>
#include <string>
#include <vector>

#include "cli/bench.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {

constexpr int kBatch = 256;  // refs of one call

struct LedgerSizes {
  std::int64_t behind = 100'000, few_behind = 1'000, many_behind = 1'000'000, reconciled = 1'000'000;
  int repetitions = 7, batches = 40, windows = 12, single_leases = 100;
  int clients = 4, client_repetitions = 5, client_batches = 12;  // PostgreSQL
};

class LedgerBench {
 public:
  LedgerBench(std::filesystem::path folder, const LedgerSizes& sizes, std::set<std::string> wanted, std::ostream& progress)
      : folder_(std::move(folder)), sizes_(sizes), wanted_(std::move(wanted)), progress_(progress) {}

  bool wants(const std::string& row) const { return wanted_.contains(row); }
  std::filesystem::path file(const std::string& name) const { return folder_ / name; }
  void remove_files(const std::string& prefix);  // of those a row has done with: with millions behind they are large
  const LedgerSizes& sizes() const { return sizes_; }
  std::ostream& progress() { return progress_; }

  // New ones of 192 tokens, with ids that ascend or are random.
  std::vector<SampleRef> refs(std::int64_t count, bool random);

  // Makes that many in batches, and says so from time to time.
  using Use = std::function<void(const std::vector<SampleRef>& batch)>;
  void fill(std::int64_t count, bool random, const Use& use);

 private:
  const std::filesystem::path folder_;
  const LedgerSizes sizes_;
  const std::set<std::string> wanted_;
  std::ostream& progress_;
  std::int64_t next_ = 0;
};

// A queue that has been through that many samples: each was leased and acked, and its bytes are gone.
const GroupId& bench_queue();
void finish_batch(Ledger& ledger, const std::vector<SampleRef>& batch);  // the queue must be declared and empty

std::vector<BenchRow> sqlite_ledger_rows(LedgerBench& bench);
std::vector<BenchRow> reconcile_ledger_rows(LedgerBench& bench);
std::vector<BenchRow> memory_ledger_rows(LedgerBench& bench);
std::vector<BenchRow> postgres_ledger_rows(LedgerBench& bench);

}  // namespace draftflow::cli
