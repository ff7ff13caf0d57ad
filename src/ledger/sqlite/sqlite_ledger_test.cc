// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/random.h"
#include "ledger/ledger_story.h"
#include "ledger/sql/recount.h"
#include "ledger/sql/sql_ledger.h"

namespace draftflow {
namespace {

using testing_support::expect_error;
using testing_support::make_ref;
using testing_support::make_task;

// Does whatever a run may do, in any order; wrong calls are part of it. Errors of the family are allowed, imbalance is not.
class Walk {
 public:
  explicit Walk(std::uint64_t seed) : random_(seed) {
    ledger_ = testing_support::as_sql(
        open_sqlite_ledger(folder_.path() / "l.sqlite3", LedgerClock{"boot", [this] { return now_ms_; }}));
    ledger_->database().script("PRAGMA synchronous = OFF");  // nothing here loses power
    ledger_->declare_group({.group = group_, .window = 3, .resumable_checkpoints = static_cast<int>(1 + random_.below(2))});
  }

  void step() {
    static const std::vector<void (Walk::*)()> kActions = {
        &Walk::ingest, &Walk::lease,  &Walk::lease, &Walk::commit,  &Walk::commit, &Walk::commit, &Walk::fail,
        &Walk::wait,   &Walk::leave,  &Walk::deal,  &Walk::deal,    &Walk::train,  &Walk::train,  &Walk::train,
        &Walk::save,   &Walk::resume, &Walk::sweep, &Walk::offline, &Walk::report};
    group_ = GroupId(names_[random_.below(names_.size())]);
    if (random_.below(400) == 0) join();
    if (names_.size() > 1 && random_.below(500) == 0) ledger_->close_group(GroupId(names_.back()));
    try {
      (this->*kActions[random_.below(kActions.size())])();
    } catch (const Error&) {
      ++refused_;
    }
  }

  SqlLedger& ledger() { return *ledger_; }
  int refused() const { return refused_; }
  void finish() {
    ledger_->close_prompts();
    now_ms_ += 1'000'000;
    for (;;) {
      const PromptAnswer answer = ledger_->lease_prompts(HolderId("last"), 10, 1000);
      if (answer.leases.empty()) break;
      for (const PromptLease& lease : answer.leases) ledger_->commit_sample(make_ref(lease.task.task_id.str()), lease);
    }
    for (const std::string& name : names_) {
      group_ = GroupId(name);
      try {
        open(std::nullopt);
        while (next().state == WindowState::kWindow) continue;
      } catch (const Error&) {  // closed, or nothing to train
        ++refused_;
      }
    }
  }
  std::size_t groups() const { return names_.size(); }
  std::int64_t lost() const { return lost_; }

