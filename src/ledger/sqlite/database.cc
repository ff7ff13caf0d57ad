// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/database.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"

namespace draftflow::sqlite {
namespace {

// The turn keeps our own writers apart; this is for checkpoints, recovery and strangers with a SQLite shell.
constexpr int kBusyTimeoutMs = 60'000;

// Closing any descriptor of a file drops every POSIX lock that the process holds on it. A database that another connection
// of this process has open must therefore never be opened here: without its locks the next process to close the file
// believes to be the last and removes the log that this one still writes to. So it is looked at by name, and made by a
// descriptor only when it is new, for its mode: SQLite gives its -wal and -shm files the mode of the database.
void make_if_absent(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0660);
  if (fd < 0 && errno != EEXIST) throw_errno(errno, "making " + path.string());
  if (fd >= 0) ::close(fd);
}

void check_regular(const std::filesystem::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw_errno(errno, "opening " + path.string());
  if (!S_ISREG(status.st_mode)) throw InvalidArgument(path.string() + " is not a regular file");
}

std::filesystem::path beside(std::filesystem::path path, const char* ending) {
  path += ending;
  return path;
}

}  // namespace

Query::~Query() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

bool Query::step() {
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  database_->fail(code, sqlite3_sql(statement_));
}

std::string Query::text(int column) const {
  const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
  return bytes == nullptr ? std::string()
                          : std::string(bytes, static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
}

void Query::bind(int at, std::string_view text) {
  check(
      sqlite3_bind_text64(statement_, at, text.data() == nullptr ? "" : text.data(), text.size(), SQLITE_STATIC, SQLITE_UTF8));
}

void Query::bind(int at, std::nullptr_t) {
  check(sqlite3_bind_null(statement_, at));
}

void Query::check(int code) {
  if (code != SQLITE_OK) database_->fail(code, sqlite3_sql(statement_));
}

Database::Database(std::filesystem::path path, Mode mode) : path_(std::filesystem::absolute(path)) {
  int flags = SQLITE_OPEN_READONLY;
  if (mode == Mode::kReadWrite) {
    make_if_absent(path_);
    turn_.emplace(beside(path_, ".lock"));
    flags = SQLITE_OPEN_READWRITE;
  }
  check_regular(path_);
  sqlite3* handle = nullptr;
  const int code = sqlite3_open_v2(path_.c_str(), &handle, flags | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nullptr);
  handle_.reset(handle);
  if (code != SQLITE_OK) fail(code, "open");
  sqlite3_busy_timeout(handle, kBusyTimeoutMs);
  sqlite3_db_config(handle, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(handle, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
}

sqlite3_stmt* Database::prepare(const char* sql) {
  auto at = statements_.find(std::string_view(sql));
  if (at == statements_.end()) {
    sqlite3_stmt* made = nullptr;
    const int code = sqlite3_prepare_v3(handle_.get(), sql, -1, SQLITE_PREPARE_PERSISTENT, &made, nullptr);
    if (code != SQLITE_OK) fail(code, sql);
    at = statements_.emplace(sql, made).first;
  }
  sqlite3_stmt* statement = at->second.get();
  if (sqlite3_stmt_busy(statement) != 0) throw std::logic_error(fmt::format("statement used within itself: {}", sql));
  return statement;
}

void Database::script(const std::string& sql) {
  const int code = sqlite3_exec(handle_.get(), sql.c_str(), nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) fail(code, sql.substr(0, 60));
}

void Database::use_wal() {
  script("PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY");
  const auto mode = [&] {
    Query found = query("PRAGMA journal_mode");
    return found.step() ? found.text(0) : std::string();
  };
  if (mode() == "wal") return;
  turn_->take();
  const int code = sqlite3_exec(handle_.get(), "PRAGMA journal_mode = WAL", nullptr, nullptr, nullptr);
  turn_->give();
  if (code != SQLITE_OK) fail(code, "PRAGMA journal_mode = WAL");
}

std::vector<std::string> Database::cached_sql() const {
  std::vector<std::string> all;
  for (const auto& [sql, statement] : statements_) all.push_back(sql);
  return all;
}

void Database::roll_back() noexcept {
  // SQLite has rolled back by itself after some errors.
  if (sqlite3_get_autocommit(handle_.get()) == 0) sqlite3_exec(handle_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
}

void Database::fail(int code, const std::string& doing) {
  const std::string file = path_.string();
  std::string found = handle_ ? sqlite3_errmsg(handle_.get()) : sqlite3_errstr(code);
  const int system = handle_ ? sqlite3_system_errno(handle_.get()) : 0;
  const int kind = code & 0xff;
  const bool from_system = kind == SQLITE_IOERR || kind == SQLITE_CANTOPEN || kind == SQLITE_FULL;
  if (from_system && system != 0) found += fmt::format(" ({})", std::generic_category().message(system));
  const bool full = kind == SQLITE_FULL || (from_system && (system == ENOSPC || system == EDQUOT));
  if (full || kind == SQLITE_NOMEM) {
    throw Exhausted(fmt::format("ledger {}: {}: nothing was changed; make room, then call again", file, found));
  }
  switch (kind) {
    case SQLITE_NOTADB: throw Corrupt(fmt::format("ledger {} is no SQLite database: {}; is it the right file?", file, found));
    case SQLITE_CORRUPT:
    case SQLITE_FORMAT:
    case SQLITE_MISMATCH: throw Corrupt(fmt::format("ledger {} is damaged: {}; restore it from a copy", file, found));
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      throw Unavailable(
          fmt::format("ledger {} stayed locked by another process for {} s; call again", file, kBusyTimeoutMs / 1000));
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH: throw PermissionDenied(fmt::format("ledger {} cannot be written: {}", file, found));
    case SQLITE_CANTOPEN:
      if (system == EACCES || system == EPERM || system == EROFS) {
        throw PermissionDenied(fmt::format("ledger {}: {}", file, found));
      }
      throw Unavailable(fmt::format("ledger {}: {}", file, found));
    case SQLITE_IOERR: throw Unavailable(fmt::format("ledger {}: {}; call again", file, found));
    case SQLITE_TOOBIG: throw InvalidArgument(fmt::format("ledger {}: a value is too big: {}", file, found));
    default: throw std::logic_error(fmt::format("ledger {}: {} [{}] in: {}", file, found, code, doing));
  }
}

Transaction::Transaction(Database& database) : database_(database) {
  if (!database_.turn_) throw PermissionDenied(fmt::format("ledger {} was opened read-only", database_.path().string()));
  database_.turn_->take();
  try {
    database_.run("BEGIN IMMEDIATE");
  } catch (...) {
    database_.turn_->give();
    throw;
  }
}

void Transaction::commit() {
  const int code = sqlite3_exec(database_.handle_.get(), "COMMIT", nullptr, nullptr, nullptr);
  if (code == SQLITE_OK) return;
  const int system = sqlite3_system_errno(database_.handle_.get());
  if ((code & 0xff) == SQLITE_IOERR && system != ENOSPC && system != EDQUOT) {
    throw InDoubt(
        fmt::format("ledger {}: {} while committing: whether it holds is unknown; call again, every call is idempotent",
                    database_.path().string(), sqlite3_errmsg(database_.handle_.get())));
  }
  database_.fail(code, "COMMIT");
}

Transaction::~Transaction() {
  database_.roll_back();
  try {
    database_.turn_->give();
  } catch (const Error&) {  // the lock goes with its descriptor
  }
}

Snapshot::Snapshot(Database& database) : database_(database) {
  database_.run("BEGIN");
}

Snapshot::~Snapshot() {
  database_.roll_back();
}

}  // namespace draftflow::sqlite
