// SPDX-License-Identifier: Apache-2.0
//
// What a ledger on a real PostgreSQL server has to stand: many processes' objects, a server that restarts, lost replies,
// another program's tables. The stories of every backend run over it too.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <future>
#include <set>
#include <thread>

#include "ledger/export_testing.h"
#include "ledger/ledger_story.h"
#include "ledger/patient_ledger.h"
#include "ledger/postgres/database.h"
#include "ledger/sql/recount.h"

namespace draftflow::postgres {
namespace {

using testing_support::CommitLoser;
using testing_support::expect_error;
using testing_support::make_ref;
using testing_support::make_task;
using testing_support::TestingServer;

std::unique_ptr<Ledger> open_plain(const std::string& url) {
  return open_postgres_ledger(url, std::nullopt);
}

TEST(PostgresLedger, ObjectsThatRaceToMakeItShareOneLedger) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  std::vector<std::string> ids(6);
  std::vector<std::thread> threads;
  for (std::string& id : ids) threads.emplace_back([&id, &url] { id = open_plain(url)->id(); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::set<std::string>(ids.begin(), ids.end()).size(), 1u);
  EXPECT_EQ(open_ledger(url)->id(), ids[0]);
}

// Producers and a trainer, each with a connection of its own, all at once.
TEST(PostgresLedger, ManyClientsLoseNothingAndBalance) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  constexpr int kSamples = 160, kWindow = 4;
  const GroupId group("train");
  const auto ledger = open_plain(url);
  std::vector<PromptTask> tasks;
  for (int i = 0; i < kSamples; ++i) tasks.push_back(make_task(fmt::format("p{:03}", i)));
  ledger->ingest_prompts(tasks, {});
  ledger->close_prompts();
  ledger->declare_group({.group = group, .window = kWindow});
  std::vector<std::thread> producers;
  for (int worker = 0; worker < 3; ++worker) {
    producers.emplace_back([&, worker] {
      const auto mine = open_plain(url);
      for (;;) {
        const PromptAnswer answer = mine->lease_prompts(HolderId(fmt::format("w{}", worker)), 3, 60'000);
        if (answer.finished) return;
        for (const PromptLease& lease : answer.leases) mine->commit_sample(make_ref(lease.task.task_id.str()), lease);
      }
    });
  }
  const TimelineInfo timeline = ledger->open_timeline({.group = group, .width = 2});
  std::int64_t next = timeline.first_window;
  for (;;) {
    const WindowAnswer answer = ledger->read_window(group, timeline.number, next, {.rank = 1, .width = 2});
    if (answer.state == WindowState::kEndOfStream) break;
    if (!answer.window) continue;
    ledger->trained(group, timeline.number, next, next + 1, {});
    ++next;
  }
  for (std::thread& thread : producers) thread.join();
  ledger->checkpointed(group, timeline.number, next);
  const auto ids = ledger->trained_ids(group);
  EXPECT_EQ(ids.size(), static_cast<std::size_t>(kSamples));
  EXPECT_EQ(std::set<std::string>(ids.begin(), ids.end()).size(), ids.size());
  testing_support::expect_books_balance(*testing_support::as_sql(open_plain(url)));
}

// A lost reply, each way: the call is made again and finds what the first one did.
TEST(PostgresLedger, ACommitWhoseReplyIsLostIsSettledByAskingAgain) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  CommitLoser proxy(server);
  PatientLedger ledger(open_plain(proxy.through(url)), 20'000);
  ledger.declare_group({.group = GroupId("train"), .window = 1});
  const TimelineInfo timeline = ledger.open_timeline({});
  std::int64_t step = 0;
  for (const auto loses : {CommitLoser::Loses::kReply, CommitLoser::Loses::kCommit}) {
    const std::string id = fmt::format("a{}", step);
    proxy.lose_next(loses);
    EXPECT_EQ(ledger.ingest_prompts({make_task(id)}, {}), loses == CommitLoser::Loses::kCommit ? 1 : 0);
    const auto lease = ledger.lease_prompts(HolderId("w"), 1, 60'000).leases.at(0);
    proxy.lose_next(loses);
    ledger.commit_sample(make_ref(id), lease);
    ledger.read_window(GroupId("train"), timeline.number, step, {});
    proxy.lose_next(loses);
    ledger.trained(GroupId("train"), timeline.number, step, step + 1, {});
    ++step;
    proxy.lose_next(loses);
    ledger.checkpointed(GroupId("train"), timeline.number, step);
    EXPECT_EQ(ledger.status().committed, step);
    EXPECT_EQ(ledger.status().of(GroupId("train")).durable, step);
  }
  EXPECT_EQ(proxy.lost(), 8);
  testing_support::expect_books_balance(*testing_support::as_sql(open_plain(url)));
}

// Its holder cannot know of a lease whose reply was lost, and would extend it with the others for ever.
TEST(PostgresLedger, ALeaseWhoseReplyIsLostIsGivenAgain) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  CommitLoser proxy(server);
  PatientLedger ledger(open_plain(proxy.through(url)), 20'000);
  ledger.ingest_prompts({make_task("a"), make_task("b"), make_task("c")}, {});
  const HolderId holder("w");
  const PromptLease first = ledger.lease_prompts(holder, 1, 60'000).leases.at(0);
  for (const auto loses : {CommitLoser::Loses::kReply, CommitLoser::Loses::kCommit}) {
    proxy.lose_next(loses);
    const std::vector<PromptLease> leases = ledger.lease_prompts(holder, 2, 60'000).leases;
    ASSERT_EQ(leases.size(), 2U);
    EXPECT_EQ(leases[0].task.task_id.str(), "b");
    EXPECT_EQ(ledger.status().prompts_leased, 3);
    EXPECT_TRUE(ledger.extend_lease(first, 60'000));  // what it did know of is left alone
    for (const PromptLease& lease : leases) ledger.fail_prompt(lease, "try again", /*retryable=*/true, 9);
  }
  EXPECT_EQ(proxy.lost(), 2);
  testing_support::expect_books_balance(*testing_support::as_sql(open_plain(url)));
}

TEST(PostgresLedger, ALeaseOfRefsWhoseReplyIsLostIsGivenAgain) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  CommitLoser proxy(server);
  PatientLedger ledger(open_plain(proxy.through(url)), 20'000);
  const GroupId queue("queue");
  ledger.declare_group({.group = queue, .kind = GroupKind::kQueue});
  ledger.commit_samples({make_ref("a"), make_ref("b"), make_ref("c")}, {});
  const auto lease = [&](int most) { return ledger.lease_refs({.group = queue, .max_refs = most}).leases; };
  const std::vector<RefLease> first = lease(1);
  for (const auto loses : {CommitLoser::Loses::kReply, CommitLoser::Loses::kCommit}) {
    proxy.lose_next(loses);
    const std::vector<RefLease> leases = lease(2);
    ASSERT_EQ(leases.size(), 2U);
    EXPECT_EQ(leases[0].ref.sample_id.str(), "b");
    EXPECT_EQ(ledger.status().of(queue).leased, 3);
    ledger.fail_refs(queue, leases, "try again", /*retryable=*/true);
  }
  ledger.ack_refs(queue, first);  // what it did know of is left alone
  EXPECT_EQ(proxy.lost(), 2);
  testing_support::expect_books_balance(*testing_support::as_sql(open_plain(url)));
}

// The first commit makes the template of its refs. A client is killed when it has been inserted, before its commit.
TEST(PostgresLedger, ATemplateWhoseMakerIsKilledBeforeItsCommitNeverWas) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  const auto ledger = open_plain(url);
  Database gate(url);
  gate.script(
      "CREATE FUNCTION wait_at_the_gate() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM "
      "pg_advisory_xact_lock_shared(4711);"
      " RETURN NEW; END'; CREATE TRIGGER gate BEFORE INSERT ON sample_ref FOR EACH ROW EXECUTE FUNCTION wait_at_the_gate()");
  gate.script("SELECT pg_advisory_lock(4711)");
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(30);
    try {
      open_plain(url)->commit_samples({make_ref("lost")}, {});
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
    }
    ::_exit(1);
  }
  const std::string at_the_gate = "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted";
  while (server.ask(at_the_gate) == "0" && ::waitpid(child, nullptr, WNOHANG) == 0) ::usleep(1000);
  ASSERT_EQ(server.ask(at_the_gate), "1") << "the child has ended before";
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  gate.script("SELECT pg_advisory_unlock(4711)");
  ledger->commit_samples({make_ref("s1"), make_ref("s2")}, {});
  EXPECT_EQ(ledger->all_committed_ids(), (std::vector<std::string>{"s1", "s2"}));
  const auto reader = open_plain(url);
  EXPECT_EQ(sample_ref_to_json(reader->get_committed(SampleId("s2")).value()), sample_ref_to_json(make_ref("s2")));
  reader->commit_samples({make_ref("lost")}, {});
  EXPECT_EQ(gate.find("SELECT COUNT(*) FROM ref_template"), 1);
  EXPECT_EQ(gate.find("SELECT COUNT(*) FROM sample_ref WHERE template = 1"), 3);
  testing_support::expect_books_balance(*testing_support::as_sql(open_plain(url)));
}

TEST(PostgresLedger, AServerThatRestartsIsWaitedFor) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  const auto ledger = open_postgres_ledger(url);
  ledger->ingest_prompts({make_task("a"), make_task("b")}, {});
  for (const bool crash : {false, true}) {
    server.stop(crash);
    auto waiting = std::async(std::launch::async, [&] { return ledger->lease_prompts(HolderId("w"), 1, 60'000).leases.at(0); });
    std::this_thread::sleep_for(std::chrono::milliseconds(700));
    server.start();  // by this thread: the server ends with the one that started it
    const PromptLease lease = waiting.get();
    ledger->commit_sample(make_ref(lease.task.task_id.str()), lease);
  }
  EXPECT_EQ(ledger->status().committed, 2);
}

TEST(PostgresLedger, ItsClockIsHeldAgainstThisMachines) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  Database ahead(url, [] { return std::int64_t{9'000}; });
  std::int64_t here = 1'000;
  EXPECT_EQ(postgres_clock_ahead_ms(ahead, [&] { return here += 1'000; }), 9'000 - 2'500);
  EXPECT_TRUE(ledger_clock_ahead_ms(url));
  EXPECT_FALSE(ledger_clock_ahead_ms("/a/file.sqlite3"));
}

// Tables as version 4 has them become those of this version, with what is in them.
TEST(PostgresLedger, AnOlderVersionIsBroughtToThisOne) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  const GroupId group("train");
  LedgerStatus before;
  {
    const auto ledger = open_plain(url);
    ledger->declare_group({.group = group, .window = 2});
    ledger->commit_samples({make_ref("a"), make_ref("b"), make_ref("c"), make_ref("d"), make_ref("e")}, {});
    const TimelineInfo line = ledger->open_timeline({.group = group});
    for (std::int64_t window = 0; window < 2; ++window) ledger->read_window(group, line.number, window);
    ledger->trained(group, line.number, 0, 1, {});
    before = ledger->status();
  }
  std::string whole;
  for (int row = 0; row < 5; ++row) {
    const std::string id(1, static_cast<char>('a' + row));
    whole += fmt::format("UPDATE sample_ref SET packed = '{}' WHERE row = {}; ", sample_ref_to_json(make_ref(id)), row);
  }
  Database(url).script(
      whole +
      "ALTER TABLE sample_ref DROP COLUMN template;"
      " ALTER TABLE sample_ref RENAME COLUMN packed TO json; DROP TABLE ref_template;"
      " ALTER TABLE consumer DROP COLUMN max_window_tokens; ALTER TABLE training_window DROP COLUMN refs_through;"
      " ALTER TABLE run DROP COLUMN longest_lease_ms; UPDATE ledger_version SET version = 4");
  const auto ledger = testing_support::as_sql(open_plain(url));
  testing_support::expect_books_balance(*ledger);
  EXPECT_EQ(ledger->status().of(group).trained, before.of(group).trained);
  EXPECT_EQ(ledger->status().of(group).windowed, before.of(group).windowed);
  EXPECT_EQ(ledger->status().of(group).pinned, before.of(group).pinned);
  ledger->commit_samples({make_ref("f")}, {});
  for (const char* const id : {"e", "f"}) {
    EXPECT_EQ(sample_ref_to_json(*ledger->get_committed(SampleId(id))), sample_ref_to_json(make_ref(id)));
  }
  testing_support::expect_books_balance(*ledger);
}

TEST(PostgresLedger, WhoOnlyLooksMakesNothing) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  expect_error<NotFound>([&] { open_ledger_read_only(url); }, "there is no ledger in schema");
  EXPECT_FALSE(Database(url).find("SELECT 1 FROM pg_tables WHERE schemaname = current_schema() LIMIT 1"));
  const std::string id = open_plain(url)->id();
  EXPECT_EQ(open_ledger_read_only(url)->id(), id);
}

TEST(PostgresLedger, AServerThatStaysAwayIsUnavailableInBoundedTime) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  PatientLedger ledger(open_plain(server.fresh_schema()), 300);
  server.stop(/*immediate=*/true);
  EXPECT_THROW(ledger.status(), Unavailable);
  server.start();
  EXPECT_EQ(ledger.status().prompts, 0);
}

// The move from one engine to the other and back: three exports, byte for byte the same.
TEST(PostgresLedger, ALedgerMovesFromAFileToAServerAndBack) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const testing_support::TempFolder folder;
  const auto file = open_sqlite_ledger(folder.path() / "first.sqlite3");
  const GroupId group("train"), queue("scores");
  file->declare_group({.group = group, .window = 2});
  file->declare_group({.group = queue, .kind = GroupKind::kQueue});
  file->declare("z\u00e9ro", "1");
  file->declare("Zero", "2");
  file->ingest_prompts({make_task("a"), make_task("b"), make_task("c \u00fc")}, {{{5, 2, 0}}, {}, {}});
  for (const PromptLease& lease : file->lease_prompts(HolderId("w"), 2, 60'000).leases) {
    file->commit_sample(make_ref(lease.task.task_id.str()), lease);
  }
  const TimelineInfo line = file->open_timeline({.group = group});
  file->read_window(group, line.number, 0);
  file->trained(group, line.number, 0, 1, {{SampleId("b"), "not finite"}});
  file->checkpointed(group, line.number, 1);
  file->fail_refs(queue, file->lease_refs({.group = queue, .max_refs = 1}).leases, "unreadable", false);
  const auto lines = testing_support::export_of(*file);

  const auto hosted = open_ledger(server.fresh_schema());
  testing_support::import_into(*hosted, lines);
  EXPECT_EQ(testing_support::export_of(*hosted), lines);
  EXPECT_TRUE(hosted->check().empty());
  const auto back = open_sqlite_ledger(folder.path() / "back.sqlite3");
  testing_support::import_into(*back, testing_support::export_of(*hosted));
  EXPECT_EQ(testing_support::export_of(*back), lines);
  EXPECT_TRUE(back->check().empty());
  EXPECT_EQ(hosted->open_timeline({.group = group, .resume = CheckpointMark{file->id(), group, line.number, 1}}).first_step, 1);
}

TEST(PostgresLedger, AnotherVersionAndAnotherProgramsTablesAreRefused) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  const std::string url = server.fresh_schema();
  open_plain(url);
  Database(url).script("UPDATE ledger_version SET version = 99");
  expect_error<InvalidArgument>([&] { open_plain(url); }, "has format version 99: this program knows versions 1 to ");
  const std::string theirs = server.fresh_schema();
  Database(theirs).script("CREATE TABLE sample(x INT)");
  expect_error<InvalidArgument>([&] { open_plain(theirs); }, "has a table 'sample' of another program; make a schema");
}

}  // namespace
}  // namespace draftflow::postgres