 private:
  struct Life {
    std::int64_t timeline = 0, next = 0;
    int width = 1;
  };
  Life& life() { return lives_[group_.str()]; }
  WindowAnswer next() {
    Life& mine = life();
    const WindowShare share{.rank = static_cast<int>(random_.below(static_cast<std::uint64_t>(mine.width))),
                            .width = mine.width};
    WindowAnswer answer = ledger_->read_window(group_, mine.timeline, mine.next, share);
    mine.next += answer.window ? 1 : 0;
    return answer;
  }
  void join() {
    names_.push_back(fmt::format("late{}", names_.size()));
    const int window = static_cast<int>(1 + random_.below(4));
    ledger_->declare_group({.group = GroupId(names_.back()),
                            .window = window,
                            .tail = random_.below(2) == 0 ? TailPolicy::kDrop : TailPolicy::kCarry});
  }
  void report() {
    Life& mine = life();
    const WindowAnswer answer = ledger_->read_window(group_, mine.timeline, mine.next > 0 ? mine.next - 1 : 0, {0, mine.width});
    if (answer.window)
      ledger_->report_failed(group_, mine.timeline, answer.window->number, {{answer.window->refs[0].sample_id, "?"}});
  }
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
  void deal() { next(); }
  void train() {
    const GroupStatus status = ledger_->status().of(group_);
    const std::int64_t first =
        ledger_->database().find("SELECT trained_windows FROM consumer WHERE name = ?1", group_.str()).value_or(0);
    std::vector<FailedSample> failed;
    const WindowAnswer answer = next();
    if (answer.window && random_.below(3) == 0)
      failed.push_back({answer.window->refs[random_.below(answer.window->refs.size())].sample_id, "not finite"});
    const std::int64_t window = first + (random_.below(8) == 0 ? 1 : 0);
    ledger_->trained(group_, life().timeline, window, status.trained_step + 1 + static_cast<std::int64_t>(random_.below(2)),
                     failed);
  }
  void save() {
    const std::int64_t step = ledger_->status().of(group_).trained_step - static_cast<std::int64_t>(random_.below(3));
    ledger_->checkpointed(group_, life().timeline, step);
    marks_[group_.str()].push_back({ledger_->id(), group_, life().timeline, step});
  }
  void open(const std::optional<CheckpointMark>& mark) {
    const int width = static_cast<int>(1 + random_.below(3));
    const TimelineInfo info =
        ledger_->open_timeline({.group = group_, .resume = mark, .width = width, .accept_loss = random_.below(3) == 0});
    life() = {.timeline = info.number, .next = info.first_window, .width = width};
    lost_ += info.lost;
  }
  void resume() {
    if (life().timeline == 0 || random_.below(8) == 0) return open(std::nullopt);
    const auto& marks = marks_[group_.str()];
    if (!marks.empty()) open(marks[marks.size() - 1 - random_.below(std::min<std::size_t>(marks.size(), 4))]);
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
  std::vector<std::string> names_{"train"};
  GroupId group_{"train"};
  std::map<std::string, Life> lives_;
  std::int64_t lost_ = 0;
  Random random_;
  std::int64_t now_ms_ = 1;
  int refused_ = 0;
  std::vector<PromptLease> leases_;
  std::map<std::string, std::vector<CheckpointMark>> marks_;
  std::unique_ptr<SqlLedger> ledger_;
};

TEST(SqlLedger, CountersEqualARecountAfterAnyWalk) {
  std::size_t groups = 0;
  std::int64_t lost = 0, timelines = 0, freed = 0;
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
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
    timelines += status.groups[0].timeline;
    freed += status.freed;
    EXPECT_GT(walk.refused(), 10) << "the walk tried no wrong call";
    groups += walk.groups();
    lost += walk.lost();
  }
  EXPECT_GT(groups, 15u) << "hardly a group joined late";
  EXPECT_GT(timelines, 36);
  EXPECT_GT(freed, 60);
  EXPECT_GT(lost, 0) << "no resume lost samples";
}

// A query plan that reads a whole table would make an operation slower with every sample resident.
TEST(SqlLedger, NoStatementOfARunReadsAWholeTable) {
  Walk walk(3);
  for (int i = 0; i < 800; ++i) walk.step();
  try {
    walk.finish();
  } catch (const InvalidArgument&) {  // what is freed cannot be trained again: fine here
  }
  SqlLedger& ledger = walk.ledger();
  ledger.failed_prompts(3);
  ledger.extend_leases(HolderId("h"), 5);
  ledger.declare("a", "b");
  ledger.status();
  sql::Database& db = ledger.database();
  const std::vector<std::string> statements = db.cached_sql();
  EXPECT_GT(statements.size(), 50U);
  for (const std::string& sql : statements) {
    if (sql.starts_with("PRAGMA") || sql.find("sqlite_schema") != std::string::npos || sql == "BEGIN" ||
        sql == "BEGIN IMMEDIATE")
      continue;
    if (sql.find("FROM sample WHERE state < 2 ORDER BY row LIMIT 1") != std::string::npos)
      continue;  // once, when a group joins
    const std::string explain = "EXPLAIN QUERY PLAN " + sql;
    // A group is a row of consumer; a window is numbered after its rows are found.
    const bool deals = sql.starts_with("INSERT INTO window_ref");
    sql::Query plan = db.query(explain.c_str());
    while (plan.step()) {
      const std::string step = plan.text(3);
      // These indexes hold nothing but the rows that are asked for.
      const bool partial = testing::Matches(testing::MatchesRegex(
          "SCAN [a-z]+ USING (COVERING )?INDEX (prompt_pending|prompt_failed|sample_may_go|sample_going)"))(step);
      if (partial || step.starts_with("SCAN consumer") ||
          (deals && (step.starts_with("SCAN (subquery") || step == "SCAN next" || step == "USE TEMP B-TREE FOR ORDER BY"))) {
        continue;
      }
      EXPECT_THAT(step, testing::Not(testing::AnyOf(testing::StartsWith("SCAN"), testing::HasSubstr("TEMP B-TREE")))) << sql;
    }
  }
}

TEST(SqlLedger, AReadOnlyLedgerReadsAndNeverWrites) {
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

TEST(SqlLedger, TheFileIsPrivateToUserAndGroup) {
  const testing_support::TempFolder folder;
  const auto ledger = open_sqlite_ledger(folder.path() / "l.sqlite3");
  ledger->close_prompts();
  for (const char* name : {"l.sqlite3", "l.sqlite3-wal", "l.sqlite3-shm", "l.sqlite3.lock"}) {
    struct stat status {};
    ASSERT_EQ(::stat((folder.path() / name).c_str(), &status), 0) << name;
    EXPECT_EQ(status.st_mode & 07, 0U) << name;
  }
}

TEST(SqlLedger, ADeletedLockFileDoesNoHarm) {
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
