// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/sqlite_ledger.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/random.h"
#include "ledger/ledger_story.h"
#include "ledger/sqlite/recount.h"

namespace draftflow {
namespace {

using testing_support::expect_error;
using testing_support::make_ref;
using testing_support::make_task;

// Does whatever a run may do, in any order; wrong calls are part of it. Errors of the family are allowed, imbalance is not.
class Walk {
 public:
  explicit Walk(std::uint64_t seed) : random_(seed) {
    ledger_ = std::make_unique<SqliteLedger>(folder_.path() / "l.sqlite3", LedgerClock{"boot", [this] { return now_ms_; }},
                                             sqlite::Database::Mode::kReadWrite);
    ledger_->database().script("PRAGMA synchronous = OFF");  // nothing here loses power
    ledger_->declare_group({.group = group_, .window = 3, .resumable_checkpoints = static_cast<int>(1 + random_.below(2))});
  }

  void step() {
    static const std::vector<void (Walk::*)()> kActions = {
        &Walk::ingest, &Walk::lease, &Walk::lease, &Walk::commit, &Walk::commit, &Walk::commit,
        &Walk::fail,   &Walk::wait,  &Walk::leave, &Walk::deal,   &Walk::deal,   &Walk::train,
        &Walk::train,  &Walk::train, &Walk::save,  &Walk::resume, &Walk::sweep,  &Walk::offline};
    try {
      (this->*kActions[random_.below(kActions.size())])();
    } catch (const Error&) {
      ++refused_;
    }
  }

  SqliteLedger& ledger() { return *ledger_; }
  int refused() const { return refused_; }
  void finish() {
    ledger_->close_prompts();
    now_ms_ += 1'000'000;
    for (;;) {
      const PromptAnswer answer = ledger_->lease_prompts(HolderId("last"), 10, 1000);
      if (answer.leases.empty()) break;
      for (const PromptLease& lease : answer.leases) ledger_->commit_sample(make_ref(lease.task.task_id.str()), lease);
    }
    open(std::nullopt);
    while (ledger_->next_window(group_, timeline_).state == WindowState::kWindow) continue;
  }

 private:
  void ingest() {
    std::vector<PromptTask> tasks;
    for (int i = 0; i < 4; ++i) tasks.push_back(make_task(fmt::format("p{}", random_.below(400))));
    ledger_->ingest_prompts(tasks, {});
  }
  void lease() {
    const PromptAnswer answer = ledger_->lease_prompts(HolderId(fmt::format("h{}", random_.below(3))), 3, 50);
    leases_.insert(leases_.end(), answer.leases.begin(), answer.leases.end());
  }
  const PromptLease& any_lease() {
    if (leases_.empty()) throw NotFound("no lease");
    return leases_[leases_.size() - 1 - random_.below(std::min<std::size_t>(leases_.size(), 8))];
  }
  void commit() {
    const PromptLease& lease = any_lease();
    ledger_->commit_sample(make_ref(lease.task.task_id.str(), 1 + random_.below(3), 50 + random_.below(50)), lease);
  }
  void fail() { ledger_->fail_prompt(any_lease(), "because", random_.below(2) == 0, 2); }
  void wait() { now_ms_ += static_cast<std::int64_t>(random_.below(40)); }
  void leave() { ledger_->return_leases(HolderId(fmt::format("h{}", random_.below(3)))); }
  void deal() { ledger_->next_window(group_, timeline_); }
  void train() {
    const LedgerStatus status = ledger_->status();
    const std::int64_t next = ledger_->database().find("SELECT trained_windows FROM consumer WHERE id = 1").value_or(0);
    std::vector<FailedSample> failed;
    const WindowAnswer answer = ledger_->next_window(group_, timeline_);
    if (answer.window && random_.below(3) == 0)
      failed.push_back({answer.window->refs[random_.below(3)].sample_id, "not finite"});
    const std::int64_t window = next + (random_.below(8) == 0 ? 1 : 0);
    ledger_->trained(group_, timeline_, window, status.trained_step + 1 + static_cast<std::int64_t>(random_.below(2)), failed);
  }
  void save() {
    const LedgerStatus status = ledger_->status();
    const std::int64_t step = status.trained_step - static_cast<std::int64_t>(random_.below(3));
    ledger_->checkpointed(group_, timeline_, step);
    marks_.push_back({ledger_->id(), group_, timeline_, step});
  }
  void open(const std::optional<CheckpointMark>& mark) { timeline_ = ledger_->open_timeline(group_, mark).number; }
  void resume() {
    if (random_.below(8) == 0) return open(std::nullopt);
    if (!marks_.empty()) open(marks_[marks_.size() - 1 - random_.below(std::min<std::size_t>(marks_.size(), 4))]);
  }
  void sweep() {
    std::vector<SampleId> ids;
    for (const SampleRef& ref : ledger_->freeable(5)) ids.push_back(ref.sample_id);
    if (random_.below(4) != 0) ledger_->freed(ids);
  }
  void offline() {
    SampleRef ref = make_ref(fmt::format("file{}", random_.below(1000)));
    ref.feature_store_uri = "file:///x";
    if (random_.below(4) == 0) ledger_->commit_samples({ref}, {{{static_cast<std::int64_t>(random_.below(9)), 1, 0}}});
  }

