// SPDX-License-Identifier: Apache-2.0
//
// Opening a ledger in a SQLite file: whose file it is, its version (PRAGMA user_version) and the way to ours.
#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "ledger/clock.h"
#include "ledger/sql/schema.h"
#include "ledger/sql/sql_ledger.h"
#include "ledger/sqlite/database.h"

namespace draftflow {
namespace {

using sqlite::Database;

constexpr int kApplicationId = 0x44464C47;  // "DFLG"

std::string application_text(std::int64_t id) {
  return id == 0 ? "none" : fmt::format("0x{:08X}", id);
}

// The version of the tables that are there; nothing if the file holds nothing at all.
std::optional<int> find_version(Database& database) {
  const std::int64_t application = database.find("PRAGMA application_id").value_or(0);
  const std::int64_t version = database.find("PRAGMA user_version").value_or(0);
  if (application != kApplicationId) {
    const bool empty = database.find("SELECT COUNT(*) FROM sqlite_schema").value_or(0) == 0;
    if (empty && application == 0 && version == 0) return std::nullopt;
    // Each of these reads is a transaction of its own: another process may have made the ledger in between.
    if (application == 0 && database.find("PRAGMA application_id").value_or(0) == kApplicationId) return find_version(database);
    throw InvalidArgument(
        fmt::format("{} is a SQLite database of another program (application id {}; a draftflow ledger has {}); "
                    "name another file",
                    database.name(), application_text(application), application_text(kApplicationId)));
  }
  if (version < 1 || version > sql::kSchemaVersion) sql::throw_other_version(database, version);
  return static_cast<int>(version);
}

void prepare(Database& database) {
  const std::optional<int> there = find_version(database);
  if (there != sql::kSchemaVersion) {
    sql::Transaction transaction(database);
    const std::optional<int> version = find_version(database);  // another process may have been first
    if (!version) sql::make_tables(database, sql::Dialect::kSqlite, database.boot_id());
    if (version && *version != sql::kSchemaVersion) sql::migrate(database, *version);
    database.script(fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {}", kApplicationId, sql::kSchemaVersion));
    transaction.commit();
  }
  if (!there) sync_folder(database.path().parent_path());
  database.use_wal();
  sql::end_leases_of_earlier_boots(database, database.boot_id());
}

}  // namespace

std::unique_ptr<Ledger> open_sqlite_ledger(const std::filesystem::path& path, LedgerClock clock) {
  if (path.has_parent_path()) make_folders(path.parent_path());
  auto database = std::make_unique<Database>(path, Database::Mode::kReadWrite, std::move(clock));
  prepare(*database);
  return std::make_unique<SqlLedger>(std::move(database));
}

std::unique_ptr<Ledger> open_sqlite_ledger(const std::filesystem::path& path) {
  return open_sqlite_ledger(path, boot_clock());
}

std::unique_ptr<Ledger> open_sqlite_ledger_read_only(const std::filesystem::path& path) {
  auto database = std::make_unique<Database>(path, Database::Mode::kReadOnly);
  const std::optional<int> version = find_version(*database);
  if (!version) throw InvalidArgument(fmt::format("{} is empty: it is no ledger yet", database->name()));
  if (*version != sql::kSchemaVersion) {
    throw InvalidArgument(
        fmt::format("ledger {} has format version {}: whoever opens it to write (a run, or 'draftflow ingest') "
                    "brings it to version {}; this command only reads",
                    database->name(), *version, sql::kSchemaVersion));
  }
  return std::make_unique<SqlLedger>(std::move(database));
}

}  // namespace draftflow
