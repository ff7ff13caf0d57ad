// SPDX-License-Identifier: Apache-2.0
//
// Where a connection waits: to be made, for the reply to what was sent, and for others' commits.
#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"
#include "ledger/postgres/database.h"

namespace draftflow::postgres {
namespace {

// How long a waiter tries to get its lock while commits have it: then something has changed, and to ask is as good.
constexpr std::chrono::milliseconds kFirstTry{1}, kLastTry{16};

std::string channel_of(std::int64_t key) {
  return fmt::format("draftflow_{:016x}", static_cast<std::uint64_t>(key));
}

// True if there is something to read, or an error to be found by reading.
bool poll_for(const PGconn* connection, std::chrono::milliseconds most) {
  pollfd socket{.fd = PQsocket(connection), .events = POLLIN, .revents = 0};
  return ::poll(&socket, 1, static_cast<int>(most.count())) > 0;
}

// By libpq's own call, which tries all hosts and their addresses in turn. An unanswered link is given up after some 10 s:
// nothing else would end a call whose server has lost its power. What stands before dbname the URL may override.
PGconn* make_connection(const std::string& url) {
  const std::vector<std::pair<const char*, const char*>> parameters = {
      {"connect_timeout", "10"}, {"keepalives_idle", "5"},      {"keepalives_interval", "2"},
      {"keepalives_count", "3"}, {"tcp_user_timeout", "10000"}, {"fallback_application_name", "draftflow"},
      {"dbname", url.c_str()},   {"client_encoding", "UTF8"},   {nullptr, nullptr}};
  std::vector<const char*> keys, values;
  for (const auto& [key, value] : parameters) {
    keys.push_back(key);
    values.push_back(value);
  }
  PGconn* connection = PQconnectdbParams(keys.data(), values.data(), 1);
  PQsetErrorVerbosity(connection, PQERRORS_VERBOSE);
  // A refusal of the server's ("FATAL:  ...") carries its SQLSTATE only now: ask once more.
  const bool refused = connection != nullptr && PQstatus(connection) != CONNECTION_OK &&
                       std::string_view(PQerrorMessage(connection)).find(":  ") != std::string_view::npos;
  if (refused) PQreset(connection);
  return connection;
}

}  // namespace

// libpq's call cannot be interrupted, so that a thread makes it. An interrupt leaves the thread behind, which ends when libpq
// does.
std::unique_ptr<PGconn, Database::CloseConnection> Database::await_connection(const std::string& url) {
  struct Making {
    std::mutex mutex;
    std::condition_variable ended;
    std::unique_ptr<PGconn, CloseConnection> connection;  // guarded by mutex
    bool is_made = false;                                 // guarded by mutex
  };
  const auto making = std::make_shared<Making>();  // of whoever is last: a connection that nobody waits for is closed
  const auto make = [making, url] {
    std::unique_ptr<PGconn, CloseConnection> connection(make_connection(url));
    const std::lock_guard lock(making->mutex);
    making->connection = std::move(connection);
    making->is_made = true;
    making->ended.notify_all();
  };
  try {
    std::thread(make).detach();
  } catch (const std::system_error& error) {
    throw Exhausted(fmt::format("no thread to connect to a PostgreSQL server: {}; raise the limit of processes", error.what()));
  }
  for (;;) {
    {
      std::unique_lock lock(making->mutex);
      if (making->ended.wait_for(lock, kInterruptEvery, [&] { return making->is_made; })) return std::move(making->connection);
    }
    check_interrupt();
  }
}

// What libpq's own calls do, which cannot be interrupted. The last result of what was sent counts. A connection whose reply is
// still to come is closed; the server finds that out within 5 s (client_connection_check_interval) or as soon as it has
// answered, and ends its transaction and locks.
Database::Result Database::reply(int sent) {
  Result last;
  if (sent == 0) return last;
  PGconn* connection = connection_.get();
  try {
    for (;;) {
      while (PQisBusy(connection) != 0) {
        check_interrupt();
        if (poll_for(connection, kInterruptEvery) && PQconsumeInput(connection) == 0) break;  // PQgetResult tells why
      }
      Result next(PQgetResult(connection));
      if (!next) return last;
      last = std::move(next);
      if (PQstatus(connection) != CONNECTION_OK) return last;
    }
  } catch (...) {
    connection_.reset();
    if (state_ == State::kInside) state_ = State::kDead;
    throw;
  }
}

// Reads what has come meanwhile, which is how the end of a connection shows.
bool Database::alive() {
  const auto take_notifications = [this] {
    while (PGnotify* notification = PQnotifies(connection_.get())) {
      notified_ |= notification->be_pid != PQbackendPID(connection_.get());  // an object does not wake itself
      PQfreemem(notification);
    }
  };
  bool there = PQstatus(connection_.get()) == CONNECTION_OK;
  while (there && poll_for(connection_.get(), std::chrono::milliseconds(0))) {
    there = PQconsumeInput(connection_.get()) != 0 && PQstatus(connection_.get()) == CONNECTION_OK;
  }
  take_notifications();
  return there;
}

// Within a transaction, with its commit: for whoever waits, if anybody does.
std::string Database::notice() const {
  return fmt::format("SELECT pg_notify('{}', '') WHERE NOT pg_try_advisory_xact_lock({})", channel_of(waiters_key_),
                     waiters_key_);
}

// Has the waiters' lock, after which no commit can be missed. False: not by `end`.
bool Database::enrol(WaitClock::time_point end) {
  // Not on another connection than the one before.
  const auto run = [this](const std::string& sql) {
    Result result = execute(sql);
    if (PQresultStatus(result.get()) != PGRES_COMMAND_OK && PQresultStatus(result.get()) != PGRES_TUPLES_OK) {
      fail(result.get(), sql);
    }
    return result;
  };
  ready();
  if (!listens_) run("LISTEN " + channel_of(waiters_key_));
  listens_ = true;
  for (auto pause = kFirstTry;; pause *= 2) {
    const Result result = run(fmt::format("SELECT pg_try_advisory_lock_shared({})", waiters_key_));
    waits_ = std::string_view(PQgetvalue(result.get(), 0, 0)) == "t";
    notified_ = true;  // something may have been changed before
    if (waits_ || pause > kLastTry) return true;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - WaitClock::now());
    if (left.count() <= 0) return false;
    sleep_interruptibly(std::min(left, pause));
  }
}

bool Database::wait(std::int64_t timeout_ms) {
  if (state_ != State::kOutside) throw std::logic_error("wait within a transaction");
  const auto end = wait_end(timeout_ms);
  if (!waits_ && !enrol(end)) return false;
  for (;;) {
    check_interrupt();
    if (!alive()) {
      waits_ = listens_ = false;
      notified_ = true;
    }
    if (notified_) {
      if (!pace_.may_wake(end)) return false;
      if (waits_) alive();  // what came meanwhile is told by this answer
      notified_ = false;
      return true;
    }
    const auto part = until_next_check(end);
    if (part.count() == 0) return false;
    poll_for(connection_.get(), part);
  }
}

}  // namespace draftflow::postgres
