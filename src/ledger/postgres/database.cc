// SPDX-License-Identifier: Apache-2.0
#include "ledger/postgres/database.h"

#include <endian.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <stdexcept>
#include <utility>

#include "draftflow/base/error.h"

namespace draftflow::postgres {
namespace {

// What a kept statement or a message needs of PostgreSQL's catalog (pg_type.dat); these never change.
constexpr Oid kBool = 16, kInt8 = 20, kText = 25, kUnspecified = 0;
constexpr std::size_t kMaxTextBytes = 0x3fffffff;  // the server's own limit of one value
constexpr int kMaxParameters = 65535;              // of the protocol
constexpr std::int64_t kTurnSeed = 0x44464C47;     // "DFLG": keeps our advisory locks off those of other programs
constexpr std::int64_t kWaitersSeed = 0x44464C57;

bool succeeded(const auto& result) {
  const ExecStatusType status = PQresultStatus(result.get());
  return status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK || status == PGRES_EMPTY_QUERY;
}

struct Translated {
  std::string sql;
  int parameters = 0;
};
// ?1 becomes $1, but not within '...' and "...". The ledger's SQL has no comments.
Translated translate(std::string_view sql) {
  Translated out;
  char quote = 0;
  for (std::size_t i = 0; i < sql.size(); ++i) {
    const char c = sql[i];
    int number = 0;
    if (quote != 0) {
      if (c == quote) quote = 0;
    } else if (c == '\'' || c == '"') {
      quote = c;
    } else if (c == '?') {
      const auto [end, error] = std::from_chars(sql.data() + i + 1, sql.data() + sql.size(), number);
      if (error == std::errc() && (number < 1 || number > kMaxParameters)) {
        throw std::logic_error(fmt::format("placeholder ?{}: 1 to {} are allowed, in: {}", number, kMaxParameters, sql));
      }
      if (error == std::errc()) {
        out.sql += fmt::format("${}", number);
        out.parameters = std::max(out.parameters, number);
        i = static_cast<std::size_t>(end - sql.data()) - 1;
        continue;
      }
    }
    out.sql += c;
  }
  return out;
}

// An error of libpq's in PQERRORS_VERBOSE: "...FATAL:  3D000: database "x" does not exist\nLOCATION:  ...". There is no other
// way to learn the SQLSTATE of a connection that did not come about.
struct ServerError {
  std::string sqlstate, text;  // sqlstate is empty for an error of the client's side
};
ServerError parse_error(std::string_view message) {
  constexpr std::size_t kCodeBytes = 5;
  const auto is_code = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z'); };
  for (std::size_t at = message.find(":  "); at != std::string_view::npos; at = message.find(":  ", at + 1)) {
    const std::string_view rest = message.substr(at + 3);
    if (rest.size() < kCodeBytes + 2 || rest.substr(kCodeBytes, 2) != ": ") continue;
    if (!std::all_of(rest.begin(), rest.begin() + kCodeBytes, is_code)) continue;
    const std::string_view text = rest.substr(kCodeBytes + 2);
    return {std::string(rest.substr(0, kCodeBytes)), std::string(text.substr(0, text.find('\n')))};
  }
  std::string line;
  for (const char c : message) {
    if (c != '\n' && c != '\t') {
      line += c;
    } else if (!line.empty() && line.back() != ' ') {
      line += ' ';
    }
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return {.sqlstate = "", .text = line};
}

bool is_uri(std::string_view url) {
  return url.starts_with("postgresql://") || url.starts_with("postgres://");
}

// libpq takes what follows an unescaped '/', '?' or '@' in a password for the host, the database or the port, and would show it
// in its messages; and its messages on a string that it cannot read quote from it.
void check_url(const std::string& url) {
  if (is_uri(url)) {
    const std::size_t authority = url.find("//") + 2;
    const std::size_t at = url.find('@'), rest = url.find_first_of("/?", authority);
    if (at != std::string::npos && (at > rest || url.find('@', at + 1) != std::string::npos)) {
      throw InvalidArgument(
          "the ledger's postgresql:// URL (not shown, it may hold a password) has an '@' that does not end user and password: "
          "write '/', '?' and '@' in them as %2F, %3F and %40");
    }
  }
  char* found = nullptr;
  const std::unique_ptr<PQconninfoOption, decltype(&PQconninfoFree)> options(PQconninfoParse(url.c_str(), &found),
                                                                             &PQconninfoFree);
  const std::unique_ptr<char, decltype(&PQfreemem)> message(found, &PQfreemem);
  if (options) return;
  const bool secret = url.find('@') != std::string::npos || url.find("password") != std::string::npos;
  throw InvalidArgument(
      fmt::format("the ledger's connection string {}: postgresql://USER@HOST:PORT/DATABASE or host=HOST dbname=DATABASE "
                  "is allowed",
                  secret || !message ? "(not shown, it may hold a password) cannot be read"
                                     : fmt::format("'{}' cannot be read: {}", url, parse_error(message.get()).text)));
}

std::string name_of(const PGconn* connection) {
  const auto text = [](const char* value) { return std::string_view(value == nullptr ? "" : value); };
  const std::string_view host = text(PQhost(connection)), port = text(PQport(connection)), database = text(PQdb(connection));
  const bool is_socket = host.starts_with('/') || host.starts_with('@');
  if (is_socket) return fmt::format("postgresql:///{}?host={}&port={}", database, host, port);
  const bool v6 = host.find(':') != std::string_view::npos;
  return fmt::format("postgresql://{}{}{}:{}/{}", v6 ? "[" : "", host, v6 ? "]" : "", port, database);
}

bool only_reads(std::string_view sql) {
  return sql.starts_with("SELECT") || sql.starts_with("select");
}

}  // namespace

class Database::KeptStatement final : public sql::Statement {
 public:
  KeptStatement(Database& database, std::string_view sql) : database_(database), sql_(sql) {
    Translated translated = translate(sql);
    translated_ = std::move(translated.sql);
    const auto parameters = static_cast<std::size_t>(translated.parameters);
    types_.assign(parameters, kUnspecified);
    values_.assign(parameters, nullptr);
    lengths_.assign(parameters, 0);
    integers_.assign(parameters, 0);
    formats_.assign(parameters, 1);  // binary: text is sent as it lies, with its length
  }

