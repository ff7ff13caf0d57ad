// SPDX-License-Identifier: Apache-2.0
#include "ledger/sql/schema.h"

#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"

namespace draftflow::sql {
namespace {

// States are told by literals, so that the engine can match them with the partial indexes:
//   prompt.state     0 pending, 1 leased, 2 done, 3 failed
//   sample.state     0 needed, 1 may go, 2 handed to a sweeper, 3 freed
//   queue_ref.state  0 available, 1 leased, 2 acked, 3 failed
// sample.claims counts the open groups that still need it. A window's state is its place in its group: number <
// durable_windows, < trained_windows, or neither.
// A new ledger is made as an old one is migrated: version 2, then what each later version adds.
constexpr const char* kVersion2 = R"sql(
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
CREATE INDEX prompt_pending ON prompt(row) WHERE state = 0;
CREATE INDEX prompt_expiry ON prompt(expires_ms) WHERE state = 1;
CREATE INDEX prompt_holder ON prompt(holder) WHERE state = 1;
CREATE INDEX prompt_failed ON prompt(row) WHERE state = 3;
CREATE TABLE prompt_task(row INTEGER PRIMARY KEY, json TEXT NOT NULL) STRICT;

CREATE TABLE sample(
  row INTEGER PRIMARY KEY, sample_id TEXT NOT NULL UNIQUE, generation INTEGER NOT NULL, incarnation TEXT NOT NULL,
  bytes INTEGER NOT NULL, tokens INTEGER NOT NULL, in_place INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0,
  claims INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX sample_may_go ON sample(row) WHERE state = 1;
CREATE INDEX sample_going ON sample(row) WHERE state = 2;
CREATE TABLE sample_ref(row INTEGER PRIMARY KEY, json TEXT NOT NULL) STRICT;

CREATE TABLE consumer(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, window_size INTEGER NOT NULL, resumable_checkpoints INTEGER NOT NULL,
  tail INTEGER NOT NULL DEFAULT 0, open INTEGER NOT NULL DEFAULT 1,
  next_row INTEGER NOT NULL, available INTEGER NOT NULL DEFAULT 0,
  windows INTEGER NOT NULL DEFAULT 0, trained_windows INTEGER NOT NULL DEFAULT 0,
  durable_windows INTEGER NOT NULL DEFAULT 0, released_windows INTEGER NOT NULL DEFAULT 0,
  timeline INTEGER NOT NULL DEFAULT 0, width INTEGER NOT NULL DEFAULT 1,
  trained_step INTEGER NOT NULL DEFAULT 0, durable_step INTEGER NOT NULL DEFAULT 0,
  failed_trained INTEGER NOT NULL DEFAULT 0, failed_durable INTEGER NOT NULL DEFAULT 0,
  dropped INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE timeline(
  consumer INTEGER NOT NULL, number INTEGER NOT NULL, parent INTEGER NOT NULL, first_step INTEGER NOT NULL,
  first_window INTEGER NOT NULL, width INTEGER NOT NULL, launch TEXT NOT NULL, lost INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (consumer, number)) STRICT, WITHOUT ROWID;
CREATE INDEX timeline_launch ON timeline(consumer, launch);
CREATE TABLE trainer_rank(
  consumer INTEGER NOT NULL, timeline INTEGER NOT NULL, number INTEGER NOT NULL, holder TEXT NOT NULL,
  PRIMARY KEY (consumer, timeline, number)) STRICT, WITHOUT ROWID;
CREATE TABLE checkpoint(
  consumer INTEGER NOT NULL, timeline INTEGER NOT NULL, step INTEGER NOT NULL, abandoned INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (consumer, timeline, step)) STRICT, WITHOUT ROWID;
CREATE INDEX checkpoint_line ON checkpoint(consumer, step) WHERE abandoned = 0;
CREATE TABLE training_window(
  consumer INTEGER NOT NULL, number INTEGER NOT NULL, timeline INTEGER, step INTEGER,
  failed INTEGER NOT NULL DEFAULT 0, going INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (consumer, number)) STRICT, WITHOUT ROWID;
CREATE INDEX training_window_step ON training_window(consumer, step) WHERE step IS NOT NULL;
CREATE TABLE window_ref(
  consumer INTEGER NOT NULL, number INTEGER NOT NULL, position INTEGER NOT NULL, row INTEGER NOT NULL, reason TEXT,
  PRIMARY KEY (consumer, number, position)) STRICT, WITHOUT ROWID;
CREATE INDEX window_ref_row ON window_ref(row, consumer);
CREATE TABLE dropped(
  consumer INTEGER NOT NULL, row INTEGER NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (consumer, row)) STRICT, WITHOUT ROWID;
)sql";

// The key of queue_ref begins with the row: one that began with the consumer would draw SQLite away from the partial indexes,
// to read a whole queue.
constexpr const char* kVersion3Adds = R"sql(
ALTER TABLE consumer ADD COLUMN kind INTEGER NOT NULL DEFAULT 0;
ALTER TABLE consumer ADD COLUMN max_attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE consumer ADD COLUMN leased INTEGER NOT NULL DEFAULT 0;
ALTER TABLE consumer ADD COLUMN acked INTEGER NOT NULL DEFAULT 0;
ALTER TABLE consumer ADD COLUMN failed INTEGER NOT NULL DEFAULT 0;
CREATE TABLE queue_ref(
  consumer INTEGER NOT NULL, row INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0, shard INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, holder TEXT, token TEXT, expires_ms INTEGER, ended_token TEXT, reason TEXT,
  PRIMARY KEY (row, consumer)) STRICT, WITHOUT ROWID;
CREATE INDEX queue_available ON queue_ref(consumer, row) WHERE state = 0;
CREATE INDEX queue_expiry ON queue_ref(consumer, expires_ms) WHERE state = 1;
CREATE INDEX queue_holder ON queue_ref(consumer, holder) WHERE state = 1;
CREATE INDEX queue_failed ON queue_ref(consumer, row) WHERE state = 3;
CREATE TABLE queue_width(n INTEGER PRIMARY KEY) STRICT;
CREATE INDEX window_ref_failed ON window_ref(consumer, number, position) WHERE reason IS NOT NULL;
)sql";

constexpr const char* kVersion4Adds = R"sql(
ALTER TABLE consumer ADD COLUMN passes INTEGER NOT NULL DEFAULT 1;
ALTER TABLE consumer ADD COLUMN pass_windows INTEGER NOT NULL DEFAULT 0;
)sql";

constexpr const char* kVersion5Adds = R"sql(
ALTER TABLE consumer ADD COLUMN max_window_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE training_window ADD COLUMN refs_through INTEGER NOT NULL DEFAULT 0;
UPDATE training_window SET refs_through =
  (number + 1) * (SELECT window_size FROM consumer WHERE consumer.id = training_window.consumer);
ALTER TABLE run ADD COLUMN longest_lease_ms INTEGER NOT NULL DEFAULT 0;
UPDATE run SET longest_lease_ms = 604800000;
)sql";