  const testing_support::TempFolder folder_;
  const GroupId group_{"train"};
  Random random_;
  std::int64_t now_ms_ = 1;
  std::int64_t timeline_ = 0;
  int refused_ = 0;
  std::vector<PromptLease> leases_;
  std::vector<CheckpointMark> marks_;
  std::unique_ptr<SqliteLedger> ledger_;
};

TEST(SqliteLedger, CountersEqualARecountAfterAnyWalk) {
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Walk walk(seed);
    for (int i = 0; i < 600; ++i) {
      walk.step();
      if (i % 20 == 0) testing_support::expect_books_balance(walk.ledger());
      if (::testing::Test::HasFailure()) FAIL() << "after action " << i;
    }
    testing_support::expect_books_balance(walk.ledger());
    const LedgerStatus status = walk.ledger().status();
    EXPECT_GT(status.committed, 20);
    EXPECT_GT(status.timeline, 3);
    EXPECT_GT(status.freed, 0) << "the walk never came to free anything";
    EXPECT_GT(walk.refused(), 10) << "the walk tried no wrong call";
  }
}

// A query plan that reads a whole table would make an operation slower with every sample resident.
TEST(SqliteLedger, NoStatementOfARunReadsAWholeTable) {
  Walk walk(3);
  for (int i = 0; i < 800; ++i) walk.step();
  try {
    walk.finish();
  } catch (const InvalidArgument&) {  // what is freed cannot be trained again: fine here
  }
  SqliteLedger& ledger = walk.ledger();
  ledger.failed_prompts(3);
  ledger.extend_leases(HolderId("h"), 5);
  ledger.declare("a", "b");
  ledger.status();
  sqlite::Database& db = ledger.database();
  const std::vector<std::string> statements = db.cached_sql();
  EXPECT_GT(statements.size(), 50U);
  for (const std::string& sql : statements) {
    if (sql.starts_with("PRAGMA") || sql.find("sqlite_schema") != std::string::npos || sql == "BEGIN" ||
        sql == "BEGIN IMMEDIATE")
      continue;
    const std::string explain = "EXPLAIN QUERY PLAN " + sql;
    sqlite::Query plan = db.query(explain.c_str());
    while (plan.step()) {
      EXPECT_THAT(plan.text(3), testing::Not(testing::AnyOf(testing::StartsWith("SCAN"), testing::HasSubstr("TEMP B-TREE"))))
          << sql;
    }
  }
}

TEST(SqliteLedger, AReadOnlyLedgerReadsAndNeverWrites) {
  const testing_support::TempFolder folder;
  const auto path = folder.path() / "deep" / "l.sqlite3";
  expect_error<NotFound>([&] { open_sqlite_ledger_read_only(path); }, path.string());
  auto ledger = open_sqlite_ledger(path);
  ledger->ingest_prompts({make_task("a")}, {});
  auto reader = open_sqlite_ledger_read_only(path);
  EXPECT_EQ(reader->status().prompts, 1);
  EXPECT_EQ(reader->id(), ledger->id());
  EXPECT_EQ(reader->declared("run_id"), "run");
  expect_error<PermissionDenied>([&] { reader->close_prompts(); }, "was opened read-only");
  ledger->ingest_prompts({make_task("b")}, {});
  EXPECT_EQ(reader->status().prompts, 2);
  ledger.reset();
  reader.reset();
  EXPECT_EQ(open_sqlite_ledger_read_only(path)->status().prompts, 2);
}

TEST(SqliteLedger, TheFileIsPrivateToUserAndGroup) {
  const testing_support::TempFolder folder;
  const auto ledger = open_sqlite_ledger(folder.path() / "l.sqlite3");
  ledger->close_prompts();
  for (const char* name : {"l.sqlite3", "l.sqlite3-wal", "l.sqlite3-shm", "l.sqlite3.lock"}) {
    struct stat status {};
    ASSERT_EQ(::stat((folder.path() / name).c_str(), &status), 0) << name;
    EXPECT_EQ(status.st_mode & 07, 0U) << name;
  }
}

TEST(SqliteLedger, ADeletedLockFileDoesNoHarm) {
  const testing_support::TempFolder folder;
  auto first = open_sqlite_ledger(folder.path() / "l.sqlite3");
  std::filesystem::remove(folder.path() / "l.sqlite3.lock");
  auto second = open_sqlite_ledger(folder.path() / "l.sqlite3");
  for (int i = 0; i < 20; ++i) {
    first->ingest_prompts({make_task(fmt::format("a{}", i))}, {});
    second->ingest_prompts({make_task(fmt::format("b{}", i))}, {});
  }
  EXPECT_EQ(first->status().prompts, 40);
}

}  // namespace
}  // namespace draftflow