  bool busy() const { return result_ != nullptr; }

  void bind_text(int at, std::string_view text) override {
    if (text.size() > kMaxTextBytes) {
      throw InvalidArgument(
          fmt::format("ledger {}: a text of {} bytes: at most {} are allowed", database_.name_, text.size(), kMaxTextBytes));
    }
    bind(at, kText, text.data() == nullptr ? "" : text.data(), static_cast<int>(text.size()));
  }
  void bind_integer(int at, std::int64_t value) override {
    const std::size_t i = index(at);
    integers_[i] = static_cast<std::int64_t>(htobe64(static_cast<std::uint64_t>(value)));
    bind(at, kInt8, reinterpret_cast<const char*>(&integers_[i]), sizeof(std::int64_t));
  }
  void bind_null(int at) override { bind(at, kUnspecified, nullptr, 0); }

  bool step() override {
    if (done_) return false;
    if (!result_) execute();
    if (++row_ < PQntuples(result_.get())) return true;
    result_.reset();
    done_ = true;
    return false;
  }
  std::int64_t changes() const override { return changes_; }

  std::int64_t integer(int column) const override {
    const std::optional<std::string_view> found = cell(column);
    if (!found) return 0;
    if (PQftype(result_.get(), column) == kBool) return *found == "t" ? 1 : 0;
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(found->data(), found->data() + found->size(), value);
    if (error == std::errc() && (end == found->data() + found->size() || *end == '.')) return value;
    throw std::logic_error(fmt::format("column {} is '{}', which is no 64-bit integer, in: {}", column, *found, sql_));
  }
  std::string text(int column) const override { return std::string(cell(column).value_or("")); }
  bool is_null(int column) const override { return !cell(column); }

  void reset() noexcept override {
    result_.reset();
    row_ = -1;
    done_ = false;
    std::fill(types_.begin(), types_.end(), kUnspecified);
    std::fill(values_.begin(), values_.end(), nullptr);
  }

 private:
  std::size_t index(int at) const {
    if (at >= 1 && at <= static_cast<int>(types_.size())) return static_cast<std::size_t>(at - 1);
    throw std::logic_error(fmt::format("value for ?{} of {} placeholders, in: {}", at, types_.size(), sql_));
  }
  void bind(int at, Oid type, const char* value, int length) {
    const std::size_t i = index(at);
    types_[i] = type;
    values_[i] = value;
    lengths_[i] = length;
  }

