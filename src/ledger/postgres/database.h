// SPDX-License-Identifier: Apache-2.0
//
// The ledger's SQL over one schema of a PostgreSQL database (sql/database.h); time is the server's. The schema is the first of
// the connection's search_path that exists, and the session sees no other: what a write turn covers is all that a transaction
// can reach. Writers of all processes take turns by one advisory lock for each schema, taken alone or shared, which the server
// hands on in the order of asking. One connection, opened by the constructor and again by the first call outside a transaction
// that finds it gone. It needs a session of its own: directly, or through a pooler in session mode. Private to this room.
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

  // Wake-ups between the processes of one database, over all its schemas: a channel's name (up to 63 bytes) should say which
  // ledger it is of. notify() within a transaction is sent when that commits, and not at all if it is rolled back.
  void listen(const std::string& channel);
  void notify(const std::string& channel);
  // Whether a channel listened to was notified, by this object or another, since the last answer; true too after a
  // reconnection, as something may have been missed. Not within a transaction.
  bool wait_notification(int timeout_ms);

 private:
  class KeptStatement;
  enum class State { kOutside, kInside, kDead };  // of a transaction; dead: nothing of it will hold
  struct CloseConnection {
    void operator()(PGconn* connection) const { PQfinish(connection); }
  };

  sql::Statement& prepare(std::string_view sql) override;
  void begin_write(sql::Turn turn) override;
  void commit() override;
  void begin_read() override;
  void roll_back() noexcept override;

  void connect();
  void set_up_session();
  void listen_on(const std::string& channel);
  bool alive();
  PGconn* ready();
  void begin(const std::string& sql);
  [[noreturn]] void fail_to_connect();
  [[noreturn]] void fail(const PGresult* result, std::string_view sql, bool in_doubt = false);

  std::string url_, name_, schema_;
  std::optional<std::function<std::int64_t()>> test_clock_;
  std::unique_ptr<PGconn, CloseConnection> connection_;
  std::int64_t connections_ = 0, prepared_ = 0;  // made so far; statements are prepared anew on each connection
  std::int64_t turn_key_ = 0;
  State state_ = State::kOutside;
  std::vector<std::string> channels_;
  bool may_have_missed_ = false;
  std::map<std::string, std::unique_ptr<KeptStatement>, std::less<>> statements_;
  std::unique_ptr<KeptStatement> now_, notify_;
};

}  // namespace draftflow::postgres

namespace draftflow {

// By how much the server's clock is ahead of the one `here`, to within half the time of the question.
std::int64_t postgres_clock_ahead_ms(postgres::Database& database, const std::function<std::int64_t()>& here);

}  // namespace draftflow