// A ref is what its template (ref_template.h) lacks of it; template 0: the JSON as a whole, which earlier versions kept.
constexpr const char* kVersion6Adds = R"sql(
CREATE TABLE ref_template(number INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;
ALTER TABLE sample_ref RENAME COLUMN json TO packed;
ALTER TABLE sample_ref ADD COLUMN template INTEGER NOT NULL DEFAULT 0;
)sql";

// Windows of version 1 had a table called window, a word that PostgreSQL keeps for itself.
constexpr const char* kToVersion2 = R"sql(
ALTER TABLE consumer RENAME TO old_consumer;
ALTER TABLE timeline RENAME TO old_timeline;
ALTER TABLE checkpoint RENAME TO old_checkpoint;
ALTER TABLE window RENAME TO old_window;
ALTER TABLE window_ref RENAME TO old_window_ref;
ALTER TABLE dropped RENAME TO old_dropped;
ALTER TABLE sample RENAME TO old_sample;
DROP INDEX checkpoint_line; DROP INDEX window_step; DROP INDEX window_ref_row; DROP INDEX sample_may_go; DROP INDEX sample_going;
DROP INDEX prompt_pending; DROP INDEX prompt_failed;
)sql";

constexpr const char* kOutOfVersion1 = R"sql(
CREATE INDEX prompt_pending ON prompt(row) WHERE state = 0;
CREATE INDEX prompt_failed ON prompt(row) WHERE state = 3;
INSERT INTO sample(row, sample_id, generation, incarnation, bytes, tokens, in_place, state, claims)
  SELECT row, sample_id, generation, incarnation, bytes, tokens, in_place, state,
         CASE WHEN state = 0 THEN (SELECT COUNT(*) FROM old_consumer) ELSE 0 END FROM old_sample;