  std::optional<std::string_view> cell(int column) const {
    if (!result_ || column < 0 || column >= PQnfields(result_.get())) return std::nullopt;
    if (PQgetisnull(result_.get(), row_, column) != 0) return std::nullopt;
    return std::string_view(PQgetvalue(result_.get(), row_, column),
                            static_cast<std::size_t>(PQgetlength(result_.get(), row_, column)));
  }

  const std::string& prepared(PGconn* connection) {
    if (prepared_on_ != database_.connections_) names_.clear();
    prepared_on_ = database_.connections_;
    const auto at = names_.find(types_);
    if (at != names_.end()) return at->second;
    const std::string name = fmt::format("draftflow_{}", ++database_.prepared_);
    const Result made = database_.reply(
        PQsendPrepare(connection, name.c_str(), translated_.c_str(), static_cast<int>(types_.size()), types_.data()));
    if (!succeeded(made)) database_.fail(made.get(), sql_);
    return names_.emplace(types_, name).first->second;
  }

  void execute() {
    PGconn* connection = database_.ready();
    const std::string& name = prepared(connection);
    Result result = database_.reply(PQsendQueryPrepared(connection, name.c_str(), static_cast<int>(types_.size()),
                                                        values_.data(), lengths_.data(), formats_.data(), 0));
    if (!succeeded(result)) {
      database_.fail(result.get(), sql_, database_.state_ == State::kOutside && !only_reads(sql_));
    }
    const std::string_view tag = PQcmdStatus(result.get());
    const bool changes = tag.starts_with("INSERT") || tag.starts_with("UPDATE") || tag.starts_with("DELETE");
    changes_ = changes ? std::stoll(PQcmdTuples(result.get())) : 0;
    result_ = std::move(result);
    row_ = -1;
  }

