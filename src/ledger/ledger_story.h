// SPDX-License-Identifier: Apache-2.0
//
// For tests only: the stage on which ledger stories play. One suite over every backend: a story is a TEST_P of LedgerStory, a
// backend one more entry in INSTANTIATE_LEDGER_STORY.
#pragma once

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/ledger/ledger.h"
#include "ledger/clock.h"
#include "testing/temp_folder.h"
#ifdef DRAFTFLOW_STORY_POSTGRES
#include "ledger/postgres/testing_server.h"
#endif

namespace draftflow::testing_support {

inline PromptTask make_task(const std::string& id) {
  return {.task_id = TaskId(id), .run_id = RunId("run"), .source_id = "story:" + id, .payload = R"({"text":"once upon"})"};
}

inline SampleRef make_ref(const std::string& id, std::uint64_t generation = 1, std::uint64_t bytes = 100) {
  SampleRef ref{.sample_id = SampleId(id), .run_id = RunId("run")};
  ref.feature_store_uri = "disagg://store/" + id;
  ref.feature_specs.push_back({.name = "x", .shape = {static_cast<std::int64_t>(bytes)}, .dtype = DType::kUInt8});
  ref.num_tokens = 10;
  ref.estimated_bytes = bytes;
  ref.generation = generation;
  ref.incarnation = "cafe";
  return ref;
}

// Runs the call, which must throw E with `part` in its message.
template <class E, class Call>
void expect_error(Call&& call, const std::string& part) {
  try {
    call();
    ADD_FAILURE() << "no error; expected one with '" << part << "'";
  } catch (const E& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr(part));
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another kind of error: " << error.what();
  }
}

struct Backend {
  std::string name;
  std::unique_ptr<Ledger> (*open)(const std::filesystem::path& folder, LedgerClock clock);
  bool server_time = false;  // which no boot of this host ends
};

inline std::unique_ptr<Ledger> open_sqlite_in(const std::filesystem::path& folder, LedgerClock clock) {
  return open_sqlite_ledger(folder / "ledger.sqlite3", std::move(clock));
}

// Books for each story, however often it opens its ledger.
inline std::unique_ptr<Ledger> open_memory_in(const std::filesystem::path& folder, LedgerClock clock) {
  static std::map<std::filesystem::path, std::shared_ptr<MemoryBooks>> all;
  std::shared_ptr<MemoryBooks>& books = all[folder];
  if (!books) books = make_memory_ledger();
  return open_memory_ledger(books, std::move(clock));
}

class LedgerStory : public ::testing::TestWithParam<Backend> {
 protected:
  // Another process, as far as the ledger can tell.
  std::unique_ptr<Ledger> open() {
    return GetParam().open(folder_.path(), {.boot_id = boot_, .now_ms = [this] { return now_ms_; }});
  }

  void SetUp() override {
#ifdef DRAFTFLOW_STORY_POSTGRES
    if (TestingServer::shared().why_not()) GTEST_SKIP() << *TestingServer::shared().why_not();
#endif
    ledger_ = open();
  }

  void ingest(const std::vector<std::string>& ids) {
    std::vector<PromptTask> tasks;
    for (const auto& id : ids) tasks.push_back(make_task(id));
    ledger_->ingest_prompts(tasks, {});
  }

  PromptLease lease_one(const std::string& holder = "worker", std::int64_t lease_ms = 1000) {
    PromptAnswer answer = ledger_->lease_prompts(HolderId(holder), 1, lease_ms);
    if (answer.leases.size() != 1) throw NotFound("no prompt to lease");
    return answer.leases[0];
  }

  // Prompts s<from> .. s<to - 1>, each captured and committed.
  void commit(int from, int to) {
    for (int i = from; i < to; ++i) {
      ingest({fmt::format("s{}", i)});
      const PromptLease lease = lease_one();
      ledger_->commit_sample(make_ref(lease.task.task_id.str()), lease);
    }
  }

  void declare(int window, int resumable = 1) {
    ledger_->declare_group({.group = group_, .window = window, .resumable_checkpoints = resumable});
  }

  std::int64_t open_timeline(Ledger& ledger) {
    return ledger.open_timeline({.group = group_}).number;
  }

