// SPDX-License-Identifier: Apache-2.0
//
// draftflow ledger and the leases of draftflow status, over a real ledger and a real store.
#include <fmt/format.h>
#include <sqlite3.h>
#include <sys/wait.h>

#include <cstdlib>

#include "cli/stop.h"
#include "cli/store_command_testing.h"
#include "draftflow/base/error.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

class LedgerCommand : public StoreCommand {
 protected:
  std::string file(const std::string& name = "ledger.sqlite3") const { return (temp_.path() / name).string(); }
  std::unique_ptr<Ledger> ledger() const { return open_sqlite_ledger(file()); }
  // Past the ledger.
  static void damage(const std::string& path, const std::string& sql) {
    sqlite3* handle = nullptr;
    ASSERT_EQ(sqlite3_open(path.c_str(), &handle), SQLITE_OK);
    EXPECT_EQ(sqlite3_exec(handle, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(handle);
    sqlite3_close(handle);
  }
  static PromptTask task(const std::string& id) {
    return {.task_id = TaskId(id), .run_id = RunId("run"), .source_id = "x:1", .payload = R"({"text":"once"})"};
  }
  // Four samples; a queue that has failed s1 and leased s2; two failed prompts and a pending one.
  void fill() {
    std::vector<SampleRef> refs;
    for (int i = 0; i < 4; ++i) refs.push_back(put(fmt::format("s{}", i)));
    const auto books = ledger();
    books->commit_samples(refs, {});
    books->declare_group({.group = queue_, .kind = GroupKind::kQueue});
    const auto leases = books->lease_refs({.group = queue_, .holder = HolderId("c"), .max_refs = 3}).leases;
    books->ack_refs(queue_, {leases[0]});
    books->fail_refs(queue_, {leases[1]}, "unreadable", false);
    books->ingest_prompts({task("a"), task("b"), task("p")}, {});
    for (const PromptLease& one : books->lease_prompts(HolderId("w"), 2, 60'000).leases) {
      books->fail_prompt(one, "bad text", false, 1);
    }
  }
  GroupStatus queue_status() const { return ledger()->status().of(queue_); }

  const GroupId queue_{"scores"};
};

TEST_F(LedgerCommand, EachHasHelpWithAnExample) {
  for (const std::string name : {"check", "export", "import", "retry", "drop"}) {
    const Outcome help = run({"ledger", name, "--help"});
    EXPECT_EQ(help.code, 0);
    EXPECT_THAT(help.out, HasSubstr("Example:\n  draftflow ledger " + name + " "));
    const Outcome missing = run({"ledger", name});
    EXPECT_EQ(missing.code, 2);
    EXPECT_THAT(missing.err, StartsWith("draftflow ledger " + name + ": InvalidArgument: "));
  }
  for (const std::string name : {"check", "export"}) {
    EXPECT_EQ(run({"ledger", name, file("none")}).code, 3);
  }
  EXPECT_EQ(run({"ledger", "retry", file("none"), "--all"}).code, 3);
  EXPECT_EQ(run({"ledger", "drop", file("none"), "x"}).code, 3);
  EXPECT_FALSE(std::filesystem::exists(file("none"))) << "a name that is spelt wrong makes no ledger";
}

TEST_F(LedgerCommand, CheckSaysThatTheBooksBalance) {
  fill();
  const Outcome outcome = run({"ledger", "check", file()});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "the books balance: 3 prompts, 4 samples, 1 groups\n");
  const Outcome both = run({"ledger", "check", temp_.path().string(), "--store", path(), "--json"});
  EXPECT_EQ(both.code, 0) << both.err;
  EXPECT_THAT(nlohmann::json::parse(both.out)["findings"], IsEmpty());
}

TEST_F(LedgerCommand, CheckNamesWhatDoesNotFitAndExitsWith7) {
  fill();
  damage(file(), "UPDATE run SET prompts_pending = 9; UPDATE consumer SET acked = 3");
  const Outcome outcome = run({"ledger", "check", file()});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.out, HasSubstr("wrong  prompts pending: the counter says 9, the rows 1\n"));
  EXPECT_THAT(outcome.out, HasSubstr("wrong  queue 'scores': acked: the counter says 3, the rows 1\n"));
  EXPECT_THAT(outcome.err, HasSubstr("draftflow ledger check: Corrupt: 2 things do not fit in ledger "));
  const Outcome json = run({"ledger", "check", file(), "--json"});
  EXPECT_EQ(nlohmann::json::parse(json.out)["findings"].size(), 2u);
  EXPECT_EQ(json.code, 7);
}

TEST_F(LedgerCommand, CheckNamesLostBytesAndAnotherStore) {
  fill();
  store()->remove(store()->find(SampleId("s3"), std::nullopt));
  const Outcome lost = run({"ledger", "check", file(), "--store", path()});
  EXPECT_EQ(lost.code, 7);
  EXPECT_THAT(lost.out, HasSubstr("wrong  1 committed samples are not in the store"));
  EXPECT_THAT(lost.out, HasSubstr("sample 's3' generation"));
  ledger()->declare("store", "elsewhere/0123");
  EXPECT_THAT(run({"ledger", "check", file(), "--store", path()}).out, HasSubstr("has its samples in store elsewhere/0123"));
}

TEST_F(LedgerCommand, CheckFindsDamagedPages) {
  fill();
  damage(file(), "PRAGMA wal_checkpoint(TRUNCATE)");
  damage(file(),
         "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name"
         " = 'prompt_failed') WHERE name = 'sample_may_go'");
  const Outcome outcome = run({"ledger", "check", file()});
  EXPECT_EQ(outcome.code, 7) << outcome.out << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("wrong  the database's own check: "));
}

