// SPDX-License-Identifier: Apache-2.0
//
// Offline entry: feature files, as users have them, become committed file:// refs in a ledger. Each file is
// read and checked once; a bad one is reported and left out, and never stops the rest. Idempotent: a file that is committed is
// not read again. Needs no libtorch. The n-th file, of a folder by absolute path, is sample {run_id}:{n:08d}; the ledger is
// declared kind=offline, and its prompts need no closing, since an offline set ends with its last ref. Disk full and the other
// errors of the ledger are thrown; what is committed by then stays.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace draftflow {

class Ledger;

struct IngestOptions {
  std::filesystem::path folder;
  std::vector<std::filesystem::path> files;  // in this order, instead of a folder's
  std::filesystem::path ledger;              // where none is given open
  std::string run_id = "offline";
  std::string strategy = "eagle3";
  std::int64_t limit = 0;  // files; 0: all
};

struct IngestFailure {
  std::filesystem::path file;
  std::string reason;
};

struct IngestReport {
  std::int64_t files = 0, committed = 0, already = 0;  // files: looked at
  std::int64_t tokens = 0;                             // of the files newly committed, whatever their loss mask
  std::uint64_t bytes = 0;                             // their tensor bytes
  std::vector<IngestFailure> failed;
};

using IngestCallback = std::function<void(std::int64_t done, std::int64_t total)>;

// NotFound if the folder is missing or holds no feature file. What on_file throws ends it: the files of the last batch are then
// left for the next time.
IngestReport run_ingest(const IngestOptions& options, const IngestCallback& on_file, const std::atomic<bool>& stop);
IngestReport run_ingest(Ledger& ledger, const IngestOptions& options, const IngestCallback& on_file,
                        const std::atomic<bool>& stop);

}  // namespace draftflow
