// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <chrono>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"
#include "draftflow/base/text.h"
#include "draftflow/ledger/ledger.h"
#include "ledger/clock.h"

namespace draftflow {
namespace {

// A ledger in memory says mem:// in its messages; by that name another process could not find it, and SQLite would make a file.
void refuse_memory(const std::string& where) {
  if (!where.starts_with("mem://")) return;
  throw InvalidArgument(
      fmt::format("ledger {}: a ledger in memory has no name that others could open; name a SQLite file or a PostgreSQL schema",
                  printable(where)));
}

}  // namespace

void wait_for_change(Ledger& ledger, const std::function<bool()>& stop) {
  constexpr std::chrono::seconds kAskAgain{1};
  const auto end = std::chrono::steady_clock::now() + kAskAgain;
  while (!stop()) {
    const auto part = until_next_check(end);
    if (part.count() == 0 || ledger.wait(part.count())) return;
  }
}

bool is_ledger_url(const std::string& where) {
  return where.starts_with("postgresql://") || where.starts_with("postgres://");
}

std::unique_ptr<Ledger> open_ledger(const std::string& where) {
  refuse_memory(where);
  return is_ledger_url(where) ? open_postgres_ledger(where) : open_sqlite_ledger(where);
}

std::unique_ptr<Ledger> open_ledger_read_only(const std::string& where) {
  refuse_memory(where);
  return is_ledger_url(where) ? open_postgres_ledger_read_only(where) : open_sqlite_ledger_read_only(where);
}

}  // namespace draftflow
