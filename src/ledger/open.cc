// SPDX-License-Identifier: Apache-2.0
#include "draftflow/ledger/ledger.h"
#include "ledger/clock.h"

namespace draftflow {

bool is_ledger_url(const std::string& where) {
  return where.starts_with("postgresql://") || where.starts_with("postgres://");
}

std::unique_ptr<Ledger> open_ledger(const std::string& where) {
  return is_ledger_url(where) ? open_postgres_ledger(where) : open_sqlite_ledger(where);
}

std::unique_ptr<Ledger> open_ledger_read_only(const std::string& where) {
  return is_ledger_url(where) ? open_postgres_ledger_read_only(where) : open_sqlite_ledger_read_only(where);
}

}  // namespace draftflow
