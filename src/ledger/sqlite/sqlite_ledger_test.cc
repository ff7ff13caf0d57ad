// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/random.h"
#include "draftflow/ledger/partition.h"
#include "ledger/export_testing.h"
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
        &Walk::ingest,    &Walk::lease,   &Walk::lease, &Walk::commit, &Walk::commit,      &Walk::commit,
        &Walk::fail,      &Walk::wait,    &Walk::leave, &Walk::deal,   &Walk::deal,        &Walk::train,
        &Walk::train,     &Walk::train,   &Walk::save,  &Walk::resume, &Walk::sweep,       &Walk::offline,
        &Walk::report,    &Walk::take,    &Walk::take,  &Walk::ack,    &Walk::ack,         &Walk::give_up,
        &Walk::hand_back, &Walk::prolong, &Walk::retry, &Walk::drop,   &Walk::drop_prompt, &Walk::retry_prompt};
    group_ = GroupId(names_[random_.below(names_.size())]);
    if (random_.below(400) == 0) join();
    if (random_.below(200) == 0 && names_.size() < 6) join_queue();
    if (names_.size() > 1 && random_.below(250) == 0) close_last();
    try {
      (this->*kActions[random_.below(kActions.size())])();
    } catch (const Error&) {
      ++refused_;
    }
  }

  SqlLedger& ledger() { return *ledger_; }
  int refused() const { return refused_; }
  // Everything is committed, and no more will come: later passes can begin.
  void end_stream() {
    ledger_->close_prompts();
    now_ms_ += 1'000'000;
    for (;;) {
      const PromptAnswer answer = ledger_->lease_prompts(HolderId("last"), 10, 1000);
      if (answer.leases.empty()) break;
      for (const PromptLease& lease : answer.leases) ledger_->commit_sample(make_ref(lease.task.task_id.str()), lease);
    }
  }
  // What a trainer does, with now and then a resume.
  void train_on() {
    group_ = GroupId(names_[random_.below(names_.size())]);
    try {
      const std::uint64_t draw = random_.below(40);
      if (draw == 0 || life().timeline == 0) return resume();
      if (draw < 8) return save();
      if (draw < 10) return sweep();
      for (int i = 0; i < 4; ++i) train_next();
    } catch (const Error&) {
      ++refused_;
    }
  }
  std::int64_t groups_in_later_passes() {
    return ledger_->database()
        .find("SELECT COUNT(*) FROM consumer WHERE pass_windows > 0 AND trained_windows > pass_windows")
        .value_or(0);
  }
  void finish() {
    end_stream();
    for (const std::string& name : names_) {
      group_ = GroupId(name);
      if (name.starts_with("queue")) {
        drain();
        continue;
      }
      try {
        open(std::nullopt);
        while (next().state == WindowState::kWindow) continue;
      } catch (const Error&) {  // closed, or nothing to train
        ++refused_;
      }
    }
  }
  // Until the stream ends, which it must.
  void drain() {
    if (!ledger_->status().of(group_).open) return;
    now_ms_ += 1'000'000;
    for (;;) {
      const QueueAnswer answer = ledger_->lease_refs({.group = group_, .max_refs = 50});
      if (answer.leases.empty()) {
        EXPECT_EQ(answer.state, QueueState::kEndOfStream);
        return;
      }
      ledger_->ack_refs(group_, answer.leases);
    }
  }
  std::size_t groups() const { return names_.size(); }
  std::int64_t lost() const { return lost_; }
  std::int64_t taken() const { return taken_; }
  std::int64_t acked() const { return acked_; }
  std::int64_t retried() const { return retried_; }
  std::int64_t dropped() const { return dropped_; }

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
                            .tail = random_.below(2) == 0 ? TailPolicy::kDrop : TailPolicy::kCarry,
                            .passes = static_cast<int>(1 + random_.below(3))});
  }
  void join_queue() {
    names_.push_back(fmt::format("queue{}", names_.size()));
    ledger_->declare_group(
        {.group = GroupId(names_.back()), .kind = GroupKind::kQueue, .max_attempts = static_cast<int>(1 + random_.below(3))});
  }
  void close_last() {
    ledger_->close_group(GroupId(names_.back()));
    desks_[names_.back()].out.clear();
  }

  // What the consumers of a queue know, to hold the ledger to it.
  struct Out {
    std::string holder;
    std::int64_t expires_ms = 0;
  };
  struct Desk {
    std::vector<RefLease> leases;    // of any age
    std::map<std::string, Out> out;  // by sample: leases that hold
    std::set<std::string> acked;
  };
  Desk& desk() { return desks_[group_.str()]; }
  std::string any_holder() { return fmt::format("h{}", random_.below(3)); }

  void take() {
    static constexpr int kWidths[] = {1, 2, 3, 4, 6, 42, 43, 64, 100};
    RefRequest request{.group = group_, .holder = HolderId(any_holder()), .max_refs = static_cast<int>(1 + random_.below(6))};
    request.lease_ms = static_cast<std::int64_t>(20 + random_.below(60));
    if (random_.below(4) == 0) request.max_tokens = static_cast<std::int64_t>(1 + random_.below(40));
    if (random_.below(2) == 0) {
      const int count = kWidths[random_.below(std::size(kWidths))];
      request.partition = Partition{static_cast<int>(random_.below(static_cast<std::uint64_t>(count))), count};
    }
    if (random_.below(40) == 0) request.partition = Partition{3, 3};
    const QueueAnswer answer = ledger_->lease_refs(request);
    EXPECT_EQ(answer.state == QueueState::kRefs, !answer.leases.empty());
    std::int64_t tokens = 0;
    for (const RefLease& lease : answer.leases) {
      const std::string& id = lease.ref.sample_id.str();
      tokens += lease.ref.num_tokens;
      EXPECT_FALSE(desk().acked.contains(id)) << id << " was acked and comes again";
      const auto held = desk().out.find(id);
      EXPECT_TRUE(held == desk().out.end() || held->second.expires_ms <= now_ms_) << id << " is leased twice";
      if (request.partition) {
        EXPECT_EQ(dp_partition(id, request.partition->count), request.partition->index);
      }
      desk().out[id] = {request.holder.str(), now_ms_ + request.lease_ms};
      desk().leases.push_back(lease);
      ++taken_;
    }
    EXPECT_TRUE(request.max_tokens == 0 || tokens <= request.max_tokens || answer.leases.size() == 1);
    if (answer.state == QueueState::kEndOfStream) {
      EXPECT_EQ(ledger_->status().of(group_).pinned, 0);
    }
  }
  // Of the newest leases a few, lost ones among them.
  std::vector<RefLease> some_leases() {
    const auto& all = desk().leases;
    if (all.empty()) throw NotFound("no lease of a ref");
    std::vector<RefLease> some;
    const std::size_t newest = all.size() - std::min<std::size_t>(all.size(), 12);
    for (std::uint64_t n = 1 + random_.below(4); n > 0; --n) some.push_back(all[newest + random_.below(all.size() - newest)]);
    if (random_.below(30) == 0) some.back().token = "none";
    return some;
  }
  void ack() {
    const std::vector<RefLease> some = some_leases();
    ledger_->ack_refs(group_, some);
    for (const RefLease& lease : some) {
      desk().out.erase(lease.ref.sample_id.str());
      acked_ += desk().acked.insert(lease.ref.sample_id.str()).second ? 1 : 0;
    }
  }
  void give_up() {
    const std::vector<RefLease> some = some_leases();
    const GroupStatus before = ledger_->status().of(group_);
    ledger_->fail_refs(group_, some, "because", random_.below(3) != 0);
    EXPECT_EQ(ledger_->status().of(group_).durable, before.durable);
    for (const RefLease& lease : some) {
      const std::string& id = lease.ref.sample_id.str();
      // Said before, its lease may be another's by now.
      const auto token = [&] {
        sql::Query found = ledger_->database().query(
            "SELECT q.token FROM queue_ref q JOIN sample s ON s.row = q.row JOIN consumer c ON c.id = q.consumer"
            " WHERE s.sample_id = ?1 AND c.name = ?2 AND q.state = 1",
            id, group_.str());
        return found.step() ? found.text(0) : std::string();
      };
      if (token().empty()) desk().out.erase(id);
    }
  }
  void hand_back() {
    const std::string holder = any_holder();
    ledger_->return_refs(group_, HolderId(holder));
    std::erase_if(desk().out, [&](const auto& one) { return one.second.holder == holder; });
  }
  void prolong() {
    const std::string holder = any_holder();
    ledger_->extend_refs(group_, HolderId(holder), 50);
    for (auto& [id, out] : desk().out) {
      if (out.holder == holder && out.expires_ms > now_ms_) out.expires_ms = now_ms_ + 50;
    }
  }
  void retry() {
    std::vector<SampleId> ids;
    for (const FailedSample& one : ledger_->failed_refs(group_, 3)) ids.push_back(one.sample_id);
    retried_ += ledger_->retry_failed(group_, ids);
  }
  void drop() {
    // Near the end of the books most are available.
    const std::int64_t committed = ledger_->status().committed;
    std::vector<SampleId> ids;
    for (int i = 0; i < 2 && committed > 8; ++i) {
      sql::Query found = ledger_->database().query("SELECT sample_id FROM sample WHERE row = ?1",
                                                   committed - 1 - static_cast<std::int64_t>(random_.below(8)));
      if (found.step()) ids.emplace_back(found.text(0));
    }
    dropped_ += ledger_->drop_refs(group_, ids, "by hand", random_.below(5) == 0);
    for (const RefLease& lease : desk().leases) {
      for (const SampleId& id : ids) {
        if (lease.ref.sample_id == id) desk().out.erase(id.str());  // its lease had run out, or the drop were refused
      }
    }
  }
  void drop_prompt() {
    ledger_->drop_prompts({TaskId(fmt::format("p{}", random_.below(400)))}, "by hand", random_.below(5) == 0);
    ledger_->leases();
  }
  void retry_prompt() {
    std::vector<TaskId> ids;
    for (const auto& [id, reason] : ledger_->failed_prompts(3)) ids.emplace_back(id);
    ledger_->retry_prompts(ids);
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
  void train_next() {
    life().next = ledger_->database().find("SELECT trained_windows FROM consumer WHERE name = ?1", group_.str()).value_or(0);
    const WindowAnswer answer = next();
    if (!answer.window) return;
    std::vector<FailedSample> failed;
    if (random_.below(5) == 0) failed.push_back({answer.window->refs[0].sample_id, "not finite"});
    ledger_->trained(group_, life().timeline, answer.window->number, ledger_->status().of(group_).trained_step + 1, failed);
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
  std::map<std::string, Desk> desks_;
  std::int64_t taken_ = 0, acked_ = 0, retried_ = 0, dropped_ = 0;
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
  std::int64_t lost = 0, timelines = 0, freed = 0, taken = 0, acked = 0, retried = 0, dropped = 0, later_passes = 0;
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Walk walk(seed);
    for (int i = 0; i < 1200; ++i) {
      walk.step();
      if (i % 20 == 0) testing_support::expect_books_balance(walk.ledger());
      if (::testing::Test::HasFailure()) FAIL() << "after action " << i;
    }
    walk.end_stream();
    for (int i = 0; i < 1200; ++i) {
      walk.train_on();
      if (i % 20 == 0) testing_support::expect_books_balance(walk.ledger());
      if (::testing::Test::HasFailure()) FAIL() << "after action " << i << " behind the stream's end";
    }
    testing_support::expect_books_balance(walk.ledger());
    later_passes += walk.groups_in_later_passes();
    const LedgerStatus status = walk.ledger().status();
    EXPECT_GT(status.committed, 20);
    timelines += status.groups[0].timeline;
    freed += status.freed;
    EXPECT_GT(walk.refused(), 10) << "the walk tried no wrong call";
    groups += walk.groups();
    lost += walk.lost();
    taken += walk.taken();
    acked += walk.acked();
    retried += walk.retried();
    dropped += walk.dropped();
    // As an export it is the same ledger.
    const testing_support::TempFolder folder;
    const auto other = open_sqlite_ledger(folder.path() / "other.sqlite3");
    const auto lines = testing_support::export_of(walk.ledger());
    testing_support::import_into(*other, lines);
    EXPECT_EQ(testing_support::export_of(*other), lines);
    EXPECT_THAT(other->check(), testing::IsEmpty());
  }
  EXPECT_GT(groups, 15u) << "hardly a group joined late";
  EXPECT_GT(timelines, 36);
  EXPECT_GT(freed, 60);
  EXPECT_GT(lost, 0) << "no resume lost samples";
  EXPECT_GT(acked, 100);
  EXPECT_GT(taken, acked + 100) << "hardly a lease was lost, failed or given back";
  EXPECT_GT(retried, 5);
  EXPECT_GT(dropped, 50);
  EXPECT_GT(later_passes, 2);
}

