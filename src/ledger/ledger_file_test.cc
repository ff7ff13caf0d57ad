// SPDX-License-Identifier: Apache-2.0
#include "draftflow/ledger/ledger_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <iterator>
#include <sstream>
#include <stdexcept>
#include <utility>

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

TEST_F(LedgerFileTest, WhatAKilledExportLeavesIsTakenByTheNext) {
  const auto unfinished = folder_.path() / "e.jsonl.unfinished";
  const auto other = open("other.sqlite3");
  other->declare("long", std::string(3 << 20, 'x'));  // some of it is written before the last line
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(30);
    int lines = 0;
    export_ledger(*open_ledger_read_only((other_.path() / "other.sqlite3").string()), file_, [&] {
      if (++lines == 3) ::kill(::getpid(), SIGKILL);
    });
    ::_exit(1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_GT(std::filesystem::file_size(unfinished), 1u << 20);
  export_ledger(*ledger_, file_);
  EXPECT_EQ(files(), 1);
  const auto copy = open("copy.sqlite3");
  LedgerFile(file_).import_into(*copy);
  EXPECT_EQ(copy->id(), ledger_->id());
}

TEST_F(LedgerFileTest, OneExportAtATimeIsWrittenToAFile) {
  bool refused = false;
  export_ledger(*ledger_, file_, [&] {
    if (std::exchange(refused, true)) return;
    try {
      export_ledger(*open("l.sqlite3"), file_);
      ADD_FAILURE() << "two at once";
    } catch (const Conflict& error) {
      EXPECT_THAT(error.what(), HasSubstr("e.jsonl.unfinished is written by another export: wait for its end"));
    }
  });
  EXPECT_TRUE(refused);
  EXPECT_EQ(files(), 1);
  LedgerFile(file_).import_into(*open("copy.sqlite3"));
  replace_file(folder_.path() / "mine", "mine");
  std::filesystem::create_symlink("mine", folder_.path() / "e.jsonl.unfinished");
  EXPECT_THROW(export_ledger(*ledger_, file_), Error);
  EXPECT_EQ(read_text_file(folder_.path() / "mine"), "mine");
}

TEST_F(LedgerFileTest, WhatNoExportLeftIsNeverWrittenOver) {
  const auto unfinished = folder_.path() / "e.jsonl.unfinished";
  const auto refused = [&] {
    try {
      export_ledger(*ledger_, file_);
      return false;
    } catch (const InvalidArgument& error) {
      EXPECT_THAT(error.what(), HasSubstr("e.jsonl.unfinished is there, and no export left it"));
      return !std::filesystem::exists(file_);
    }
  };
  replace_file(unfinished, "mine");
  EXPECT_TRUE(refused());
  EXPECT_EQ(read_text_file(unfinished), "mine");
  const auto begun = folder_.path() / "begun";  // another name of a file that even looks like an export
  replace_file(begun, R"({"kind":"ledger","version":1})");
  std::filesystem::remove(unfinished);
  std::filesystem::create_hard_link(begun, unfinished);
  EXPECT_TRUE(refused());
  EXPECT_EQ(read_text_file(begun), R"({"kind":"ledger","version":1})");
  std::filesystem::remove(unfinished);
  ASSERT_EQ(::mkfifo(unfinished.c_str(), 0600), 0);
  EXPECT_TRUE(refused());
  std::filesystem::remove(unfinished);
  { const auto other = open("e.jsonl.unfinished"); }
  const std::string ledger = read_text_file(other_.path() / "e.jsonl.unfinished");
  std::filesystem::copy_file(other_.path() / "e.jsonl.unfinished", unfinished);
  EXPECT_TRUE(refused());
  EXPECT_EQ(read_text_file(unfinished), ledger);
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
