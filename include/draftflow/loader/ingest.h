// SPDX-License-Identifier: Apache-2.0
//
// Offline entry: a folder of feature files, as users have them, becomes committed file:// refs in a ledger. Each file is
// read and checked once; a bad one is reported and left out, and never stops the rest. Idempotent. Needs no libtorch.
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
  std::int64_t limit = 0;          // files; 0: all
};

struct IngestFailure {
  std::filesystem::path file;
  std::string reason;
};

struct IngestReport {
  std::int64_t files = 0, committed = 0, already = 0, tokens = 0;
  std::uint64_t bytes = 0;
  std::vector<IngestFailure> failed;
};

using IngestCallback = std::function<void(std::int64_t done, std::int64_t total)>;

// NotFound if the folder is missing or holds no feature file.
IngestReport run_ingest(const IngestOptions& options, const IngestCallback& on_file, const std::atomic<bool>& stop);

}  // namespace draftflow