INSERT INTO consumer(id, name, window_size, resumable_checkpoints, next_row, available, windows, trained_windows,
                     durable_windows, released_windows, timeline, trained_step, durable_step, failed_trained, failed_durable,
                     dropped)
  SELECT id, name, window_size, resumable_checkpoints, next_row, (SELECT committed FROM run WHERE id = 1) - next_row, windows,
         trained_windows, durable_windows, released_windows, timeline, trained_step, durable_step, failed_trained,
         failed_durable, dropped FROM old_consumer;
INSERT INTO timeline(consumer, number, parent, first_step, first_window, width, launch)
  SELECT consumer, number, parent, first_step, 0, 1, '' FROM old_timeline;
INSERT INTO checkpoint SELECT consumer, timeline, step, abandoned FROM old_checkpoint;
INSERT INTO training_window SELECT consumer, number, timeline, step, failed, going FROM old_window;
INSERT INTO window_ref SELECT consumer, window, position, row, reason FROM old_window_ref;
INSERT INTO dropped SELECT consumer, row, reason FROM old_dropped;
DROP TABLE old_sample; DROP TABLE old_consumer; DROP TABLE old_timeline; DROP TABLE old_checkpoint; DROP TABLE old_window;
DROP TABLE old_window_ref; DROP TABLE old_dropped;
)sql";

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) text.replace(at, from.size(), to);
}

std::string words_of(Dialect dialect, std::string tables) {
  if (dialect == Dialect::kPostgres) {
    replace_all(tables, " STRICT, WITHOUT ROWID", "");
    replace_all(tables, " STRICT", "");
    replace_all(tables, "INTEGER", "BIGINT");
  }
  return tables;
}

void migrate_to_version_2(Database& database) {
  database.script(kToVersion2);
  std::string tables(kVersion2);
  tables.erase(0, tables.find("CREATE TABLE sample("));
  const std::size_t refs = tables.find("CREATE TABLE sample_ref"), after = tables.find("CREATE TABLE consumer");
  tables.erase(refs, after - refs);  // as it was
  database.script(tables);
  database.script(kOutOfVersion1);
}

}  // namespace

void make_tables(Database& database, Dialect dialect, const std::string& boot_id) {
  database.script(words_of(dialect, kVersion2));
  database.script(words_of(dialect, kVersion3Adds));
  database.script(words_of(dialect, kVersion4Adds));
  database.script(words_of(dialect, kVersion5Adds));
  database.script(words_of(dialect, kVersion6Adds));
  database.run("INSERT INTO run(id, ledger_id, boot_id) VALUES (1, ?1, ?2)", random_hex128(), boot_id);
}

void migrate(Database& database, int version, Dialect dialect) {
  if (version < 1 || version >= kSchemaVersion) throw_other_version(database, version);
  if (version < 2) migrate_to_version_2(database);  // only SQLite ever had it
  if (version < 3) database.script(words_of(dialect, kVersion3Adds));
  if (version < 4) database.script(words_of(dialect, kVersion4Adds));
  if (version < 5) database.script(words_of(dialect, kVersion5Adds));
  database.script(words_of(dialect, kVersion6Adds));
}

void throw_other_version(const Database& database, long long version) {
  throw InvalidArgument(
      fmt::format("ledger {} has format version {}: this program knows versions 1 to {}; use the draftflow that "
                  "wrote it",
                  database.name(), version, kSchemaVersion));
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
  database.run("UPDATE queue_ref SET state = 0, holder = NULL, token = NULL, expires_ms = NULL WHERE state = 1");
  database.run("UPDATE queue_ref SET holder = NULL, token = NULL WHERE state = 0 AND token IS NOT NULL");
  database.run("UPDATE consumer SET available = available + leased, leased = 0 WHERE leased > 0");
  transaction.commit();
}

}  // namespace draftflow::sql