  Database& database_;
  const std::string sql_;
  std::string translated_;
  std::vector<Oid> types_;
  std::vector<const char*> values_;
  std::vector<int> lengths_, formats_;
  std::vector<std::int64_t> integers_;             // in the order of bytes in which they are sent
  std::map<std::vector<Oid>, std::string> names_;  // on the server, by the types that were bound
  std::int64_t prepared_on_ = 0;
  Result result_;  // all rows; absent before the first and after the last
  int row_ = -1;
  bool done_ = false;
  std::int64_t changes_ = 0;
};

Database::Database(std::string url, std::optional<std::function<std::int64_t()>> test_clock)
    : url_(std::move(url)), test_clock_(std::move(test_clock)) {
  check_url(url_);
  now_ = std::make_unique<KeptStatement>(*this, "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint");
  connect();
}

Database::~Database() = default;

// --- the connection

void Database::connect() {
  connection_ = await_connection(url_);
  PGconn* connection = connection_.get();
  if (connection == nullptr) throw Exhausted("no memory for a connection to a PostgreSQL server");
  name_ = name_of(connection);
  PQsetNoticeReceiver(
      connection, [](void*, const PGresult*) {}, nullptr);
  try {
    if (PQstatus(connection) != CONNECTION_OK) fail_to_connect();
    set_up_session();
  } catch (...) {
    connection_.reset();  // never used half set up
    throw;
  }
  ++connections_;
}

void Database::set_up_session() {
  PGconn* connection = connection_.get();
  const char* encoding = PQparameterStatus(connection, "server_encoding");
  if (encoding == nullptr || std::string_view(encoding) != "UTF8") {
    throw InvalidArgument(
        fmt::format("ledger {}: the database's encoding is {}, only UTF8 is allowed: create another with "
                    "ENCODING 'UTF8' TEMPLATE template0",
                    name_, encoding == nullptr ? "unknown" : encoding));
  }
  // A client that hangs or is gone must not keep the write turn: the timeout is for the first, the rest for the second.
  std::string sql =
      "SET standard_conforming_strings = on; SET synchronous_commit = on; SET lock_timeout = 0; SET statement_timeout = 0;"
      " SET idle_in_transaction_session_timeout = '10s'; SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2;"
      " SET tcp_keepalives_count = 3; SET tcp_user_timeout = '10s';";
  if (PQserverVersion(connection) >= 140000) sql += " SET client_connection_check_interval = '5s';";
  sql += fmt::format(
      " SELECT current_schema(), hashtextextended(current_schema(), {}), hashtextextended(current_schema(), {}),"
      " set_config('search_path', quote_ident(current_schema()) || ', pg_temp', false)",
      kTurnSeed, kWaitersSeed);
  const Result result = execute(sql);
  if (!succeeded(result)) fail(result.get(), sql);
  if (PQntuples(result.get()) != 1 || PQgetisnull(result.get(), 0, 0) != 0) {
    throw NotFound(
        fmt::format("ledger {}: no schema of the search_path exists there, or none may be used: CREATE SCHEMA first, "
                    "or name another with options=-csearch_path%3DSCHEMA",
                    name_));
  }
  schema_ = PQgetvalue(result.get(), 0, 0);
  turn_key_ = std::stoll(PQgetvalue(result.get(), 0, 1));
  waiters_key_ = std::stoll(PQgetvalue(result.get(), 0, 2));
  listens_ = waits_ = false;
}

// The connection to send the next statement on. Prepared statements and the session's settings are gone with a connection and
// made again; a transaction is not.
PGconn* Database::ready() {
  if (state_ == State::kOutside) {
    if (!alive()) connect();
  } else if (state_ == State::kDead || PQstatus(connection_.get()) != CONNECTION_OK) {
    state_ = State::kDead;
    throw Unavailable(fmt::format("ledger {}: this transaction failed before: nothing was changed; call again", name_));
  }
  return connection_.get();
}

void Database::fail_to_connect() {
  const ServerError error = parse_error(PQerrorMessage(connection_.get()));
  const std::string message = fmt::format("ledger {}: {}", name_, error.text);
  const std::string_view code = error.sqlstate;
  if (code.empty() && error.text.starts_with("invalid ")) throw InvalidArgument(message + ": correct the connection string");
  if (code == "3D000") throw NotFound(message + ": create it with createdb, or correct the name");
  if (code.starts_with("28") || code == "42501" || PQconnectionNeedsPassword(connection_.get()) != 0) {
    throw PermissionDenied(message + ": give the role and its password (PGUSER, PGPASSWORD, ~/.pgpass), or have it admitted");
  }
  if (code == "53300") throw Unavailable(message + ": close others or raise the limit, then call again");
  if (code.empty() && message.find("Permission denied") != std::string::npos) throw PermissionDenied(message);
  throw Unavailable(message + ": start the server or correct host and port, then call again");
}

// in_doubt: a lost connection leaves it unknown whether the statement holds.
void Database::fail(const PGresult* result, std::string_view sql, bool in_doubt) {
  const std::string said = parse_error(PQerrorMessage(connection_.get())).text;
  const char* state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
  if (!alive() || state == nullptr) {  // an error without a SQLSTATE is libpq's own: it could not send, receive or keep
    connection_.reset();
    if (state_ == State::kInside) state_ = State::kDead;
    if (in_doubt) {
      throw InDoubt(
          fmt::format("ledger {}: the connection was lost ({}) during {}: whether it holds is unknown; call again, every call "
                      "is idempotent",
                      name_, said, sql.substr(0, 60)));
    }
    throw Unavailable(fmt::format("ledger {}: the connection was lost ({}): nothing was changed; call again", name_, said));
  }
  const char* primary = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
  const std::string_view code = state;
  const std::string found = fmt::format("ledger {}: {}", name_, primary == nullptr ? "" : primary);
  const auto is = [&](auto... starts) { return (code.starts_with(starts) || ...); };
  if (is("40", "08", "57", "58", "55P03", "53300", "25P02", "25P03")) {
    throw Unavailable(fmt::format("{} [{}]: nothing was changed; call again", found, code));
  }
  if (is("53")) throw Exhausted(found + ": nothing was changed; make room, then call again");
  if (is("25006")) throw PermissionDenied(found + ": connect to the primary, as a role that may write");
  if (is("28", "42501")) throw PermissionDenied(found + ": have the role granted what it needs on the schema");
  if (is("3D000", "3F000")) throw NotFound(found + ": it was dropped; create it, or name another");
  if (is("XX001", "XX002")) throw Corrupt(found + ": the database is damaged; restore it from a copy");
  if (is("22021", "22P05")) throw InvalidArgument(found + ": only UTF-8 without zero bytes is allowed");
  if (is("54000")) throw InvalidArgument(found + ": a value is too big");
  throw std::logic_error(fmt::format("{} [{}] in: {}", found, code, sql));
}

// --- statements

sql::Statement& Database::prepare(std::string_view sql) {
  auto at = statements_.find(sql);
  if (at == statements_.end()) at = statements_.emplace(sql, std::make_unique<KeptStatement>(*this, sql)).first;
  if (at->second->busy()) throw std::logic_error(fmt::format("statement used within itself: {}", sql));
  at->second->reset();
  return *at->second;
}

void Database::script(const std::string& sql) {
  PGconn* connection = ready();
  const Result result = execute(sql);
  const bool left_open =
      state_ == State::kOutside && PQtransactionStatus(connection) != PQTRANS_IDLE && PQstatus(connection) == CONNECTION_OK;
  if (left_open) PQclear(PQexec(connection, "ROLLBACK"));
  if (!succeeded(result)) fail(result.get(), sql.substr(0, 60), state_ == State::kOutside && !only_reads(sql));
  if (left_open) throw std::logic_error(fmt::format("a script left its transaction open: {}", sql.substr(0, 60)));
}

std::vector<std::string> Database::cached_sql() const {
  std::vector<std::string> all;
  for (const auto& [sql, statement] : statements_) all.push_back(sql);
  return all;
}

std::int64_t Database::now_ms() {
  if (test_clock_) return (*test_clock_)();
  now_->reset();
  sql::Query found(*now_);
  found.step();
  return found.integer(0);
}

// --- transactions

void Database::begin(const std::string& sql) {
  if (state_ != State::kOutside) throw std::logic_error(fmt::format("ledger {}: a transaction within a transaction", name_));
  PGconn* connection = ready();
  const Result result = execute(sql);
  if (succeeded(result)) {
    state_ = State::kInside;
    return;
  }
  if (PQstatus(connection) == CONNECTION_OK) PQclear(PQexec(connection, "ROLLBACK"));
  fail(result.get(), sql);
}

// Each statement of READ COMMITTED sees all that was committed when it starts, and they start when the turn is ours: all that
// its earlier holders did. In a shared turn that may be more from one statement to the next; a row that was locked is as it
// was when the lock was had. The server gives the lock up when the transaction has become visible, or when the session ends.
void Database::begin_write(sql::Turn turn) {
  const PGconn* connection = ready();
  for (const char* setting : {"in_hot_standby", "default_transaction_read_only"}) {
    const char* value = PQparameterStatus(connection, setting);
    if (value != nullptr && std::string_view(value) == "on") {
      throw PermissionDenied(
          fmt::format("ledger {} cannot be written there: {} is on; connect to the primary, as a role that may "
                      "write",
                      name_, setting));
    }
  }
  const std::string waits_no_more = waits_ ? fmt::format(", pg_advisory_unlock_shared({})", waiters_key_) : "";
  begin(fmt::format("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock{}({}){}",
                    turn == sql::Turn::kShared ? "_shared" : "", turn_key_, waits_no_more));
  waits_ = false;
}

void Database::begin_read() {
  begin("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
}

void Database::commit(sql::Wakes wakes) {
  if (state_ == State::kOutside) throw std::logic_error(fmt::format("ledger {}: a commit without a transaction", name_));
  // A connection that is known to be gone before COMMIT is sent leaves no doubt.
  if (!alive()) state_ = State::kDead;
  // A transaction in which a statement has failed takes no other any more.
  const bool notifies = PQtransactionStatus(ready()) == PQTRANS_INTRANS && wakes == sql::Wakes::kWaiters;
  const Result result = execute(notifies ? notice() + "; COMMIT" : "COMMIT");
  if (!succeeded(result)) {
    state_ = State::kDead;
    fail(result.get(), "COMMIT", true);
  }
  if (std::string_view(PQcmdStatus(result.get())) != "COMMIT") {  // so the server ends one in which a statement has failed
    state_ = State::kDead;
    throw Unavailable(fmt::format("ledger {}: the server rolled the transaction back: nothing was changed; call again", name_));
  }
  state_ = State::kOutside;
}

void Database::roll_back() noexcept {
  if (std::exchange(state_, State::kOutside) == State::kOutside) return;
  PGconn* connection = connection_.get();
  if (PQstatus(connection) != CONNECTION_OK || PQtransactionStatus(connection) == PQTRANS_IDLE) return;
  PQclear(PQexec(connection, "ROLLBACK"));
}

}  // namespace draftflow::postgres