TEST_F(LedgerCommand, AnExportMakesTheSameLedgerElsewhere) {
  fill();
  const Outcome out = run({"ledger", "export", file()});
  EXPECT_EQ(out.code, 0) << out.err;
  EXPECT_THAT(out.out, StartsWith("{\"kind\":\"ledger\",\"version\":1,\"ledger_id\":\"" + ledger()->id()));
  replace_file(temp_.path() / "e.jsonl", out.out);
  const Outcome in = run({"ledger", "import", file("copy.sqlite3"), "--from", file("e.jsonl")});
  EXPECT_EQ(in.code, 0) << in.err;
  EXPECT_EQ(in.out, fmt::format("imported ledger {} of run 'run': 3 prompts, 4 samples, 1 groups\n", ledger()->id()));
  EXPECT_EQ(run({"ledger", "export", file("copy.sqlite3")}).out, out.out);
  EXPECT_EQ(run({"ledger", "check", file("copy.sqlite3"), "--store", path()}).code, 0);
  const Outcome again = run({"ledger", "import", file("copy.sqlite3"), "--from", file("e.jsonl")});
  EXPECT_EQ(again.code, 6);
  EXPECT_THAT(again.err, HasSubstr("is not empty: it is ledger " + ledger()->id()));
}

TEST_F(LedgerCommand, AnExportGoesThroughAPipe) {
  fill();
  const std::string program = std::string("'") + DRAFTFLOW_BINARY_DIR + "/bin/draftflow' ledger ";
  const std::string out = program + "export '" + file() + "'";
  EXPECT_EQ(std::system((out + " | " + program + "import '" + file("copy.sqlite3") + "' --from - > /dev/null").c_str()), 0);
  EXPECT_EQ(run({"ledger", "export", file("copy.sqlite3")}).out, run({"ledger", "export", file()}).out);
  EXPECT_EQ(WEXITSTATUS(std::system((out + " > /dev/full 2> /dev/null").c_str())), 5);
  stop_flag() = true;
  const Outcome stopped = run({"ledger", "export", file()});
  replace_file(temp_.path() / "e.jsonl", "{}\n");
  const Outcome stopped_too = run({"ledger", "import", file("new.sqlite3"), "--from", file("e.jsonl")});
  stop_flag() = false;
  EXPECT_EQ(stopped.code, 130);
  EXPECT_EQ(stopped_too.code, 130);
}

