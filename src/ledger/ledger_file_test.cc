// SPDX-License-Identifier: Apache-2.0
#include "draftflow/ledger/ledger_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iterator>
#include <sstream>
#include <stdexcept>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class LedgerFileTest : public ::testing::Test {
 protected:
  LedgerFileTest() {
    ledger_->declare("kind", "stream");
    ledger_->ingest_prompts({{.task_id = TaskId("p"), .run_id = RunId("run"), .payload = "{}"}}, {{}});
  }
  std::ptrdiff_t files() const {
    return std::distance(std::filesystem::directory_iterator(folder_.path()), std::filesystem::directory_iterator());
  }
  std::unique_ptr<Ledger> open(const std::string& name) { return open_sqlite_ledger(other_.path() / name); }

  const testing_support::TempFolder folder_, other_;
  const std::filesystem::path file_ = folder_.path() / "e.jsonl";
  std::unique_ptr<Ledger> ledger_ = open("l.sqlite3");
};

TEST_F(LedgerFileTest, AnExportIsTheSameLedgerElsewhere) {
  export_ledger(*ledger_, file_);
  EXPECT_THAT(read_text_file(file_), StartsWith("{\"kind\":\"ledger\",\"version\":1,\"ledger_id\":\"" + ledger_->id()));
  const auto copy = open("copy.sqlite3");
  EXPECT_EQ(LedgerFile(file_).import_into(*copy), std::nullopt);
  EXPECT_EQ(copy->id(), ledger_->id());
  EXPECT_EQ(copy->status().prompts, 1);
  EXPECT_THROW(LedgerFile(file_).import_into(*copy), Conflict);
}

TEST_F(LedgerFileTest, WhatEndsAnExportLeavesTheOldFileAndNothingElse) {
  replace_file(file_, "old");
  EXPECT_THROW(export_ledger(*ledger_, file_, [] { throw std::runtime_error("stop"); }), std::runtime_error);
  EXPECT_THROW(export_ledger(*open_memory_ledger(make_memory_ledger()), file_), InvalidArgument);
  EXPECT_EQ(read_text_file(file_), "old");
  EXPECT_EQ(files(), 1);
  EXPECT_THROW(export_ledger(*ledger_, folder_.path() / "nowhere" / "e.jsonl"), NotFound);
  std::filesystem::create_directory(folder_.path() / "taken");
  EXPECT_THROW(export_ledger(*ledger_, folder_.path() / "taken"), Error);
  EXPECT_EQ(files(), 2);
}

TEST_F(LedgerFileTest, WhatEndsAnImportLeavesTheLedgerEmpty) {
  export_ledger(*ledger_, file_);
  const auto copy = open("copy.sqlite3");
  EXPECT_THROW(LedgerFile(file_).import_into(*copy, [] { throw std::runtime_error("stop"); }), std::runtime_error);
  const std::string whole = read_text_file(file_);
  replace_file(file_, whole.substr(0, whole.rfind('\n', whole.size() - 2) + 1));
  EXPECT_THROW(LedgerFile(file_).import_into(*copy), Corrupt);
  EXPECT_EQ(copy->status().prompts, 0);
  replace_file(file_, whole);
  LedgerFile(file_).import_into(*copy);
  EXPECT_EQ(copy->status().prompts, 1);
}

TEST_F(LedgerFileTest, WhatCannotBeImportedIsTold) {
  EXPECT_THROW(LedgerFile(folder_.path() / "nothing"), NotFound);
  try {
    LedgerFile(other_.path() / "l.sqlite3");
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr("is a ledger of draftflow: export it"));
  }
}

TEST_F(LedgerFileTest, AnExportReplacesOnlyAnEarlierOne) {
  const auto link = folder_.path() / "link", folder = folder_.path() / "folder", own = other_.path() / "l.sqlite3";
  std::filesystem::create_symlink("elsewhere", link);
  std::filesystem::create_directory(folder);
  for (const auto& file : {link, folder, own}) EXPECT_THROW(export_ledger(*ledger_, file), InvalidArgument) << file;
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_EQ(open_ledger_read_only(own.string())->status().prompts, 1);
  EXPECT_THROW(LedgerFile{folder}, InvalidArgument);
  export_ledger(*ledger_, file_);
  export_ledger(*ledger_, file_);
}

TEST_F(LedgerFileTest, LinesEndWhereTheyEnd) {
  std::istringstream lines("a\n\nlast");
  EXPECT_EQ(next_export_line(lines), "a");
  EXPECT_EQ(next_export_line(lines), "");
  EXPECT_EQ(next_export_line(lines), "last");
  EXPECT_EQ(next_export_line(lines), std::nullopt);
}

}  // namespace
}  // namespace draftflow
