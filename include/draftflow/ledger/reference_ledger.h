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

#include "draftflow/ledger/ledger.h"
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

struct ReferenceImport {
  std::int64_t waiting = 0, done = 0;  // samples
};
// Makes the empty ledger (Conflict otherwise, as Ledger::import_from) one with the reference's commits, in their order. Those
// that it acked and that its optimizer holds for good are done: acked in the closed queue "reference", and freed on the books,
// since the reference frees them itself. The others wait for whatever group comes; their bytes stay where their refs say. The
// prompts are closed.
ReferenceImport import_reference_ledger(Ledger& ledger, const ReferenceLedger& reference);

}  // namespace draftflow