TEST(SqlLedger, ATailIsDroppedWithoutWhatALateGroupNeverHad) {
  const testing_support::TempFolder folder;
  const auto ledger = testing_support::as_sql(open_sqlite_ledger(folder.path() / "l.sqlite3"));
  const GroupId queue("queue"), late("late");
  ledger->declare_group({.group = queue, .kind = GroupKind::kQueue});
  ledger->commit_samples({make_ref("s0"), make_ref("s1"), make_ref("s2"), make_ref("s3")}, {});
  ledger->ack_refs(queue, {ledger->lease_refs({.group = queue, .max_refs = 4}).leases.back()});
  ASSERT_EQ(ledger->freeable(9).size(), 1u);  // s3 goes before the group joins
  ledger->close_prompts();
  ledger->declare_group({.group = late, .window = 2});
  const std::int64_t timeline = ledger->open_timeline({.group = late}).number;
  ASSERT_EQ(ledger->read_window(late, timeline, 0, {}).state, WindowState::kWindow);
  EXPECT_EQ(ledger->read_window(late, timeline, 1, {}).state, WindowState::kEndOfStream);
  EXPECT_EQ(ledger->status().of(late).dropped, 1);
  testing_support::expect_books_balance(*ledger);
}

// A query plan that reads a whole table would make an operation slower with every sample resident.
TEST(SqlLedger, NoStatementOfARunReadsAWholeTable) {
  Walk walk(5);
  for (int i = 0; i < 1200; ++i) walk.step();
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
  EXPECT_GT(statements.size(), 80U);
  int of_queues = 0, of_shards = 0;
  for (const std::string& sql : statements) {
    if (sql.starts_with("PRAGMA") || sql.find("sqlite_schema") != std::string::npos || sql == "BEGIN" ||
        sql == "BEGIN IMMEDIATE")
      continue;
    if (sql.find("FROM sample WHERE state < 2 ORDER BY row LIMIT 1") != std::string::npos)
      continue;  // once, when a group joins
    const std::string explain = "EXPLAIN QUERY PLAN " + sql;
    // A group is a row of consumer; a window is numbered after its rows are found.
    const bool deals = sql.starts_with("INSERT INTO window_ref");
    const bool sharded = sql.find("q.shard %") != std::string::npos;
    sql::Query plan = db.query(explain.c_str());
    while (plan.step()) {
      const std::string step = plan.text(3);
      // These indexes hold nothing but the rows that are asked for.
      const bool partial = testing::Matches(testing::MatchesRegex(
          "SCAN [a-z]+ USING (COVERING )?INDEX (prompt_pending|prompt_failed|prompt_holder|sample_may_go|sample_going)"))(step);
      // One row a width in use; the rows of a list are in the statement.
      if (step == "SCAN queue_width" || step.ends_with("CONSTANT ROWS")) continue;
      if (partial || step.starts_with("SCAN consumer") ||
          (deals && (step.starts_with("SCAN (subquery") || step == "SCAN next" || step == "USE TEMP B-TREE FOR ORDER BY"))) {
        continue;
      }
      EXPECT_THAT(step, testing::Not(testing::AnyOf(testing::StartsWith("SCAN"), testing::HasSubstr("TEMP B-TREE")))) << sql;
      if (step.starts_with("SEARCH q ") || step.starts_with("SEARCH queue_ref")) {
        EXPECT_THAT(step, testing::AnyOf(testing::HasSubstr("INDEX queue_"), testing::HasSubstr("row=?"))) << sql;
        ++of_queues;
        of_shards += sharded ? 1 : 0;
        if (sharded) {
          EXPECT_THAT(step, testing::HasSubstr("INDEX queue_shard_")) << sql;
        }
      }
    }
  }
  EXPECT_GT(of_queues, 15);
  EXPECT_GT(of_shards, 3);
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

TEST(SqlLedger, WhoOnlyReadsTellsLeasesOfAnEarlierBootAsEnded) {
  const testing_support::TempFolder folder;
  const auto path = folder.path() / "l.sqlite3";
  const auto ledger = open_sqlite_ledger(path, LedgerClock{"an earlier boot", [] { return std::int64_t{1} << 50; }});
  ledger->ingest_prompts({make_task("a")}, {});
  ledger->lease_prompts(HolderId("w"), 1, 1000);
  EXPECT_EQ(ledger->leases().at(0).expired, 0);
  const HolderLeases told = open_sqlite_ledger_read_only(path)->leases().at(0);
  EXPECT_EQ(told.count, 1);
  EXPECT_EQ(told.expired, 1);
  EXPECT_EQ(told.expires_in_ms, 0);
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
