// SPDX-License-Identifier: Apache-2.0
//
// Where a connection waits: to be made, for the reply to what was sent, and for others' commits.
#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <stdexcept>
#include <string_view>

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

// True if there is something to read, or room to write, or an error to be found by trying.
bool poll_for(const PGconn* connection, std::chrono::milliseconds most, short events = POLLIN) {
  pollfd socket{.fd = PQsocket(connection), .events = events, .revents = 0};
  return ::poll(&socket, 1, static_cast<int>(most.count())) > 0;
}

// What the connection was asked to be, of an option that counts for it.
std::string option_of(PGconn* connection, std::string_view key) {
  const std::unique_ptr<PQconninfoOption, decltype(&PQconninfoFree)> options(PQconninfo(connection), &PQconninfoFree);
  for (const PQconninfoOption* at = options.get(); at != nullptr && at->keyword != nullptr; ++at) {
    if (at->keyword == key) return at->val == nullptr ? "" : at->val;
  }
  return "";
}

// As libpq reads it: seconds for each host, 0 for ever, and never less than 2.
int connect_timeout(PGconn* connection) {
  const std::string text = option_of(connection, "connect_timeout");
  int seconds = 0;
  std::from_chars(text.data(), text.data() + text.size(), seconds);
  return seconds > 0 ? std::max(seconds, 2) : 0;
}

std::vector<std::string> items_of(const std::string& list) {
  std::vector<std::string> items{""};
  for (const char c : list) {
    if (c == ',') {
      items.emplace_back();
    } else {
      items.back() += c;
    }
  }
  return items;
}

}  // namespace

// What PQconnectdb does, which cannot be interrupted. False if the host that is asked now does not answer in time.
bool Database::await_connection() {
  PGconn* connection = connection_.get();
  const auto timeout = std::chrono::seconds(connect_timeout(connection));
  WaitClock::time_point end;
  std::string asked;
  auto next = PGRES_POLLING_WRITING;
  while (PQstatus(connection) != CONNECTION_BAD && next != PGRES_POLLING_OK && next != PGRES_POLLING_FAILED) {
    const std::string now_asked = fmt::format("{} {} {}", PQhost(connection), PQhostaddr(connection), PQport(connection));
    if (std::exchange(asked, now_asked) != now_asked) end = WaitClock::now() + timeout;
    const auto part = timeout.count() > 0 ? until_next_check(end) : kInterruptEvery;
    if (poll_for(connection, part, next == PGRES_POLLING_READING ? POLLIN : POLLOUT)) {
      next = PQconnectPoll(connection);
    } else if (timeout.count() > 0 && WaitClock::now() >= end) {
      return false;
    } else {
      check_interrupt();
    }
  }
  return true;
}

// Of several hosts those that come after the one that is asked now. Unavailable if there is none.
Database::Options Database::hosts_after_this_one() const {
  PGconn* connection = connection_.get();
  std::map<std::string, std::vector<std::string>> lists;
  std::size_t count = 1, at = 0;
  for (const char* const key : {"host", "hostaddr", "port"}) {
    count = std::max(count, (lists[key] = items_of(option_of(connection, key))).size());
  }
  const auto item = [&](const char* key) {
    const auto& list = lists[key];
    return list.size() == 1 ? list[0] : list[at];
  };
  const auto is_asked = [&] {
    return (item("host").empty() ? item("hostaddr") : item("host")) == PQhost(connection) && item("port") == PQport(connection);
  };
  while (at + 1 < count && !is_asked()) ++at;
  if (++at >= count) {
    throw Unavailable(
        fmt::format("ledger {}: no answer within {} s: start the server or correct host and port, then call again", name_,
                    connect_timeout(connection)));
  }
  Options rest;
  for (const auto& [key, list] : lists) {
    if (list.size() > 1)
      rest[key] = fmt::format("{}", fmt::join(list.begin() + static_cast<std::ptrdiff_t>(at), list.end(), ","));
  }
  return rest;
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
