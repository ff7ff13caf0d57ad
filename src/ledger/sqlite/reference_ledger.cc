// SPDX-License-Identifier: Apache-2.0
#include "draftflow/ledger/reference_ledger.h"

#include <fmt/format.h>
#include <sqlite3.h>

#include <charconv>
#include <memory>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

struct Close {
  void operator()(sqlite3* handle) const { sqlite3_close_v2(handle); }
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};

// A name in a URI: whatever the path holds, none of it is taken for an option.
std::string uri_of(const std::filesystem::path& path, bool immutable) {
  std::string uri = "file:";
  for (const char c : std::filesystem::absolute(path).string()) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '/' || c == '.' ||
                       c == '_' || c == '-';
    uri += plain ? std::string(1, c) : fmt::format("%{:02x}", static_cast<unsigned char>(c));
  }
  return uri + (immutable ? "?mode=ro&immutable=1" : "?mode=ro");
}

// Beside sqlite::Database, whose errors speak of our own ledgers and whose files may be written: here a missing table is the
// file's fault, and nothing may appear beside it.
class Reader {
 public:
  explicit Reader(const std::filesystem::path& path) : path_(path) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) {
      throw NotFound(fmt::format("there is no reference ledger at {}: check the path", path.string()));
    }
    // Without a log there is nothing that a writer has not finished, and opened as it is no files appear beside it. With one
    // the database is opened as its writer does, which needs the folder to be writable.
    const auto log = std::filesystem::file_size(path.string() + "-wal", error);
    const bool quiet = error || log == 0;
    sqlite3* handle = nullptr;
    const int code = sqlite3_open_v2(uri_of(path, quiet).c_str(), &handle, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, nullptr);
    handle_.reset(handle);
    if (code != SQLITE_OK) fail("opening it", code);
    sqlite3_busy_timeout(handle, 10'000);
    sqlite3_db_config(handle, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
    sqlite3_db_config(handle, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  }

  // Rows of two columns, as text; NULL is empty.
  template <class Visit>
  void rows(const char* table, const char* sql, Visit visit) {
    sqlite3_stmt* made = nullptr;
    const int prepared = sqlite3_prepare_v2(handle_.get(), sql, -1, &made, nullptr);
    const std::unique_ptr<sqlite3_stmt, Close> statement(made);
    if (prepared != SQLITE_OK) fail(fmt::format("table '{}'", table), prepared);
    int code = 0;
    std::int64_t row = 0;
    while ((code = sqlite3_step(made)) == SQLITE_ROW) {
      ++row;
      try {
        visit(text(made, 0), text(made, 1));
      } catch (const Error& error) {
        throw Corrupt(fmt::format("{}, table '{}', row {}: {}", path_.string(), table, row, error.what()));
      }
    }
    if (code != SQLITE_DONE) fail(fmt::format("table '{}'", table), code);
  }

 private:
  static std::string text(sqlite3_stmt* statement, int column) {
    const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(statement, column));
    return bytes == nullptr ? "" : std::string(bytes, static_cast<std::size_t>(sqlite3_column_bytes(statement, column)));
  }
  [[noreturn]] void fail(const std::string& what, int code) const {
    const std::string message =
        fmt::format("the reference ledger {}: {}: {}", path_.string(), what, printable(sqlite3_errmsg(handle_.get()), 200));
    if (code == SQLITE_BUSY || code == SQLITE_LOCKED) throw Unavailable(message + "; somebody writes to it: retry");
    if (code == SQLITE_CANTOPEN || code == SQLITE_READONLY) {
      throw PermissionDenied(message + "; its log (-wal) needs a folder that can be written to: copy both files elsewhere");
    }
    if (code == SQLITE_IOERR) throw Unavailable(message + "; retry");
    if (code == SQLITE_NOMEM) throw Exhausted(message);
    throw Corrupt(message);
  }

  std::filesystem::path path_;
  std::unique_ptr<sqlite3, Close> handle_;
};

}  // namespace

ReferenceLedger read_reference_ledger(const std::filesystem::path& path) {
  Reader reader(path);
  ReferenceLedger ledger;
  reader.rows("committed", "SELECT sample_id, ref_json FROM committed ORDER BY rowid", [&](const auto& id, const auto& json) {
    SampleRef ref = sample_ref_from_json(json);
    if (ref.sample_id.str() != id) {
      throw Corrupt(fmt::format("the ref is of sample '{}', the row of '{}'", printable(ref.sample_id.str()), printable(id)));
    }
    ledger.committed.push_back(std::move(ref));
  });
  reader.rows("acked", "SELECT sample_id, NULL FROM acked ORDER BY rowid",
              [&](const auto& id, const auto&) { ledger.acked.push_back(SampleId(id).str()); });
  reader.rows("marker", "SELECT k, v FROM marker", [&](const auto& key, const auto& value) {
    if (key == "optimizer_durable") {
      if (value != "true" && value != "false") throw Corrupt(fmt::format("'{}' is {}", key, printable(value, 80)));
      ledger.optimizer_durable = value == "true";
    } else if (key == "global_step" && value != "null") {
      std::int64_t step = 0;
      const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), step);
      if (error != std::errc() || end != value.data() + value.size() || step < 0) {
        throw Corrupt(fmt::format("'{}' is {}", key, printable(value, 80)));
      }
      ledger.global_step = step;
    }
  });
  return ledger;
}

}  // namespace draftflow
