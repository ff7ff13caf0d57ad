// SPDX-License-Identifier: Apache-2.0
//
// The ledger's SQL over one SQLite file (sql/database.h). Writers of all processes take turns by a lock file; time is the
// clock's. Private to this room.
#pragma once

#include <sqlite3.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ledger/clock.h"
#include "ledger/sql/database.h"
#include "ledger/sqlite/file_watch.h"
#include "ledger/sqlite/write_turn.h"
#include "ledger/wake_pace.h"

namespace draftflow::sqlite {

class Database final : public sql::Database {
 public:
  enum class Mode { kReadWrite, kReadOnly };

  // kReadWrite makes the file (0660) if it is not there. Nothing of the content is looked at yet.
  Database(std::filesystem::path path, Mode mode, LedgerClock clock = boot_clock());
  ~Database() override;

  void script(const std::string& sql) override;
  const std::string& name() const override { return name_; }
  std::vector<std::string> cached_sql() const override;
  std::int64_t now_ms() override { return clock_.now_ms(); }
  std::string clock_id() const override { return clock_.boot_id; }
  std::vector<std::string> damage() override;  // PRAGMA integrity_check
  bool wait(std::int64_t timeout_ms) override;

  void use_wal();  // write-ahead log, synced at each commit; does nothing to a file that has it
  const std::filesystem::path& path() const { return path_; }
  const std::string& boot_id() const { return clock_.boot_id; }
  bool read_only() const { return read_only_; }
  std::int64_t looks() const { return looks_; }  // how often wait() has asked SQLite; for tests

 private:
  class KeptStatement;
  struct CloseDatabase {
    void operator()(sqlite3* handle) const { sqlite3_close_v2(handle); }
  };
  sql::Statement& prepare(std::string_view sql) override;
  void begin_write(sql::Turn turn) override;
  void commit(sql::Wakes wakes) override;
  void begin_read() override;
  void roll_back() noexcept override;
  [[noreturn]] void fail(int code, const std::string& doing);
  std::int64_t look();
  bool interrupted() noexcept;                 // makes the check; what it throws is kept for fail()
  static int keep_waiting(void* self, int n);  // SQLite's busy handler

  std::filesystem::path path_;
  std::string name_;
  LedgerClock clock_;
  const bool read_only_;
  std::optional<WriteTurn> turn_;  // absent when read-only, and there is no lock file
  std::exception_ptr interrupt_;
  std::optional<FileWatch> watch_;  // from the first wait() on
  std::int64_t seen_ = -1, looks_ = 0;
  std::chrono::milliseconds look_again_{0};  // a commit may be on its way; 0: none is
  WakePace pace_;
  std::unique_ptr<sqlite3, CloseDatabase> handle_;
  std::map<std::string, std::unique_ptr<KeptStatement>, std::less<>> statements_;
};

}  // namespace draftflow::sqlite
