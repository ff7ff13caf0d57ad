// SPDX-License-Identifier: Apache-2.0
#include "draftflow/ledger/reference_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kSchema =
    "PRAGMA journal_mode=WAL; CREATE TABLE committed (sample_id TEXT PRIMARY KEY, ref_json TEXT NOT NULL);"
    "CREATE TABLE acked (sample_id TEXT PRIMARY KEY); CREATE TABLE marker (k TEXT PRIMARY KEY, v TEXT);";

class ReferenceLedgerTest : public ::testing::Test {
 protected:
  static void run(sqlite3* handle, const std::string& sql) {
    char* message = nullptr;
    ASSERT_EQ(sqlite3_exec(handle, sql.c_str(), nullptr, nullptr, &message), SQLITE_OK) << message;
  }
  sqlite3* open() {
    sqlite3* handle = nullptr;
    EXPECT_EQ(sqlite3_open(path_.c_str(), &handle), SQLITE_OK);
    return handle;
  }
  void make(const std::string& sql) {
    std::filesystem::remove(path_);
    sqlite3* handle = open();
    run(handle, kSchema + sql);
    sqlite3_close(handle);
  }
  static std::string row(const std::string& id, const std::string& in_ref) {
    SampleRef ref{.sample_id = SampleId(in_ref), .run_id = RunId("run")};
    ref.feature_store_uri = "disagg://st/" + in_ref;
    return "INSERT INTO committed VALUES ('" + id + "', '" + sample_ref_to_json(ref) + "');";
  }
  static std::string row(const std::string& id) { return row(id, id); }
  template <class E>
  std::string message_of() {
    try {
      read_reference_ledger(path_);
    } catch (const E& error) {
      return error.what();
    }
    return "nothing was thrown";
  }

  testing_support::TempFolder temp_;
  std::filesystem::path path_ = temp_.path() / "ledger ?mode=rwc.sqlite3";
};

TEST_F(ReferenceLedgerTest, ReadsInCommitOrderAndLeavesNoTrace) {
  make(row("b") + row("a") + row("c") +
       "INSERT INTO acked VALUES ('a'), ('b'); INSERT INTO marker VALUES ('global_step', '7'),"
       "('optimizer_durable', 'true');");
  const ReferenceLedger ledger = read_reference_ledger(path_);
  std::vector<std::string> ids;
  for (const SampleRef& ref : ledger.committed) ids.push_back(ref.sample_id.str());
  EXPECT_THAT(ids, ElementsAre("b", "a", "c"));
  EXPECT_THAT(ledger.acked, ElementsAre("a", "b"));
  EXPECT_EQ(ledger.global_step, 7);
  EXPECT_TRUE(ledger.optimizer_durable);
  EXPECT_EQ(temp_.list().size(), 1u);
}

TEST_F(ReferenceLedgerTest, SeesWhatIsInTheLogOfAWriterThatStillRuns) {
  make(row("a"));
  sqlite3* writer = open();
  run(writer, "PRAGMA wal_autocheckpoint=0;" + row("b"));
  EXPECT_EQ(read_reference_ledger(path_).committed.size(), 2u);
  sqlite3_close(writer);
}

TEST_F(ReferenceLedgerTest, ReadsTheLogOfAWriterThatWasKilledAndLeavesIt) {
  make(row("a"));
  sqlite3* writer = open();
  run(writer, "PRAGMA wal_autocheckpoint=0;" + row("b"));
  const std::string database = read_text_file(path_), log = read_text_file(path_.string() + "-wal");
  sqlite3_close(writer);
  path_ = temp_.path() / "killed.sqlite3";
  replace_file(path_, std::string_view(database));
  replace_file(path_.string() + "-wal", std::string_view(log));
  EXPECT_EQ(read_reference_ledger(path_).committed.size(), 2u);
  EXPECT_EQ(read_text_file(path_), database);
  EXPECT_EQ(read_text_file(path_.string() + "-wal"), log);
}

// In a process that is not root, whom no mode would stop.
TEST_F(ReferenceLedgerTest, AReadOnlyFolderWillDoUnlessThereIsALog) {
  make(row("a"));
  const auto read_as_stranger = [&] {
    std::filesystem::permissions(path_, std::filesystem::perms(0444));
    std::filesystem::permissions(temp_.path(), std::filesystem::perms(0555));
    const pid_t child = ::fork();
    if (child == 0) {
      if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(9);
      try {
        ::_exit(read_reference_ledger(path_).committed.size() == 1 ? 0 : 1);
      } catch (const PermissionDenied& error) {
        ::_exit(std::string(error.what()).find("copy both files elsewhere") != std::string::npos ? 2 : 3);
      } catch (...) {
        ::_exit(4);
      }
    }
    int status = -1;
    ::waitpid(child, &status, 0);
    std::filesystem::permissions(temp_.path(), std::filesystem::perms(0755));
    std::filesystem::permissions(path_, std::filesystem::perms(0644));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  };
  EXPECT_EQ(read_as_stranger(), 0);
  sqlite3* writer = open();
  run(writer, "PRAGMA wal_autocheckpoint=0;" + row("b"));
  const std::string log = read_text_file(path_.string() + "-wal");
  const std::string database = read_text_file(path_);
  sqlite3_close(writer);
  replace_file(path_, std::string_view(database));
  replace_file(path_.string() + "-wal", std::string_view(log));
  std::filesystem::permissions(path_.string() + "-wal", std::filesystem::perms(0444));
  EXPECT_EQ(read_as_stranger(), 2);
}

TEST_F(ReferenceLedgerTest, WithoutMarkersNothingIsDurable) {
  make(row("a") + "INSERT INTO marker VALUES ('global_step', 'null'), ('other', '1');");
  const ReferenceLedger ledger = read_reference_ledger(path_);
  EXPECT_EQ(ledger.global_step, std::nullopt);
  EXPECT_FALSE(ledger.optimizer_durable);
}

TEST_F(ReferenceLedgerTest, NamesWhatIsWrong) {
  EXPECT_THAT(message_of<NotFound>(), HasSubstr("no reference ledger"));
  make(row("a") + row("b", "x"));
  EXPECT_THAT(message_of<Corrupt>(), AllOf(HasSubstr("table 'committed', row 2"), HasSubstr("'x'"), HasSubstr("'b'")));
  make("INSERT INTO committed VALUES ('a', '{}');");
  EXPECT_THAT(message_of<Corrupt>(), HasSubstr("row 1"));
  make("DROP TABLE acked;");
  EXPECT_THAT(message_of<Corrupt>(), HasSubstr("acked"));
  make("INSERT INTO marker VALUES ('global_step', '-3');");
  EXPECT_THAT(message_of<Corrupt>(), HasSubstr("'global_step' is -3"));
  std::filesystem::resize_file(path_, 5000);
  EXPECT_THROW(read_reference_ledger(path_), Corrupt);
}

TEST_F(ReferenceLedgerTest, OfTheReferenceItself) {
  DRAFTFLOW_REQUIRE_REAL_DATA(real, "reference-store/ledger.sqlite3");
  const ReferenceLedger ledger = read_reference_ledger(real);
  EXPECT_EQ(ledger.committed.size(), 8u);
  EXPECT_THAT(ledger.acked, ElementsAre("stories:00000000", "stories:00000001", "stories:00000002"));
  EXPECT_EQ(ledger.global_step, 2);
  EXPECT_TRUE(ledger.optimizer_durable);
  EXPECT_FALSE(std::filesystem::exists(real.string() + "-shm"));
}

}  // namespace
}  // namespace draftflow
