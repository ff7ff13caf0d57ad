// SPDX-License-Identifier: Apache-2.0
#include "ledger/sql/schema.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <set>

#include "draftflow/base/file.h"
#include "ledger/ledger_story.h"
#include "ledger/sql/recount.h"
#include "ledger/sqlite/database.h"

namespace draftflow::sqlite {
namespace {

using testing_support::expect_error;

class Schema : public ::testing::Test {
 protected:
  void make_golden(const std::string& name) {
    script(read_text_file(std::filesystem::path(DRAFTFLOW_SOURCE_DIR) / "src/ledger/sqlite" / name));
  }
  void script(const std::string& sql) { Database(path_, Database::Mode::kReadWrite).script(sql); }
  const testing_support::TempFolder folder_;
  const std::filesystem::path path_ = folder_.path() / "l.sqlite3";
};

std::vector<std::string> layout_of(const std::filesystem::path& path) {
  Database database(path, Database::Mode::kReadOnly);
  std::vector<std::string> layout;
  sql::Query query = database.query("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name");
  while (query.step()) layout.push_back(query.text(0));
  return layout;
}

TEST_F(Schema, AGoldenLedgerOfVersion1MeansTheSameForEver) {
  make_golden("golden_v1.sql");
  const auto opened =
      testing_support::as_sql(open_sqlite_ledger(path_, {.boot_id = "boot-1", .now_ms = [] { return std::int64_t{5500}; }}));
  SqlLedger& ledger = *opened;
  const GroupId group("train");
  testing_support::expect_books_balance(ledger);
  testing_support::expect_prompts_match_samples(ledger);
  const LedgerStatus status = ledger.status();
  const GroupStatus training = status.of(group);
  EXPECT_EQ(status.ledger_id, "966567293722b561208306fb50781d6f");
  EXPECT_EQ(status.run_id, "run");
  EXPECT_EQ(status.prompts_leased, 1);
  EXPECT_EQ(status.prompts_failed, 1);
  EXPECT_EQ(training.available, 2);
  EXPECT_EQ(training.trained, 2);
  EXPECT_EQ(training.durable, 1);
  EXPECT_EQ(training.failed, 1);
  EXPECT_EQ(status.freed, 1);
  EXPECT_EQ(status.resident_bytes, 500U);
  EXPECT_THAT(ledger.trained_ids(group), testing::ElementsAre("p1", "p3", "p4"));
  ASSERT_EQ(ledger.freeable(9).size(), 1U);
  const TimelineInfo timeline = ledger.open_timeline(
      {.group = group, .resume = CheckpointMark{.ledger_id = status.ledger_id, .group = group, .timeline = 1, .step = 1}});
  const WindowAnswer next = ledger.read_window(group, timeline.number, timeline.first_window, {});
  ASSERT_EQ(next.state, WindowState::kWindow);
  EXPECT_EQ(next.window->refs[0].sample_id.str(), "p3");
  EXPECT_EQ(next.window->refs[1].generation, 5U);

  open_sqlite_ledger(folder_.path() / "fresh");
  EXPECT_EQ(layout_of(path_), layout_of(folder_.path() / "fresh")) << "another layout is another version";
}

TEST_F(Schema, AGoldenLedgerOfVersion2MeansTheSameForEver) {
  make_golden("golden_v2.sql");
  expect_error<InvalidArgument>([&] { open_sqlite_ledger_read_only(path_); }, "has format version 2");
  const auto opened =
      testing_support::as_sql(open_sqlite_ledger(path_, {.boot_id = "boot-1", .now_ms = [] { return std::int64_t{5500}; }}));
  SqlLedger& ledger = *opened;
  testing_support::expect_books_balance(ledger);
  testing_support::expect_prompts_match_samples(ledger);
  const LedgerStatus status = ledger.status();
  EXPECT_EQ(status.ledger_id, "8d6e02bee08b8cbca2e06dedefc2d50f");
  EXPECT_EQ(status.prompts_leased, 1);
  EXPECT_EQ(status.freed, 2);
  EXPECT_EQ(status.resident_bytes, 600U);
  ASSERT_EQ(status.groups.size(), 3U);
  for (const GroupStatus& group : status.groups) EXPECT_EQ(group.kind, GroupKind::kWindows);
  const GroupId train("train"), small("small");
  const GroupStatus training = status.of(train), other = status.of(small);
  EXPECT_EQ(training.available, 3);
  EXPECT_EQ(training.windowed, 2);
  EXPECT_EQ(training.durable, 1);
  EXPECT_EQ(training.dropped, 1);
  EXPECT_EQ(training.failed, 1);
  EXPECT_EQ(training.timeline, 2);
  EXPECT_EQ(other.durable, 4);
  EXPECT_EQ(other.pinned, 5);
  EXPECT_FALSE(status.of(GroupId("gone")).open);
  EXPECT_THAT(ledger.trained_ids(train), testing::ElementsAre("p1"));
  ASSERT_EQ(ledger.failed_refs(train, 9).size(), 1U);
  EXPECT_EQ(ledger.failed_refs(train, 9)[0].reason, "not finite");
  EXPECT_EQ(ledger.freeable(9).size(), 1U);

  // What version 3 adds works in it.
  const GroupId queue("queue");
  ledger.declare_group({.group = queue, .kind = GroupKind::kQueue});
  const QueueAnswer answer = ledger.lease_refs({.group = queue, .max_refs = 9, .partition = Partition{0, 1}});
  ASSERT_EQ(answer.leases.size(), 5U);
  EXPECT_EQ(answer.leases[0].ref.sample_id.str(), "p4");
  ledger.ack_refs(queue, answer.leases);
  testing_support::expect_books_balance(ledger);
  const TimelineInfo timeline = ledger.open_timeline(
      {.group = train, .resume = CheckpointMark{.ledger_id = status.ledger_id, .group = train, .timeline = 2, .step = 1}});
  EXPECT_EQ(timeline.first_window, 1);
  const WindowAnswer next = ledger.read_window(train, timeline.number, 1, {});
  ASSERT_EQ(next.state, WindowState::kWindow);
  EXPECT_EQ(next.window->refs[0].sample_id.str(), "p4");

  open_sqlite_ledger(folder_.path() / "fresh");
  EXPECT_EQ(layout_of(path_), layout_of(folder_.path() / "fresh")) << "another layout is another version";
}

TEST_F(Schema, AGoldenLedgerOfVersion3MeansTheSameForEver) {
  make_golden("golden_v3.sql");
  const auto opened =
      testing_support::as_sql(open_sqlite_ledger(path_, {.boot_id = "boot-1", .now_ms = [] { return std::int64_t{5500}; }}));
  SqlLedger& ledger = *opened;
  testing_support::expect_books_balance(ledger);
  const GroupId train("train"), queue("queue");
  for (const GroupStatus& group : ledger.status().groups) EXPECT_EQ(group.passes, 1);
  const GroupStatus waiting = ledger.status().of(queue);
  EXPECT_EQ(waiting.kind, GroupKind::kQueue);
  EXPECT_EQ(waiting.available, 2);
  EXPECT_EQ(waiting.leased, 1);
  EXPECT_EQ(waiting.durable, 1);
  EXPECT_EQ(waiting.failed, 1);
  EXPECT_EQ(ledger.failed_refs(queue, 9)[0].reason, "unreadable");
  EXPECT_EQ(ledger.lease_refs({.group = queue, .max_refs = 9}).leases.size(), 2U);
  ledger.ack_refs(queue, {{.ref = *ledger.get_committed(SampleId("p5")), .token = "t2"}});
  testing_support::expect_books_balance(ledger);

  // What version 4 adds works in it.
  const GroupId twice("twice");
  ledger.declare_group({.group = twice, .window = 2, .passes = 2});
  EXPECT_EQ(ledger.status().of(twice).passes, 2);
  testing_support::expect_books_balance(ledger);

  open_sqlite_ledger(folder_.path() / "fresh");
  EXPECT_EQ(layout_of(path_), layout_of(folder_.path() / "fresh")) << "another layout is another version";
}

TEST_F(Schema, AGoldenLedgerOfVersion4MeansTheSameForEver) {
  make_golden("golden_v4.sql");
  const auto opened =
      testing_support::as_sql(open_sqlite_ledger(path_, {.boot_id = "boot-1", .now_ms = [] { return std::int64_t{5500}; }}));
  SqlLedger& ledger = *opened;
  testing_support::expect_books_balance(ledger);
  const GroupId train("train"), twice("twice");
  for (const GroupStatus& group : ledger.status().groups) EXPECT_EQ(group.max_window_tokens, 0);
  const GroupStatus training = ledger.status().of(train), other = ledger.status().of(twice);
  EXPECT_EQ(training.windowed, 2);
  EXPECT_EQ(training.durable, 1);
  EXPECT_EQ(training.failed, 1);
  EXPECT_EQ(training.pinned, 5);
  EXPECT_EQ(other.passes, 2);
  EXPECT_EQ(other.windowed, 2);
  EXPECT_EQ(other.trained, 1);
  EXPECT_EQ(other.failed, 1);
  EXPECT_EQ(other.pinned, 5);
  EXPECT_EQ(ledger.read_window(twice, 1, 1, {}).window.value().refs.at(1).sample_id.str(), "p7");

  // What version 5 adds works in it.
  const GroupId capped("capped");
  ledger.declare_group({.group = capped, .window = 8, .max_window_tokens = 25});
  const TimelineInfo line = ledger.open_timeline({.group = capped, .width = 2});
  EXPECT_EQ(ledger.read_window(capped, line.number, 0, {.rank = 1, .width = 2}).window.value().refs.size(), 1U);
  EXPECT_EQ(ledger.status().of(capped).windowed, 2);
  testing_support::expect_books_balance(ledger);

  open_sqlite_ledger(folder_.path() / "fresh");
  EXPECT_EQ(layout_of(path_), layout_of(folder_.path() / "fresh")) << "another layout is another version";
}

TEST_F(Schema, AGoldenLedgerOfVersion5MeansTheSameForEver) {
  make_golden("golden_v5.sql");
  const auto opened =
      testing_support::as_sql(open_sqlite_ledger(path_, {.boot_id = "boot-1", .now_ms = [] { return std::int64_t{5500}; }}));
  SqlLedger& ledger = *opened;
  testing_support::expect_books_balance(ledger);
  const GroupId capped("capped");
  const GroupStatus training = ledger.status().of(capped);
  EXPECT_EQ(training.max_window_tokens, 25);
  EXPECT_EQ(training.windowed, 2);
  EXPECT_EQ(training.width, 2);
  EXPECT_EQ(ledger.read_window(capped, 1, 0, {.rank = 1, .width = 2}).window.value().refs.at(0).sample_id.str(), "p5");

  // What version 6 adds works in it: refs that are kept whole, as they were, beside packed ones.
  const SampleRef old = *ledger.get_committed(SampleId("p5"));
  SampleRef fresh = old;
  fresh.sample_id = SampleId("fresh");
  ledger.commit_samples({fresh}, {{}});
  EXPECT_EQ(sample_ref_to_json(*ledger.get_committed(fresh.sample_id)), sample_ref_to_json(fresh));
  EXPECT_EQ(sample_ref_to_json(*ledger.get_committed(SampleId("p5"))), sample_ref_to_json(old));
  Database database(path_, Database::Mode::kReadOnly);
  EXPECT_EQ(database.find("SELECT COUNT(*) FROM sample_ref WHERE template = 1"), 1);
  EXPECT_EQ(database.find("SELECT COUNT(*) FROM sample_ref WHERE template = 0"), 8);
  testing_support::expect_books_balance(ledger);

  open_sqlite_ledger(folder_.path() / "fresh");
  EXPECT_EQ(layout_of(path_), layout_of(folder_.path() / "fresh")) << "another layout is another version";
}

TEST_F(Schema, AnotherVersionIsRefusedNamingBoth) {
  open_sqlite_ledger(path_);
  script("PRAGMA user_version = 9");
  expect_error<InvalidArgument>([&] { open_sqlite_ledger(path_); }, "has format version 9: this program knows versions 1 to 6");
  expect_error<InvalidArgument>([&] { open_sqlite_ledger_read_only(path_); }, "has format version 9");
}

TEST_F(Schema, AnotherProgramsDatabaseIsRefusedAndUntouched) {
  script("CREATE TABLE theirs(x)");
  const std::string before = read_text_file(path_);
  expect_error<InvalidArgument>([&] { open_sqlite_ledger(path_); }, "of another program (application id none");
  EXPECT_EQ(read_text_file(path_), before);
  script("PRAGMA application_id = 7");
  expect_error<InvalidArgument>([&] { open_sqlite_ledger(path_); },
                                "application id 0x00000007; a draftflow ledger has 0x44464C47");
}

TEST_F(Schema, WhatIsNoDatabaseIsCorrupt) {
  replace_file(path_, std::string(5000, 'x'));
  expect_error<Corrupt>([&] { open_sqlite_ledger(path_); }, path_.string() + " is no SQLite database");
  expect_error<Corrupt>([&] { open_sqlite_ledger_read_only(path_); }, "is no SQLite database");
  EXPECT_EQ(read_text_file(path_), std::string(5000, 'x'));
}

TEST_F(Schema, ATruncatedLedgerIsCorrupt) {
  {
    auto ledger = open_sqlite_ledger(path_);
    ledger->ingest_prompts({testing_support::make_task("a")}, {});
  }
  std::filesystem::resize_file(path_, 4096);  // the first page, naming tables that are gone
  EXPECT_THROW(
      {
        auto ledger = open_sqlite_ledger(path_);
        ledger->status();
      },
      Corrupt);
}

TEST_F(Schema, AnEmptyFileBecomesALedgerButIsNoneToReadOnly) {
  std::ofstream(path_).flush();
  expect_error<InvalidArgument>([&] { open_sqlite_ledger_read_only(path_); }, "is empty: it is no ledger yet");
  EXPECT_EQ(open_sqlite_ledger(path_)->id().size(), 32U);
  EXPECT_EQ(open_sqlite_ledger_read_only(path_)->status().prompts, 0);
}

TEST_F(Schema, AFolderInItsPlaceIsNamed) {
  std::filesystem::create_directory(path_);
  expect_error<Error>([&] { open_sqlite_ledger(path_); }, path_.string());
  expect_error<Error>([&] { open_sqlite_ledger_read_only(path_); }, path_.string());
}

TEST_F(Schema, ProcessesThatRaceToMakeItShareOneLedger) {
  std::vector<pid_t> children;
  for (int i = 0; i < 6; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        const auto ledger = open_sqlite_ledger(path_);
        replace_file(folder_.path() / ("id-" + std::to_string(i)), ledger->id());
        ::_exit(0);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "child %d: %s\n", i, error.what());
        ::_exit(1);
      }
    }
    children.push_back(child);
  }
  std::set<std::string> ids;
  for (std::size_t i = 0; i < children.size(); ++i) {
    int status = 0;
    ::waitpid(children[i], &status, 0);
    EXPECT_EQ(status, 0);
    ids.insert(read_text_file(folder_.path() / ("id-" + std::to_string(i))));
  }
  EXPECT_EQ(ids.size(), 1U);
}

}  // namespace
}  // namespace draftflow::sqlite
