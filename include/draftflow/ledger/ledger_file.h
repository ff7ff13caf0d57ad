// SPDX-License-Identifier: Apache-2.0
//
// A ledger as a file of JSON lines (docs/formats/ledger_export.md), written whole or not at all, and such a file, or a ledger
// of the reference runtime's (docs/formats/reference.md), taken into an empty ledger. Memory stays bounded. What `each_line`
// throws ends the call, and everything is as it was.
//
//   export_ledger(*ledger, "run.jsonl");
//   LedgerFile("run.jsonl").import_into(*open_ledger("copy.sqlite3"));
#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <istream>
#include <optional>
#include <string>

#include "draftflow/ledger/ledger.h"
#include "draftflow/ledger/reference_ledger.h"

namespace draftflow {

using EachLine = std::function<void()>;

// Replaces an earlier export in one step, synced; written beside it as "FILE.unfinished", which one that was killed leaves to
// the next one. InvalidArgument for what is no regular file, or a SQLite database, for a file of that name which no export
// left, and for a ledger in memory (Ledger::export_to); Conflict while another export to this file goes on.
void export_ledger(Ledger& ledger, const std::filesystem::path& file, const EachLine& each_line = {});

// For Ledger::import_from; nothing at the end. Corrupt for a line longer than any record of an export.
std::optional<std::string> next_export_line(std::istream& lines);

// Looked at before a ledger is made for it. One thread.
class LedgerFile {
 public:
  // NotFound if it is not there; InvalidArgument for a folder and a ledger of our own: that is exported, not taken over;
  // Corrupt, naming the place, for a SQLite file that is no ledger of the reference's.
  explicit LedgerFile(const std::filesystem::path& file);
  // As Ledger::import_from and import_reference_ledger. Of a reference's ledger, how many samples wait and are done. Once.
  std::optional<ReferenceImport> import_into(Ledger& ledger, const EachLine& each_line = {});

 private:
  std::ifstream lines_;
  std::optional<ReferenceLedger> reference_;
};

}  // namespace draftflow
