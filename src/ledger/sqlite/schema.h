// SPDX-License-Identifier: Apache-2.0
//
// The tables of the SQLite ledger (docs/formats/ledger.md) and the check that a file holds this version of them.
// Private to this room.
#pragma once

#include <string>

#include "ledger/sqlite/database.h"

namespace draftflow::sqlite {

constexpr int kApplicationId = 0x44464C47;  // "DFLG"
constexpr int kSchemaVersion = 1;

// Makes the tables in a file that holds nothing, or checks the one that is there. A new boot ends every lease of an earlier
// one. InvalidArgument for another application or version, naming both; Corrupt if it is no database.
void prepare_schema(Database& database, const std::string& boot_id);

// As above, changing nothing: an empty file is InvalidArgument too.
void check_schema(Database& database);

}  // namespace draftflow::sqlite