TEST_F(LedgerCommand, AnExportThatIsCutShortOrNotThereIsRefused) {
  fill();
  const std::string whole = run({"ledger", "export", file()}).out;
  replace_file(temp_.path() / "e.jsonl", whole.substr(0, whole.size() / 2));
  const Outcome cut = run({"ledger", "import", file("copy.sqlite3"), "--from", file("e.jsonl")});
  EXPECT_EQ(cut.code, 7);
  EXPECT_THAT(cut.err, HasSubstr("nothing was imported"));
  EXPECT_EQ(open_sqlite_ledger_read_only(file("copy.sqlite3"))->status().committed, 0);
  EXPECT_EQ(run({"ledger", "import", file("copy.sqlite3"), "--from", file("nothing")}).code, 3);
  const Outcome ours = run({"ledger", "import", file("copy.sqlite3"), "--from", file()});
  EXPECT_EQ(ours.code, 2);
  EXPECT_THAT(ours.err, HasSubstr("is a ledger of draftflow: export it"));
}

TEST_F(LedgerCommand, AReferencesLedgerIsTakenOver) {
  std::string committed;
  for (int i = 0; i < 4; ++i) {
    const SampleRef ref = put(fmt::format("s{}", i));
    committed += fmt::format("INSERT INTO committed VALUES ('s{}', '{}');", i, sample_ref_to_json(ref));
  }
  const std::string tables =
      "CREATE TABLE committed(sample_id TEXT PRIMARY KEY, ref_json TEXT NOT NULL); CREATE TABLE acked(sample_id TEXT PRIMARY "
      "KEY);"
      "CREATE TABLE marker(k TEXT PRIMARY KEY, v TEXT);" +
      committed + "INSERT INTO acked VALUES ('s2'), ('s0'), ('stranger'); INSERT INTO marker VALUES ('global_step', '3'),";
  damage(file("durable"), tables + "('optimizer_durable', 'true')");
  damage(file("lost"), tables + "('optimizer_durable', 'false')");
  const Outcome in = run({"ledger", "import", file(), "--from", file("durable")});
  EXPECT_EQ(in.code, 0) << in.err;
  EXPECT_THAT(in.out, HasSubstr("4 samples, 1 groups; of the reference's samples 2 wait and 2 are done with\n"));
  const auto taken = ledger();
  EXPECT_THAT(taken->check(), IsEmpty());
  EXPECT_THAT(taken->trained_ids(GroupId("reference")), ElementsAre("s0", "s2"));
  EXPECT_EQ(taken->status().resident_bytes, 2 * 36u);
  taken->declare_group({.group = queue_, .kind = GroupKind::kQueue});
  std::vector<std::string> ids;
  for (const RefLease& one : taken->lease_refs({.group = queue_, .max_refs = 9}).leases) {
    ids.push_back(one.ref.sample_id.str());
    EXPECT_FALSE(store()->read(one.ref).empty()) << "the bytes stay where they are";
  }
  EXPECT_THAT(ids, ElementsAre("s1", "s3"));
  EXPECT_THAT(taken->freeable(9), IsEmpty());
  const Outcome all = run({"ledger", "import", file("all.sqlite3"), "--from", file("lost")});
  EXPECT_THAT(all.out, HasSubstr("4 wait and 0 are done with")) << "acked, and in no checkpoint";
}

TEST_F(LedgerCommand, RetryGivesFailedRefsAnotherChance) {
  fill();
  const Outcome dry = run({"ledger", "retry", file(), "--all", "--dry-run"});
  EXPECT_EQ(dry.code, 0) << dry.err;
  EXPECT_EQ(dry.out, "s1: unreadable\nsamples that would be available again, where their bytes are there: 1\n");
  EXPECT_EQ(queue_status().failed, 1);
  const Outcome named = run({"ledger", "retry", file(), "--group", "scores", "s1", "s3"});
  EXPECT_EQ(named.out, "samples available again: 1\n");
  EXPECT_EQ(named.err, "not failed, left as it is: s3\n");
  EXPECT_EQ(queue_status().failed, 0);
  EXPECT_EQ(run({"ledger", "retry", file(), "--all"}).out, "samples available again: 0\n");
  EXPECT_THAT(run({"ledger", "retry", file()}).err, HasSubstr("nothing is named: give ids, or --all"));
  EXPECT_THAT(run({"ledger", "retry", file(), "--all", "s1"}).err, HasSubstr("ids beside --all"));
  ledger()->declare_group({.group = GroupId("more"), .kind = GroupKind::kQueue});
  EXPECT_THAT(run({"ledger", "retry", file(), "--all"}).err,
              HasSubstr("the ledger has 2 open queues: scores, more; name one with --group"));
}

