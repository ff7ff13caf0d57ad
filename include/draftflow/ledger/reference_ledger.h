// SPDX-License-Identifier: Apache-2.0
//
// The reference runtime's ledger, an SQLite file, read as it is (docs/formats/reference.md). It is never written; without a
// log (-wal) beside it nothing appears there either, with one SQLite makes the log's index (-shm). Thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/records/sample_ref.h"

namespace draftflow {

struct ReferenceLedger {
  std::vector<SampleRef> committed;  // in commit order
  std::vector<std::string> acked;    // ids, in the order of their acks
  std::optional<std::int64_t> global_step;
  bool optimizer_durable = false;  // whether the checkpoint at global_step is on disk: else the acked are not trained for good
};

// NotFound if the file is not there; Corrupt, naming the file, table and row, for what is not such a ledger.
ReferenceLedger read_reference_ledger(const std::filesystem::path& path);

}  // namespace draftflow
