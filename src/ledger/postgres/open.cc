// SPDX-License-Identifier: Apache-2.0
//
// Opening a ledger in a schema of a PostgreSQL database: whose tables are there, their version (table ledger_version) and the
// way to ours.
#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "ledger/clock.h"
#include "ledger/patient_ledger.h"
#include "ledger/postgres/database.h"
#include "ledger/sql/schema.h"
#include "ledger/sql/sql_ledger.h"

namespace draftflow {
namespace {

using postgres::Database;

constexpr std::int64_t kPatienceMs = 30'000, kOpenPatienceMs = 8'000;

bool has_table(Database& database, const std::string& name) {
  return database.find("SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename = ?1", name).has_value();
}

// The version of the tables that are there; nothing if there are none of ours.
std::optional<int> find_version(Database& database) {
  if (!has_table(database, "ledger_version")) {
    for (const char* const name : {"run", "prompt", "sample", "consumer"}) {
      if (!has_table(database, name)) continue;
      throw InvalidArgument(
          fmt::format("{}: schema '{}' has a table '{}' of another program; make a schema for the ledger (CREATE "
                      "SCHEMA runs) and name it: ?options=-csearch_path%3Druns",
                      database.name(), database.schema(), name));
    }
    return std::nullopt;
  }
  const std::int64_t version = database.find("SELECT version FROM ledger_version").value_or(0);
  if (version < 1 || version > sql::kSchemaVersion) sql::throw_other_version(database, version);
  return static_cast<int>(version);
}

void prepare(Database& database) {
  if (find_version(database) == sql::kSchemaVersion) return;
  sql::Transaction transaction(database);
  const std::optional<int> version = find_version(database);  // another process may have been first
  if (!version) {
    sql::make_tables(database, sql::Dialect::kPostgres, database.clock_id());
    database.script("CREATE TABLE ledger_version(version BIGINT NOT NULL)");
    database.run("INSERT INTO ledger_version(version) VALUES (?1)", sql::kSchemaVersion);
  } else if (*version != sql::kSchemaVersion) {
    sql::migrate(database, *version, sql::Dialect::kPostgres);
    database.run("UPDATE ledger_version SET version = ?1", sql::kSchemaVersion);
  }
  transaction.commit();
}

}  // namespace

std::unique_ptr<Ledger> open_postgres_ledger(const std::string& url, std::optional<std::function<std::int64_t()>> test_clock) {
  auto database = std::make_unique<Database>(url, std::move(test_clock));
  prepare(*database);
  return std::make_unique<SqlLedger>(std::move(database));
}

std::int64_t postgres_clock_ahead_ms(postgres::Database& database, const std::function<std::int64_t()>& here) {
  const std::int64_t before = here(), there = database.now_ms(), after = here();
  return there - (before + after) / 2;
}

std::optional<std::int64_t> ledger_clock_ahead_ms(const std::string& where) {
  if (!is_ledger_url(where)) return std::nullopt;
  return call_again(kOpenPatienceMs, [&] {
    Database database(where);
    return postgres_clock_ahead_ms(database, wall_milliseconds);
  });
}

std::unique_ptr<Ledger> open_postgres_ledger_read_only(const std::string& url) {
  auto ledger = call_again(kOpenPatienceMs, [&] {
    auto database = std::make_unique<Database>(url);
    const std::optional<int> version = find_version(*database);
    if (!version) {
      throw NotFound(fmt::format("there is no ledger in schema '{}' of {}: check the URL's search_path, or begin a run there",
                                 database->schema(), database->name()));
    }
    if (*version != sql::kSchemaVersion) sql::throw_other_version(*database, *version);
    return std::make_unique<SqlLedger>(std::move(database));
  });
  return std::make_unique<PatientLedger>(std::move(ledger), kPatienceMs);
}

std::unique_ptr<Ledger> open_postgres_ledger(const std::string& url) {
  // Shorter than for a call: a host that is spelt wrong should not take long to be told.
  auto ledger = call_again(kOpenPatienceMs, [&] { return open_postgres_ledger(url, std::nullopt); });
  return std::make_unique<PatientLedger>(std::move(ledger), kPatienceMs);
}

}  // namespace draftflow