TEST_F(LedgerCommand, RetryGivesFailedPromptsAnotherChance) {
  fill();
  EXPECT_EQ(run({"ledger", "retry", file(), "--prompts", "--all", "--dry-run"}).out,
            "a: bad text\nb: bad text\nprompts that would be pending again: 2\n");
  const Outcome json = run({"ledger", "retry", file(), "--prompts", "b", "--json"});
  EXPECT_EQ(nlohmann::json::parse(json.out)["changed"], 1);
  EXPECT_EQ(ledger()->status().prompts_pending, 2);
  EXPECT_EQ(run({"ledger", "retry", file(), "--prompts", "--all"}).out, "prompts pending again: 1\n");
  EXPECT_EQ(ledger()->status().prompts_failed, 0);
  EXPECT_EQ(run({"ledger", "retry", file(), "--prompts", "--group", "scores", "--all"}).code, 2);
}

TEST_F(LedgerCommand, DropTakesWhatIsAvailableAndRefusesTheRestByName) {
  fill();
  EXPECT_EQ(run({"ledger", "drop", file(), "s3", "--dry-run"}).out, "samples that would be dropped: 1\n");
  EXPECT_EQ(queue_status().dropped, 0);
  const Outcome leased = run({"ledger", "drop", file(), "s3", "s2"});
  EXPECT_EQ(leased.code, 6);
  EXPECT_THAT(leased.err, HasSubstr("sample 's2' of group 'scores' is leased to 'c': nothing was dropped"));
  EXPECT_EQ(run({"ledger", "drop", file(), "--group", "scores", "s3", "--reason", "wrong language"}).out,
            "samples dropped: 1\n");
  EXPECT_EQ(queue_status().dropped, 1);
  EXPECT_THAT(run({"ledger", "export", file()}).out, HasSubstr("{\"state\":\"dropped\",\"reason\":\"wrong language\"}"));
  EXPECT_EQ(run({"ledger", "drop", file(), "s3"}).out, "samples dropped: 0\n");
  EXPECT_EQ(run({"ledger", "drop", file(), "--prompts", "p", "--reason", "spam"}).out, "prompts dropped: 1\n");
  EXPECT_EQ(ledger()->failed_prompts(9).back().second, "spam");
}

TEST_F(LedgerCommand, StatusShowsLeasesTheBudgetAndWhatLimits) {
  fill();
  create_shared_dir_store(temp_.path(), StoreId("small"), {.max_resident_bytes = 288});
  const Outcome status = run({"status", "--ledger", file(), "--store", (temp_.path() / "small").string()});
  EXPECT_EQ(status.code, 0) << status.err;
  EXPECT_THAT(status.out, HasSubstr("bytes      144 B resident of 288 B (50 %)"));
  EXPECT_THAT(status.out, HasSubstr("lease      c: 1 refs of queue 'scores', for another "));
  EXPECT_THAT(status.out, HasSubstr("limit      training: 2 samples wait for group 'scores'\n"));
  const auto json = nlohmann::json::parse(run({"status", "--ledger", file(), "--high-watermark", "100", "--json"}).out);
  EXPECT_EQ(json["leases"][0]["holder"], "c");
  EXPECT_EQ(json["high_watermark_bytes"], 100);
  EXPECT_THAT(json["limit"].get<std::string>(), HasSubstr("producers pause, 144 B are resident and 100 B may be"));
  EXPECT_EQ(run({"status", "--ledger", file(), "--high-watermark", "much"}).code, 2);
}

}  // namespace
}  // namespace draftflow::cli
