// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/database.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/interrupt.h"
#include "ledger/sqlite/forks.h"

namespace draftflow::sqlite {
namespace {

// The turn keeps our own writers apart; this is for checkpoints, recovery and strangers with a SQLite shell.
constexpr int kBusyTimeoutMs = 60'000;
constexpr int kInterruptSteps = 20'000;  // of SQLite's machine between two checks: a millisecond or so

// A commit writes the log some time before anybody can see it, so that the log is looked at again and again from when it was
// written: after such pauses, and then for as long as somebody has the write turn. Others than our own writers, who take no
// turn, have those pauses, a tenth of a second in all.
constexpr std::chrono::milliseconds kFirstLook{1}, kLastLook{64};
constexpr std::chrono::milliseconds kLookWithoutWatch{20};

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

class Database::KeptStatement final : public sql::Statement {
 public:
  KeptStatement(Database& database, sqlite3_stmt* statement) : database_(database), statement_(statement) {}

  bool busy() const { return sqlite3_stmt_busy(statement_.get()) != 0; }

  void bind_text(int at, std::string_view text) override {
    check(sqlite3_bind_text64(statement_.get(), at, text.data() == nullptr ? "" : text.data(), text.size(), SQLITE_STATIC,
                              SQLITE_UTF8));
  }
  void bind_integer(int at, std::int64_t value) override { check(sqlite3_bind_int64(statement_.get(), at, value)); }
  void bind_null(int at) override { check(sqlite3_bind_null(statement_.get(), at)); }

  bool step() override {
    const int code = sqlite3_step(statement_.get());
    if (code == SQLITE_ROW) return true;
    if (code != SQLITE_DONE) database_.fail(code, sqlite3_sql(statement_.get()));
    changes_ = sqlite3_changes64(database_.handle_.get());
    return false;
  }
  std::int64_t changes() const override { return changes_; }

  std::int64_t integer(int column) const override { return sqlite3_column_int64(statement_.get(), column); }
  std::string text(int column) const override {
    const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(statement_.get(), column));
    if (bytes == nullptr) return {};
    return {bytes, static_cast<std::size_t>(sqlite3_column_bytes(statement_.get(), column))};
  }
  bool is_null(int column) const override { return sqlite3_column_type(statement_.get(), column) == SQLITE_NULL; }

  void reset() noexcept override {
    sqlite3_reset(statement_.get());
    sqlite3_clear_bindings(statement_.get());
  }

 private:
  struct FinalizeStatement {
    void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
  };
  void check(int code) {
    if (code != SQLITE_OK) database_.fail(code, sqlite3_sql(statement_.get()));
  }

