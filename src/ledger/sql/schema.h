// SPDX-License-Identifier: Apache-2.0
//
// The ledger's tables (docs/formats/ledger.md), written for SQLite and turned into PostgreSQL's words, and the steps from one
// version to the next. Where an engine keeps the version is its own affair. Private to this room.
#pragma once

#include <string>

#include "ledger/sql/database.h"

namespace draftflow::sql {

constexpr int kSchemaVersion = 6;

enum class Dialect { kSqlite, kPostgres };

// Within a transaction of the caller's: all tables and the row of the run.
void make_tables(Database& database, Dialect dialect, const std::string& boot_id);

// Within a transaction: from an older version, which this program knows, to kSchemaVersion.
void migrate(Database& database, int version, Dialect dialect = Dialect::kSqlite);

// "ledger NAME has format version 9: this program knows versions 1 to 6; ...", as InvalidArgument.
[[noreturn]] void throw_other_version(const Database& database, long long version);

// The first process after a boot ends every lease: its clock began anew.
void end_leases_of_earlier_boots(Database& database, const std::string& boot_id);

}  // namespace draftflow::sql
