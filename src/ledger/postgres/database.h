// SPDX-License-Identifier: Apache-2.0
//
// The ledger's SQL over one schema of a PostgreSQL database (sql/database.h); time is the server's. The schema is the first of
// the connection's search_path that exists, and the session sees no other: what a write turn covers is all that a transaction
// can reach. Writers of all processes take turns by one advisory lock for each schema, taken alone or shared, which the server
// hands on in the order of asking. One connection, opened by the constructor and again by the first call outside a transaction
// that finds it gone. It needs a session of its own: directly, or through a pooler in session mode. A wait for the server can
// be interrupted (base/interrupt.h), which costs the connection. Private to this room.
//
// Wake-ups are LISTEN and NOTIFY, but a commit with a NOTIFY waits for all others of the database, so that it is sent only if
// somebody waits: a waiter has a shared advisory lock, from before its look at the ledger until it writes itself, and a commit
// that concerns waiters tries to take that lock alone, to its end. If it cannot, it notifies. If it can, whoever comes to wait
// has the lock only when the commit is visible.
//
//   postgres::Database db("postgresql://trainer@host/runs?options=-csearch_path%3Drun_7");
#pragma once

#include <libpq-fe.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ledger/sql/database.h"
#include "ledger/wake_pace.h"

namespace draftflow::postgres {

class Database final : public sql::Database {
 public:
  // A connection string of libpq: "postgresql://..." or "host=... dbname=...". What it leaves open comes from the environment
  // (PGHOST, PGPASSWORD ...) and ~/.pgpass. Nothing of the content is looked at yet. InvalidArgument for a string that is none
  // and for a database that is not in UTF-8, NotFound for an absent database or schema, PermissionDenied for a role or password
  // that the server refuses, else Unavailable.
  explicit Database(std::string url, std::optional<std::function<std::int64_t()>> test_clock = {});
  ~Database() override;

  void script(const std::string& sql) override;
  const std::string& name() const override { return name_; }  // without user and password
  std::vector<std::string> cached_sql() const override;
  std::int64_t now_ms() override;
  std::string clock_id() const override { return "server"; }  // it goes on over boots
  bool shares_turns() const override { return true; }

  const std::string& schema() const { return schema_; }
  // Until a commit of another connection that concerns waiters; true too when the connection was lost, as something may have
  // been missed.
  bool wait(std::int64_t timeout_ms) override;

 private:
  class KeptStatement;
  enum class State { kOutside, kInside, kDead };  // of a transaction; dead: nothing of it will hold
  struct CloseConnection {
    void operator()(PGconn* connection) const { PQfinish(connection); }
  };
  struct ClearResult {
    void operator()(PGresult* result) const { PQclear(result); }
  };
  using Result = std::unique_ptr<PGresult, ClearResult>;

  sql::Statement& prepare(std::string_view sql) override;
  void begin_write(sql::Turn turn) override;
  void commit(sql::Wakes wakes) override;
  void begin_read() override;
  void roll_back() noexcept override;

  void connect();
  static std::unique_ptr<PGconn, CloseConnection> await_connection(const std::string& url);
  void set_up_session();
  Result reply(int sent);
  Result execute(const std::string& sql) { return reply(PQsendQuery(connection_.get(), sql.c_str())); }
  std::string notice() const;
  bool enrol(WaitClock::time_point end);
  bool alive();
  PGconn* ready();
  void begin(const std::string& sql);
  [[noreturn]] void fail_to_connect();
  [[noreturn]] void fail(const PGresult* result, std::string_view sql, bool in_doubt = false);

  std::string url_, name_, schema_;
  std::optional<std::function<std::int64_t()>> test_clock_;
  std::unique_ptr<PGconn, CloseConnection> connection_;
  std::int64_t connections_ = 0, prepared_ = 0;  // made so far; statements are prepared anew on each connection
  std::int64_t turn_key_ = 0, waiters_key_ = 0;
  State state_ = State::kOutside;
  bool listens_ = false, waits_ = false;  // on this connection; waits: it has the waiters' lock
  bool notified_ = false;                 // and wait() has not told it yet
  WakePace pace_;
  std::map<std::string, std::unique_ptr<KeptStatement>, std::less<>> statements_;
  std::unique_ptr<KeptStatement> now_;
};

}  // namespace draftflow::postgres

namespace draftflow {

// By how much the server's clock is ahead of the one `here`, to within half the time of the question.
std::int64_t postgres_clock_ahead_ms(postgres::Database& database, const std::function<std::int64_t()>& here);

}  // namespace draftflow