  Database& database_;
  std::unique_ptr<sqlite3_stmt, FinalizeStatement> statement_;
  std::int64_t changes_ = 0;
};

Database::Database(std::filesystem::path path, Mode mode, LedgerClock clock)
    : path_(std::filesystem::absolute(path)),
      name_(path_.string()),
      clock_(std::move(clock)),
      read_only_(mode == Mode::kReadOnly) {
  int flags = SQLITE_OPEN_READONLY;
  if (read_only_) {
    turn_ = WriteTurn::to_look(beside(path_, ".lock"));
  } else {
    make_if_absent(path_);
    turn_.emplace(beside(path_, ".lock"));
    flags = SQLITE_OPEN_READWRITE;
  }
  check_regular(path_);
  open_anew_after_forks(path_);
  sqlite3* handle = nullptr;
  const int code = sqlite3_open_v2(path_.c_str(), &handle, flags | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nullptr);
  handle_.reset(handle);
  if (code != SQLITE_OK) fail(code, "open");
  sqlite3_busy_handler(handle, &Database::keep_waiting, this);
  sqlite3_progress_handler(
      handle, kInterruptSteps, [](void* self) { return static_cast<Database*>(self)->interrupted() ? 1 : 0; }, this);
  sqlite3_db_config(handle, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(handle, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
}

Database::~Database() = default;

sql::Statement& Database::prepare(std::string_view sql) {
  auto at = statements_.find(sql);
  if (at == statements_.end()) {
    sqlite3_stmt* made = nullptr;
    const int code =
        sqlite3_prepare_v3(handle_.get(), sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT, &made, nullptr);
    if (code != SQLITE_OK) fail(code, std::string(sql));
    at = statements_.emplace(sql, std::make_unique<KeptStatement>(*this, made)).first;
  }
  if (at->second->busy()) throw std::logic_error(fmt::format("statement used within itself: {}", sql));
  return *at->second;
}

void Database::script(const std::string& sql) {
  const int code = sqlite3_exec(handle_.get(), sql.c_str(), nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) fail(code, sql.substr(0, 60));
}

void Database::use_wal() {
  script("PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY");
  const auto mode = [&] {
    sql::Query found = query("PRAGMA journal_mode");
    return found.step() ? found.text(0) : std::string();
  };
  if (mode() == "wal") return;
  turn_->take();
  const int code = sqlite3_exec(handle_.get(), "PRAGMA journal_mode = WAL", nullptr, nullptr, nullptr);
  turn_->give();
  if (code != SQLITE_OK) fail(code, "PRAGMA journal_mode = WAL");
}

std::vector<std::string> Database::damage() {
  std::vector<std::string> found;
  sql::Query lines = query("PRAGMA integrity_check(20)");
  while (lines.step()) {
    if (lines.text(0) != "ok") found.push_back(lines.text(0));
  }
  return found;
}

std::vector<std::string> Database::cached_sql() const {
  std::vector<std::string> all;
  for (const auto& [sql, statement] : statements_) all.push_back(sql);
  return all;
}

bool Database::interrupted() noexcept {
  try {
    check_interrupt();
    return false;
  } catch (...) {  // must not pass through SQLite
    interrupt_ = std::current_exception();
    return true;
  }
}

int Database::keep_waiting(void* self, int n) {
  constexpr int kMostMs = 25, kDoublings = 5;
  const int ms = n < kDoublings ? 1 << n : kMostMs;
  const std::int64_t waited_ms = n < kDoublings ? 0 : std::int64_t{kMostMs} * (n - kDoublings);
  if (waited_ms >= kBusyTimeoutMs || static_cast<Database*>(self)->interrupted()) return 0;
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
  return 1;
}

void Database::fail(int code, const std::string& doing) {
  if (interrupt_) std::rethrow_exception(std::exchange(interrupt_, nullptr));
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

void Database::begin_write(sql::Turn) {
  if (read_only_) throw PermissionDenied(fmt::format("ledger {} was opened read-only", name_));
  turn_->take();
  try {
    run("BEGIN IMMEDIATE");
  } catch (...) {
    turn_->give();
    throw;
  }
}

void Database::commit(sql::Wakes) {  // whatever is written wakes
  const int code = sqlite3_exec(handle_.get(), "COMMIT", nullptr, nullptr, nullptr);
  if (code == SQLITE_OK) return;
  const int system = sqlite3_system_errno(handle_.get());
  if ((code & 0xff) == SQLITE_IOERR && system != ENOSPC && system != EDQUOT) {
    throw InDoubt(
        fmt::format("ledger {}: {} while committing: whether it holds is unknown; call again, every call is idempotent", name_,
                    sqlite3_errmsg(handle_.get())));
  }
  fail(code, "COMMIT");
}

void Database::begin_read() {
  run("BEGIN");
}

void Database::roll_back() noexcept {
  // SQLite has rolled back by itself after some errors.
  if (sqlite3_get_autocommit(handle_.get()) == 0) sqlite3_exec(handle_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
  if (read_only_) return;
  try {
    turn_->give();
  } catch (const Error&) {  // the lock goes with its descriptor
  }
}

// Another value than before: another connection has committed in between.
std::int64_t Database::look() {
  ++looks_;
  return find("PRAGMA data_version").value_or(0);
}

bool Database::wait(std::int64_t timeout_ms) {
  if (sqlite3_get_autocommit(handle_.get()) == 0) throw std::logic_error("wait within a transaction");
  const auto end = wait_end(timeout_ms);
  const bool first = !watch_;
  if (first) watch_.emplace(path_);
  for (;;) {
    check_interrupt();
    if (watch_->take() || first) {
      look_again_ = kFirstLook;
      // A commit is many writes.
      if (!first) std::this_thread::sleep_for(std::min(kFirstLook, until_next_check(end)));
    }
    if (look_again_.count() > 0 || !watch_->works()) {
      // Whoever had the turn before this line and has it no more is seen by the look after it.
      const bool is_taken = turn_ && turn_->is_taken();
      if (look() != seen_) {
        if (!pace_.may_wake(end)) return false;
        if (watch_->take()) look_again_ = kFirstLook;
        seen_ = look();
        return true;
      }
      look_again_ = look_again_ < kLastLook ? 2 * look_again_ : is_taken ? kLastLook : std::chrono::milliseconds(0);
    }
    const auto part = until_next_check(end);
    if (part.count() == 0) return false;
    watch_->sleep(std::min(part, !watch_->works() ? kLookWithoutWatch : look_again_.count() > 0 ? look_again_ : part));
  }
}

}  // namespace draftflow::sqlite
