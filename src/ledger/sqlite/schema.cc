// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/schema.h"

#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/random.h"

namespace draftflow::sqlite {
namespace {

// States are told by literals, so that SQLite can match them with the partial indexes:
//   prompt.state  0 pending, 1 leased, 2 done, 3 failed
//   sample.state  0 needed, 1 may go, 2 handed to a sweeper, 3 freed
// A window's state is its place in its group: number < durable_windows, < trained_windows, or neither.
constexpr const char* kTables = R"sql(
CREATE TABLE run(
  id INTEGER PRIMARY KEY CHECK (id = 1), ledger_id TEXT NOT NULL, boot_id TEXT NOT NULL,
  prompts_closed INTEGER NOT NULL DEFAULT 0,
  prompts INTEGER NOT NULL DEFAULT 0, prompts_pending INTEGER NOT NULL DEFAULT 0, prompts_leased INTEGER NOT NULL DEFAULT 0,
  prompts_done INTEGER NOT NULL DEFAULT 0, prompts_failed INTEGER NOT NULL DEFAULT 0,
  committed INTEGER NOT NULL DEFAULT 0, committed_tokens INTEGER NOT NULL DEFAULT 0,
  resident_bytes INTEGER NOT NULL DEFAULT 0, freed INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE fact(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE token_count(token INTEGER PRIMARY KEY, count INTEGER NOT NULL, first_row INTEGER NOT NULL) STRICT;

CREATE TABLE prompt(
  row INTEGER PRIMARY KEY, task_id TEXT NOT NULL UNIQUE, state INTEGER NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0, expiries INTEGER NOT NULL DEFAULT 0,
  holder TEXT, token TEXT, expires_ms INTEGER, ended_token TEXT, reason TEXT) STRICT;
CREATE INDEX prompt_pending ON prompt(state) WHERE state = 0;
CREATE INDEX prompt_expiry ON prompt(expires_ms) WHERE state = 1;
CREATE INDEX prompt_holder ON prompt(holder) WHERE state = 1;
CREATE INDEX prompt_failed ON prompt(state) WHERE state = 3;
CREATE TABLE prompt_task(row INTEGER PRIMARY KEY, json TEXT NOT NULL) STRICT;

CREATE TABLE sample(
  row INTEGER PRIMARY KEY, sample_id TEXT NOT NULL UNIQUE, generation INTEGER NOT NULL, incarnation TEXT NOT NULL,
  bytes INTEGER NOT NULL, tokens INTEGER NOT NULL, in_place INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX sample_may_go ON sample(state) WHERE state = 1;
CREATE INDEX sample_going ON sample(state) WHERE state = 2;
CREATE TABLE sample_ref(row INTEGER PRIMARY KEY, json TEXT NOT NULL) STRICT;

CREATE TABLE consumer(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, window_size INTEGER NOT NULL, resumable_checkpoints INTEGER NOT NULL,
  next_row INTEGER NOT NULL, windows INTEGER NOT NULL DEFAULT 0, trained_windows INTEGER NOT NULL DEFAULT 0,
  durable_windows INTEGER NOT NULL DEFAULT 0, released_windows INTEGER NOT NULL DEFAULT 0,
  timeline INTEGER NOT NULL DEFAULT 0, trained_step INTEGER NOT NULL DEFAULT 0, durable_step INTEGER NOT NULL DEFAULT 0,
  failed_trained INTEGER NOT NULL DEFAULT 0, failed_durable INTEGER NOT NULL DEFAULT 0,
  dropped INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE timeline(
  consumer INTEGER NOT NULL, number INTEGER NOT NULL, parent INTEGER NOT NULL, first_step INTEGER NOT NULL,
  PRIMARY KEY (consumer, number)) STRICT, WITHOUT ROWID;
CREATE TABLE checkpoint(
  consumer INTEGER NOT NULL, timeline INTEGER NOT NULL, step INTEGER NOT NULL, abandoned INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (consumer, timeline, step)) STRICT, WITHOUT ROWID;
CREATE INDEX checkpoint_line ON checkpoint(consumer, step) WHERE abandoned = 0;
CREATE TABLE window(
  consumer INTEGER NOT NULL, number INTEGER NOT NULL, timeline INTEGER, step INTEGER,
  failed INTEGER NOT NULL DEFAULT 0, going INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (consumer, number)) STRICT, WITHOUT ROWID;
CREATE INDEX window_step ON window(consumer, step) WHERE step IS NOT NULL;
CREATE TABLE window_ref(
  consumer INTEGER NOT NULL, window INTEGER NOT NULL, position INTEGER NOT NULL, row INTEGER NOT NULL, reason TEXT,
  PRIMARY KEY (consumer, window, position)) STRICT, WITHOUT ROWID;
CREATE INDEX window_ref_row ON window_ref(row, consumer);
CREATE TABLE dropped(
  consumer INTEGER NOT NULL, row INTEGER NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (consumer, row)) STRICT, WITHOUT ROWID;
)sql";

std::string application_text(std::int64_t id) {
  return id == 0 ? "none" : fmt::format("0x{:08X}", id);
}

// True if the tables are there in this version, false if the file holds nothing at all.
bool is_ours(Database& database) {
  const std::int64_t application = database.find("PRAGMA application_id").value_or(0);
  const std::int64_t version = database.find("PRAGMA user_version").value_or(0);
  const std::string file = database.path().string();
  if (application != kApplicationId) {
    const bool empty = database.find("SELECT COUNT(*) FROM sqlite_schema").value_or(0) == 0;
    if (empty && application == 0 && version == 0) return false;
    // Each of these reads is a transaction of its own: another process may have made the ledger in between.
    if (application == 0 && database.find("PRAGMA application_id").value_or(0) == kApplicationId) return is_ours(database);
    throw InvalidArgument(
        fmt::format("{} is a SQLite database of another program (application id {}; a draftflow ledger has {}); "
                    "name another file",
                    file, application_text(application), application_text(kApplicationId)));
  }
  if (version != kSchemaVersion) {
    throw InvalidArgument(
        fmt::format("ledger {} has format version {}: this program knows version {}; use the draftflow that wrote it", file,
                    version, kSchemaVersion));
  }
  return true;
}

void make_tables(Database& database, const std::string& boot_id) {
  database.script(kTables);
  database.run("INSERT INTO run(id, ledger_id, boot_id) VALUES (1, ?1, ?2)", random_hex128(), boot_id);
  database.script(fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {}", kApplicationId, kSchemaVersion));
}

void end_leases_of_earlier_boots(Database& database, const std::string& boot_id) {
  if (database.find("SELECT 1 FROM run WHERE id = 1 AND boot_id = ?1", boot_id)) return;
  Transaction transaction(database);
  database.run("UPDATE prompt SET state = 0, holder = NULL, token = NULL, expires_ms = NULL WHERE state = 1");
  // A lease that ran out before still names its token, so that a late commit can use it: not across a boot.
  database.run("UPDATE prompt SET token = NULL WHERE state = 0 AND token IS NOT NULL");
  database.run(
      "UPDATE run SET boot_id = ?1, prompts_pending = prompts_pending + prompts_leased, prompts_leased = 0 WHERE id = 1",
      boot_id);
  transaction.commit();
}

}  // namespace

void prepare_schema(Database& database, const std::string& boot_id) {
  if (!is_ours(database)) {
    {
      Transaction transaction(database);
      if (!is_ours(database)) make_tables(database, boot_id);
      transaction.commit();
    }
    sync_folder(database.path().parent_path());
  }
  database.use_wal();
  end_leases_of_earlier_boots(database, boot_id);
}

void check_schema(Database& database) {
  if (!is_ours(database)) throw InvalidArgument(fmt::format("{} is empty: it is no ledger yet", database.path().string()));
}

}  // namespace draftflow::sqlite
