// SPDX-License-Identifier: Apache-2.0
//
// What the calls of a long run cost on a real server: no statement of theirs scans a table, and a call looks at as many rows as
// it is about, however many lie behind. The tables are large and analyzed, as autovacuum keeps them, so that the planner has
// the choice that it has in a run. Nothing is switched off: with enable_seqscan = off it would find plans that no run gets.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "ledger/ledger_story.h"
#include "ledger/postgres/database.h"
#include "ledger/sql/recount.h"

namespace draftflow::postgres {
namespace {

using testing_support::make_ref;
using testing_support::make_task;
using testing_support::TestingServer;

// These have a row a group, a launch, a fact, a width of a partition, a kind of refs: they stay small whatever the run.
const std::set<std::string> kSmallTables{"consumer",     "fact", "ledger_version", "queue_width",
                                         "ref_template", "run",  "timeline"};
// These hold nothing but what is asked for, or what is leased just now, so they may be read from end to end.
const std::set<std::string> kExactIndexes{"prompt_pending", "prompt_failed", "prompt_holder",
                                          "prompt_expiry",  "sample_may_go", "sample_going"};
const GroupId kQueue("queue"), kTrain("train");
const HolderId kMe("me");
constexpr int kSamples = 20'480, kAcked = 17'000, kWindow = 16, kTrained = 800, kPrompts = 3'000, kFew = 16;

RefRequest asking(int max_refs, std::optional<Partition> partition = {}) {
  return {.group = kQueue, .holder = kMe, .max_refs = max_refs, .partition = partition};
}

class LongRun {
 public:
  explicit LongRun(TestingServer& server) : server_(server), url_(server.fresh_schema()) {
    {
      const auto past = open_postgres_ledger(url_, std::nullopt);
      make_past(*past);
    }
    // What is kept by a session is asked about: it must be that of the calls of a run alone.
    ledger_ = testing_support::as_sql(open_postgres_ledger(url_, std::nullopt));
    server_.ask("ANALYZE");
  }

  Database& database() { return dynamic_cast<Database&>(ledger_->database()); }

  using See = std::function<void(const std::string& call, const std::function<void()>& work)>;

