// SPDX-License-Identifier: Apache-2.0
//
// Offline entry: a folder of feature files, as users have them, becomes committed file:// refs in a ledger. Each file is
// read and checked once; a bad one is reported and left out, and never stops the rest. Idempotent: a file that is committed is
// not read again. Needs no libtorch. The n-th file, by absolute path, is sample {run_id}:{n:08d}; the ledger is declared
// kind=offline, and its prompts need no closing, since an offline set ends with its last ref. Disk full and the other errors
// of the ledger are thrown; what is committed by then stays.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace draftflow {

struct IngestOptions {
  std::filesystem::path folder;
  std::filesystem::path ledger;
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

// NotFound if the folder is missing or holds no feature file.
IngestReport run_ingest(const IngestOptions& options, const IngestCallback& on_file, const std::atomic<bool>& stop);

}  // namespace draftflow