  // As a trainer asks: the first untrained window, then the one after, whichever object it asks.
  WindowAnswer next_window(Ledger& ledger, std::int64_t timeline) {
    const auto key = std::pair(&ledger, timeline);
    const GroupStatus group = ledger.status().of(group_);
    const std::int64_t trained = (group.trained + group.durable + group.failed) / std::max(group.window, 1);
    std::int64_t& next = next_.emplace(key, trained).first->second;
    WindowAnswer answer = ledger.read_window(group_, timeline, next);
    next += answer.window ? 1 : 0;
    return answer;
  }

  GroupStatus group_status() {
    return ledger_->status().of(group_);
  }

  CheckpointMark mark(std::int64_t timeline, std::int64_t step) {
    return {.ledger_id = ledger_->id(), .group = group_, .timeline = timeline, .step = step};
  }

  // Trains the next `count` windows, at the steps first_step, first_step + 1 ...; returns the ids seen.
  std::vector<std::string> train(std::int64_t timeline, std::int64_t first_step, int count) {
    std::vector<std::string> seen;
    for (int i = 0; i < count; ++i) {
      const WindowAnswer answer = next_window(*ledger_, timeline);
      if (answer.state != WindowState::kWindow) throw NotFound("no window to train");
      for (const SampleRef& ref : answer.window->refs) seen.push_back(ref.sample_id.str());
      ledger_->trained(group_, timeline, answer.window->number, first_step + i, {});
    }
    return seen;
  }

  std::vector<std::string> freeable_ids(int limit = 1000) {
    std::vector<std::string> ids;
    for (const SampleRef& ref : ledger_->freeable(limit)) ids.push_back(ref.sample_id.str());
    return ids;
  }

  void free(const std::vector<std::string>& ids) {
    std::vector<SampleId> typed;
    for (const auto& id : ids) typed.emplace_back(id);
    ledger_->freed(typed);
  }

  const TempFolder folder_;
  const GroupId group_{"train"};
  const HolderId worker_{"worker"};
  std::int64_t now_ms_ = 5000;
  std::string boot_ = "boot-1";
  std::unique_ptr<Ledger> ledger_;
  std::map<std::pair<Ledger*, std::int64_t>, std::int64_t> next_;
};

#ifdef DRAFTFLOW_STORY_POSTGRES
// A schema for each story, however often it opens its ledger.
inline std::unique_ptr<Ledger> open_postgres_in(const std::filesystem::path& folder, LedgerClock clock) {
  static std::map<std::filesystem::path, std::string> schemas;
  std::string& url = schemas[folder];
  if (url.empty()) url = TestingServer::shared().fresh_schema();
  return open_postgres_ledger(url, std::move(clock.now_ms));
}
#define DRAFTFLOW_STORY_BACKENDS \
  ::testing::Values(::draftflow::testing_support::Backend{"Postgres", ::draftflow::testing_support::open_postgres_in, true})
#define DRAFTFLOW_STORY_SQL_BACKENDS DRAFTFLOW_STORY_BACKENDS
#else
#define DRAFTFLOW_STORY_MEMORY                             \
  ::draftflow::testing_support::Backend {                  \
    "Memory", ::draftflow::testing_support::open_memory_in \
  }
#define DRAFTFLOW_STORY_SQLITE                             \
  ::draftflow::testing_support::Backend {                  \
    "Sqlite", ::draftflow::testing_support::open_sqlite_in \
  }
#define DRAFTFLOW_STORY_BACKENDS ::testing::Values(DRAFTFLOW_STORY_MEMORY, DRAFTFLOW_STORY_SQLITE)
#define DRAFTFLOW_STORY_SQL_BACKENDS ::testing::Values(DRAFTFLOW_STORY_SQLITE)
#endif

#define DRAFTFLOW_INSTANTIATE_STORY(fixture, backends) \
  INSTANTIATE_TEST_SUITE_P(Backends, fixture, backends, [](const auto& backend) { return backend.param.name; })
#define INSTANTIATE_LEDGER_STORY(fixture) DRAFTFLOW_INSTANTIATE_STORY(fixture, DRAFTFLOW_STORY_BACKENDS)
// Of what is done by tables: the ledger in memory has no export.
#define INSTANTIATE_SQL_STORY(fixture) DRAFTFLOW_INSTANTIATE_STORY(fixture, DRAFTFLOW_STORY_SQL_BACKENDS)

}  // namespace draftflow::testing_support