  // Every call that a run makes again and again, each about kFew refs or prompts, or a window.
  void make_calls(const See& see) {
    SqlLedger& ledger = *ledger_;
    std::vector<PromptTask> tasks;
    for (int i = 0; i < kFew; ++i) tasks.push_back(make_task(fmt::format("n{:06}", next_++)));
    see("ingest_prompts", [&] { ledger.ingest_prompts(tasks, {}); });
    std::vector<PromptLease> prompts;
    see("lease_prompts", [&] { prompts = ledger.lease_prompts(kMe, kFew, 60'000).leases; });
    see("extend_lease", [&] { ledger.extend_lease(prompts.at(0), 600'000); });
    see("extend_leases", [&] { ledger.extend_leases(kMe, 60'000); });
    see("fail_prompt", [&] { ledger.fail_prompt(prompts.at(0), "why", true, 3); });
    const SampleRef ref = make_ref(prompts.at(1).task.task_id.str());
    see("commit_sample", [&] { ledger.commit_sample(ref, prompts.at(1)); });
    see("commit_sample, again", [&] { ledger.commit_sample(ref, prompts.at(1)); });
    see("return_leases", [&] { ledger.return_leases(kMe); });
    see("is_committed", [&] { ledger.is_committed(ref.sample_id); });
    see("get_committed", [&] { ledger.get_committed(ref.sample_id); });
    std::vector<SampleRef> refs;
    for (int i = 0; i < kFew; ++i) refs.push_back(make_ref(fmt::format("t{:06}", next_++)));
    see("commit_samples", [&] { ledger.commit_samples(refs, {}); });

    std::vector<RefLease> leases, more;
    see("lease_refs", [&] { leases = ledger.lease_refs(asking(kFew)).leases; });
    see("ack_refs", [&] { ledger.ack_refs(kQueue, leases); });
    see("ack_refs, again", [&] { ledger.ack_refs(kQueue, leases); });
    see("lease_refs of a partition", [&] { leases = ledger.lease_refs(asking(kFew, Partition{1, 2})).leases; });
    see("extend_refs", [&] { ledger.extend_refs(kQueue, kMe, 60'000); });
    see("fail_refs", [&] { ledger.fail_refs(kQueue, leases, "why", false); });
    see("retry_failed", [&] { ledger.retry_failed(kQueue, {leases.at(0).ref.sample_id}); });
    see("lease_refs, again", [&] { more = ledger.lease_refs(asking(kFew)).leases; });
    see("return_refs", [&] { ledger.return_refs(kQueue, kMe); });
    EXPECT_EQ(leases.size() + more.size(), std::size_t{2 * kFew});

    const TimelineInfo line =
        open_postgres_ledger(url_, std::nullopt)->open_timeline({.group = kTrain, .resume = mark()});  // once a launch
    see("read_window", [&] { EXPECT_TRUE(ledger.read_window(kTrain, line.number, window_, {}).window); });
    see("read_window, again", [&] { ledger.read_window(kTrain, line.number, window_, {}); });
    see("report_failed", [&] { ledger.report_failed(kTrain, line.number, window_, {}); });
    see("trained", [&] { ledger.trained(kTrain, line.number, window_, window_ + 1, {}); });
    ++window_;
    see("checkpointed", [&] { ledger.checkpointed(kTrain, line.number, window_); });
    timeline_ = line.number;
    std::vector<SampleId> gone;
    see("freeable", [&] {
      for (const SampleRef& one : ledger.freeable(kFew)) gone.push_back(one.sample_id);
    });
    EXPECT_FALSE(gone.empty());
    see("freed", [&] { ledger.freed(gone); });
    see("status", [&] { ledger.status(); });
  }

  // Rows and entries of indexes that the server has looked at for anybody, by its own count.
  std::int64_t looked_at() {
    database().find("SELECT COUNT(*) FROM (SELECT pg_stat_force_next_flush()) AS x");
    std::string small;
    for (const std::string& table : kSmallTables) small += fmt::format("{}'{}'", small.empty() ? "" : ", ", table);
    return std::stoll(server_.ask(fmt::format(
        "SELECT (SELECT SUM(seq_tup_read) FROM pg_stat_user_tables WHERE schemaname = '{0}' AND relname NOT IN ({1})) +"
        " (SELECT SUM(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = '{0}' AND relname NOT IN ({1}))",
        database().schema(), small)));
  }

 private:
  // Most of the refs are acked, trained, dropped, and freed.
  void make_past(Ledger& ledger) {
    const GroupId dropped("dropped");
    for (const GroupId& queue : {kQueue, dropped}) ledger.declare_group({.group = queue, .kind = GroupKind::kQueue});
    ledger.declare_group({.group = kTrain, .window = kWindow, .max_window_tokens = 10 * kWindow});  // of 10 tokens each
    std::vector<SampleRef> refs;
    for (int i = 0; i < kSamples; ++i) refs.push_back(make_ref(fmt::format("s{:06}", next_++)));
    ledger.commit_samples(refs, {});
    ledger.close_group(dropped);
    for (int acked = 0; acked < kAcked; acked += 1000) ledger.ack_refs(kQueue, ledger.lease_refs(asking(1000)).leases);
    ledger.fail_refs(kQueue, ledger.lease_refs(asking(500)).leases, "why", false);
    const TimelineInfo line = ledger.open_timeline({.group = kTrain});
    for (; window_ < kTrained; ++window_) {
      ledger.read_window(kTrain, line.number, window_, {});
      ledger.trained(kTrain, line.number, window_, window_ + 1, {});
      ledger.checkpointed(kTrain, line.number, window_ + 1);
    }
    ledger_id_ = line.ledger_id;
    std::vector<SampleId> gone;
    for (const SampleRef& ref : ledger.freeable(500)) gone.push_back(ref.sample_id);
    ledger.freed(gone);
    std::vector<PromptTask> tasks;
    for (int i = 0; i < kPrompts; ++i) tasks.push_back(make_task(fmt::format("p{:06}", next_++)));
    ledger.ingest_prompts(tasks, {});
    for (const PromptLease& lease : ledger.lease_prompts(HolderId("other"), 100, 600'000).leases) {
      ledger.commit_sample(make_ref(lease.task.task_id.str()), lease);
    }
  }

  CheckpointMark mark() const { return {.ledger_id = ledger_id_, .group = kTrain, .timeline = timeline_, .step = window_}; }

  TestingServer& server_;
  const std::string url_;
  std::unique_ptr<SqlLedger> ledger_;
  std::string ledger_id_;
  int next_ = 0;
  std::int64_t window_ = 0, timeline_ = 1;
};

void expect_no_scan(const nlohmann::json& plan, const std::string& sql) {
  const std::string node = plan.value("Node Type", ""), table = plan.value("Relation Name", "");
  const std::string index = plan.value("Index Name", "");
  if (node == "Seq Scan") {
    EXPECT_TRUE(kSmallTables.contains(table)) << "reads all of " << table << ": " << sql;
  }
  if (!index.empty() && !plan.contains("Index Cond") && !kSmallTables.contains(table)) {
    EXPECT_TRUE(kExactIndexes.contains(index)) << "reads all of " << index << ": " << sql;
  }
  for (const nlohmann::json& part : plan.value("Plans", nlohmann::json::array())) expect_no_scan(part, sql);
}

// The plans are the generic ones, for values that are not known: what the server falls back to whatever is asked.
TEST(PostgresPlans, NoStatementOfARunScansATable) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  LongRun run(server);
  run.make_calls([](const std::string&, const std::function<void()>& work) { work(); });
  Database& db = run.database();
  struct Kept {
    std::string name, sql;
    std::int64_t values = 0;
  };
  std::vector<Kept> all;
  {
    sql::Query found = db.query("SELECT name, statement, cardinality(parameter_types) FROM pg_prepared_statements");
    while (found.step()) all.push_back({found.text(0), found.text(1), found.integer(2)});
  }
  db.script("SET plan_cache_mode = force_generic_plan");
  int explained = 0;
  for (const Kept& kept : all) {
    if (kept.sql.find("pg_prepared_statements") != std::string::npos || kept.sql.find("pg_tables") != std::string::npos)
      continue;
    std::string values;
    for (int i = 0; i < kept.values; ++i) values += i == 0 ? "NULL" : ", NULL";
    sql::Query explain = db.query(
        fmt::format("EXPLAIN (FORMAT JSON) EXECUTE {}{}", kept.name, values.empty() ? "" : fmt::format("({})", values)));
    ASSERT_TRUE(explain.step()) << kept.sql;
    const auto plan = nlohmann::json::parse(explain.text(0));
    ASSERT_TRUE(plan.at(0).contains("Plan")) << kept.sql;
    expect_no_scan(plan.at(0).at("Plan"), kept.sql);
    ++explained;
  }
  EXPECT_GT(explained, 70);
}

// The plans that the server really took, by what they read.
TEST(PostgresPlans, ACallLooksAtNoMoreRowsThanItIsAbout) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  if (std::stoi(server.ask("SHOW server_version_num")) < 150000) GTEST_SKIP() << "before PostgreSQL 15 counts come late";
  LongRun run(server);
  const auto no_look = [](const std::string&, const std::function<void()>& work) { work(); };
  run.make_calls(no_look);  // the index of the partition is made
  run.make_calls([&](const std::string& call, const std::function<void()>& work) {
    const std::int64_t before = run.looked_at();
    work();
    const bool of_window = call.starts_with("read_window") || call == "trained" || call == "checkpointed";
    EXPECT_LE(run.looked_at() - before, 20 * (of_window ? kWindow : kFew) + 50) << call;
  });
}

}  // namespace
}  // namespace draftflow::postgres
