// SPDX-License-Identifier: Apache-2.0
//
// Queues: refs leased in commit order to whoever asks, acked or failed by the token of their lease. A call is one transaction
// of a few statements, whatever the number of refs. lease_refs and ack_refs, which all consumers call all the time, share the
// write turn where the engine can; every other verb is alone.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/base/text.h"
#include "draftflow/ledger/partition.h"
#include "ledger/sql/lists.h"
#include "ledger/sql/rows.h"

namespace draftflow {

struct SqlLedger::Picked {
  std::int64_t row = 0, attempts = 0;
};

namespace {

constexpr std::int64_t kMaxIndexes = 64;  // each makes every commit and lease a little slower
constexpr std::size_t kPage = 1024;       // rows read at once where many are looked at
constexpr const char* kTokens = "(SELECT s.tokens FROM sample s WHERE s.row = q.row)";

// 1: the whole queue.
std::int64_t width_of(const RefRequest& request) {
  return request.partition ? request.partition->count : 1;
}

void check_open(std::int64_t open, const std::string& group, const char* verb) {
  if (open == 0) throw refusals::group_closed(verb, group);
}

std::vector<std::int64_t> rows_of(const auto& refs) {
  std::vector<std::int64_t> rows;
  for (const auto& ref : refs) rows.push_back(ref.row);
  return rows;
}

}  // namespace

// --- what a queue holds

void SqlLedger::enqueue(std::int64_t queue, const std::vector<Place>& places) {
  static const sql::RowList kEnqueue("INSERT INTO queue_ref(consumer, row, shard) VALUES ", 3);
  std::vector<sql::Value> values;
  kEnqueue.for_parts(places.size(), [&](const std::string& sql, std::size_t from, std::size_t to) {
    values.clear();
    for (std::size_t i = from; i < to; ++i) values.insert(values.end(), {queue, places[i].row, places[i].shard});
    db_->run(sql, values);
  });
}

// A new queue begins with every sample that was not handed to a sweeper yet.
void SqlLedger::fill_queue(Group& queue) {
  std::vector<Place> places;
  for (std::int64_t from = 0;; from = places.back().row + 1) {
    places.clear();
    {
      sql::Query there =
          db_->query("SELECT row, sample_id FROM sample WHERE row >= ?1 AND state < 2 ORDER BY row LIMIT ?2", from, kPage);
      while (there.step()) places.push_back({there.integer(0), dp_partition(there.text(1), kShardModulus)});
    }
    if (places.empty()) break;
    enqueue(queue.id, places);
    queue.available += db_->run("UPDATE sample SET claims = claims + 1, state = 0 WHERE state < 2 AND row >= ?1 AND row <= ?2",
                                places.front().row, places.back().row);
  }
  save(queue);
}

void SqlLedger::empty_queue(Group& queue) {
  constexpr const char* kParts[][3] = {
      {"(SELECT row FROM queue_ref WHERE consumer = ?1 AND state = 0)",
       "INSERT INTO dropped(consumer, row, reason) SELECT consumer, row, ?2 FROM queue_ref WHERE consumer = ?1 AND state = 0",
       "DELETE FROM queue_ref WHERE consumer = ?1 AND state = 0"},
      {"(SELECT row FROM queue_ref WHERE consumer = ?1 AND state = 1)",
       "INSERT INTO dropped(consumer, row, reason) SELECT consumer, row, ?2 FROM queue_ref WHERE consumer = ?1 AND state = 1",
       "DELETE FROM queue_ref WHERE consumer = ?1 AND state = 1"}};
  for (const auto& [rows, drop, forget] : kParts) {
    db_->run(std::string(kEndClaims) + rows, queue.id);
    queue.dropped += db_->run(drop, queue.id, kClosedReason);
    db_->run(forget, queue.id);
  }
  queue.leased = 0;
}

std::vector<std::string> SqlLedger::acked_ids(const Group& queue) {
  std::vector<std::string> ids;
  sql::Query query = db_->query(
      "SELECT s.sample_id FROM queue_ref q JOIN sample s ON s.row = q.row WHERE q.consumer = ?1 AND q.state = 2 ORDER BY q.row",
      queue.id);
  while (query.step()) ids.push_back(query.text(0));
  return ids;
}

void SqlLedger::end_claims(const std::vector<std::int64_t>& rows) {
  static const sql::InList kEnd(kEndClaims, 1);
  kEnd.for_parts(rows, [&](const std::string& sql, const std::vector<sql::Value>& part) { db_->run(sql, part); });
}

// --- lease

bool SqlLedger::is_indexed(std::int64_t width) {
  return may_be_indexed(width) && db_->find("SELECT n FROM queue_width WHERE n = ?1", width).has_value();
}

void SqlLedger::index_width(std::int64_t width) {
  if (width == 1 || !may_be_indexed(width) || is_indexed(width)) return;
  if (db_->find("SELECT COUNT(*) FROM queue_width").value_or(0) >= kMaxIndexes) return;
  db_->script(fmt::format("CREATE INDEX queue_shard_{0} ON queue_ref(consumer, (shard % {0}), row) WHERE state = 0", width));
  db_->run("INSERT INTO queue_width(n) VALUES (?1)", width);
}

// The first available refs of the partition, in commit order, at most `limit` and as many as the cap on tokens admits.
// In a shared turn they are locked, and what others have just locked is theirs.
std::vector<SqlLedger::Picked> SqlLedger::pick(const Group& queue, const RefRequest& request, std::size_t limit, bool shared) {
  const std::int64_t width = width_of(request);
  if (width > 1 && !is_indexed(width)) return pick_filtered(queue, request, limit);
  // A join might be made by reading all samples in their order (PostgreSQL's merge join), those of finished refs first.
  const std::string choose = fmt::format("SELECT q.row, q.attempts, {} FROM queue_ref q WHERE q.consumer = ?1 AND q.state = 0",
                                         request.max_tokens > 0 ? kTokens : "0");
  const std::string in_order =
      fmt::format(" ORDER BY q.row LIMIT ?2{}", shared && db_->shares_turns() ? " FOR UPDATE OF q SKIP LOCKED" : "");
  std::vector<Picked> picked;
  std::int64_t tokens = 0;
  const auto take = [&](sql::Query found) {
    while (found.step()) {
      tokens += found.integer(2);
      if (!picked.empty() && request.max_tokens > 0 && tokens > request.max_tokens) return;
      picked.push_back({found.integer(0), found.integer(1)});
    }
  };
  if (width == 1) {
    take(db_->query(choose + in_order, queue.id, limit));
  } else {
    take(db_->query(fmt::format("{} AND q.shard % {} = ?3{}", choose, width, in_order), queue.id, limit,
                    request.partition->index));
  }
  return picked;
}

// Where no index knows the partition: by looking at every available ref.
std::vector<SqlLedger::Picked> SqlLedger::pick_filtered(const Group& queue, const RefRequest& request, std::size_t limit) {
  std::vector<Picked> picked;
  std::int64_t tokens = 0, last = -1;
  for (std::size_t seen = kPage; seen == kPage;) {
    sql::Query found = db_->query(
        fmt::format("SELECT q.row, q.attempts, {}, (SELECT s.sample_id FROM sample s WHERE s.row = q.row) FROM queue_ref q"
                    " WHERE q.consumer = ?1 AND q.state = 0 AND q.row > ?2 ORDER BY q.row LIMIT ?3",
                    kTokens),
        queue.id, last, kPage);
    for (seen = 0; found.step(); ++seen) {
      last = found.integer(0);
      if (dp_partition(found.text(3), request.partition->count) != request.partition->index) continue;
      tokens += found.integer(2);
      if (!picked.empty() && request.max_tokens > 0 && tokens > request.max_tokens) return picked;
      picked.push_back({last, found.integer(1)});
      if (picked.size() == limit) return picked;
    }
  }
  return picked;
}

// Whether a lease ran out that nobody has taken back yet.
bool SqlLedger::is_overdue(const Group& queue) {
  return queue.leased > 0 &&
         db_->find(
             "SELECT 1 FROM queue_ref WHERE consumer = ?1 AND state = 1 AND expires_ms <= ?2 UNION ALL SELECT 1 FROM"
             " queue_ref WHERE consumer = ?1 AND state = 1 AND expires_ms > ?2 + (SELECT longest_lease_ms FROM run WHERE"
             " id = 1) LIMIT 1",
             queue.id, db_->now_ms());
}

// False: there is nothing for the caller, and nothing to write down either.
bool SqlLedger::may_give(const Group& queue, const RefRequest& request) {
  if (queue.available == 0) return false;
  const std::int64_t width = width_of(request);
  if (width == 1 || (may_be_indexed(width) && !is_indexed(width))) return true;
  return !pick(queue, request, 1).empty();
}

QueueAnswer SqlLedger::give_none(const Group& queue) {
  const bool end = queue.available == 0 && queue.leased == 0 && db_->find(kPromptsFinished) == 1;
  return {.state = end ? QueueState::kEndOfStream : QueueState::kEmpty, .leases = {}};
}

// An expired lease keeps its token until somebody else takes the ref: its holder may still ack, if only slow. The group's
// counters are the caller's.
std::int64_t SqlLedger::take_back_expired(const Group& queue, std::int64_t now) {
  db_->run(
      "UPDATE queue_ref SET expires_ms = ?2 WHERE consumer = ?1 AND state = 1 AND expires_ms > ?2 + (SELECT"
      " longest_lease_ms FROM run WHERE id = 1)",
      queue.id, now);
  return db_->run("UPDATE queue_ref SET state = 0, expires_ms = NULL WHERE consumer = ?1 AND state = 1 AND expires_ms <= ?2",
                  queue.id, now);
}

void SqlLedger::give_back_doubted_refs() {
  if (!doubted_refs_) return;
  sql::Transaction transaction(*db_);
  Group queue = find_queue(doubted_refs_->group, "lease_refs");
  const std::int64_t back = db_->run(
      "UPDATE queue_ref SET state = 0, ended_token = token, token = NULL, holder = NULL, expires_ms = NULL"
      " WHERE consumer = ?1 AND state = 1 AND holder = ?2 AND token = ?3",
      queue.id, doubted_refs_->holder.str(), doubted_refs_->token);
  queue.available += back;
  queue.leased -= back;
  save(queue);
  transaction.commit();
  doubted_refs_.reset();
}

QueueAnswer SqlLedger::lease_refs(const RefRequest& request) {
  check_request(request);
  give_back_doubted_refs();
  const std::int64_t width = width_of(request);
  const auto find_open = [&] {
    Group queue = find_queue(request.group, "lease_refs");
    check_open(queue.open, queue.name, "lease_refs");
    return queue;
  };
  sql::Turn turn = sql::Turn::kAlone;
  // Waiting consumers ask often: they must not queue for the write turn to hear that there is nothing.
  {
    const Group seen = find_open();
    const bool overdue = is_overdue(seen);
    if (!overdue && !may_give(seen, request)) {
      const sql::Snapshot snapshot(*db_);  // that the prompts have ended must not be younger than that nothing is left
      return give_none(find_open());
    }
    if (!overdue && (width == 1 || is_indexed(width))) turn = sql::Turn::kShared;
  }
  sql::Transaction transaction(*db_, turn);
  Group queue = find_open();
  const Group before = queue;
  const std::int64_t now = db_->now_ms();
  std::int64_t back = 0;
  if (turn == sql::Turn::kAlone) {
    back = take_back_expired(queue, now);
    queue.available += back;
    queue.leased -= back;
    index_width(width);
  }
  const std::vector<Picked> picked =
      pick(queue, request, std::min(static_cast<std::size_t>(request.max_refs), kMaxRefs), turn == sql::Turn::kShared);
  const std::string token = random_hex128();
  if (!picked.empty()) note_lease(request.lease_ms);
  static const sql::InList kLease(
      "UPDATE queue_ref SET state = 1, holder = ?2, token = ?3, expires_ms = ?4 WHERE consumer = ?1 AND row IN ", 5);
  kLease.for_parts(rows_of(picked), [&](const std::string& sql, const std::vector<sql::Value>& part) {
    db_->run(sql, queue.id, request.holder.str(), token, now + request.lease_ms, part);
  });
  const auto moved = static_cast<std::int64_t>(picked.size());
  queue.available -= moved;
  queue.leased += moved;
  // What others do meanwhile in a shared turn makes their sum no greater: an end that was none before is none now.
  const QueueAnswer none = picked.empty() ? give_none(queue) : QueueAnswer{};
  add_counts(before, queue);
  if (!picked.empty()) doubted_refs_ = DoubtedRefs{request.group, request.holder, token};  // until the caller has them
  transaction.commit(back > 0 ? sql::Wakes::kWaiters : sql::Wakes::kNobody);
  if (picked.empty()) return none;
  longest_noted_ms_ = std::max(longest_noted_ms_, request.lease_ms);
  QueueAnswer answer{.state = QueueState::kRefs,
                     .leases = load_leases(picked, token)};  // what is leased is not replaced any more
  doubted_refs_.reset();
  return answer;
}

std::vector<RefLease> SqlLedger::load_leases(const std::vector<Picked>& picked, const std::string& token) {
  std::vector<SampleRef> refs = read_refs(rows_of(picked));
  std::vector<RefLease> leases;
  leases.reserve(picked.size());
  for (std::size_t i = 0; i < picked.size(); ++i) {
    leases.push_back({.ref = std::move(refs[i]), .token = token, .attempt = static_cast<int>(picked[i].attempts)});
  }
  return leases;
}

void SqlLedger::extend_refs(const GroupId& group, const HolderId& holder, std::int64_t lease_ms) {
  check_lease_ms(lease_ms);
  sql::Transaction transaction(*db_);
  const Group queue = find_queue(group, "extend_refs");
  check_open(queue.open, queue.name, "extend_refs");
  note_lease(lease_ms);
  db_->run("UPDATE queue_ref SET expires_ms = ?3 WHERE consumer = ?1 AND state = 1 AND holder = ?2", queue.id, holder.str(),
           db_->now_ms() + lease_ms);
  transaction.commit(sql::Wakes::kNobody);
  longest_noted_ms_ = std::max(longest_noted_ms_, lease_ms);
}

void SqlLedger::return_refs(const GroupId& group, const HolderId& holder) {
  sql::Transaction transaction(*db_);
  Group queue = find_queue(group, "return_refs");
  const std::int64_t back = db_->run(
      "UPDATE queue_ref SET state = 0, ended_token = token, token = NULL, holder = NULL, expires_ms = NULL"
      " WHERE consumer = ?1 AND state = 1 AND holder = ?2",
      queue.id, holder.str());
  queue.available += back;
  queue.leased -= back;
  save(queue);
  transaction.commit();
}

// --- ack, fail

void SqlLedger::throw_lost(const Group& queue, const RefLease& lease, const QueueRef& ref) {
  std::string holder;
  if (ref.state == kRefLeased) {
    sql::Query found = db_->query("SELECT holder FROM queue_ref WHERE consumer = ?1 AND row = ?2", queue.id, ref.row);
    found.step();
    holder = found.text(0);
  }
  throw refusals::lost_ref(lease, queue.name, ref.row < 0 ? -1 : ref.state, holder);
}

// The refs that these leases hold, each once; those whose lease ended by the same call before are left out. The queue's
// counters let go of them. Conflict if one is lost.
std::vector<SqlLedger::QueueRef> SqlLedger::find_held(Group& queue, const std::vector<RefLease>& leases, bool to_ack) {
  static const sql::InList kRows("SELECT row, sample_id FROM sample WHERE sample_id IN ", 1);
  static const sql::InList kFind(
      "SELECT q.row, q.state, q.attempts, q.token, q.ended_token FROM queue_ref q WHERE q.consumer = ?1 AND q.row IN ", 2);
  std::vector<std::string_view> ids;
  for (const RefLease& lease : leases) ids.push_back(lease.ref.sample_id.str());
  std::unordered_map<std::string, QueueRef> found;
  std::map<std::int64_t, QueueRef*> by_row;  // in ascending order, in which the rows are locked
  kRows.for_parts(ids, [&](const std::string& sql, const std::vector<sql::Value>& part) {
    sql::Query query = db_->query(sql, part);
    while (query.step()) by_row[query.integer(0)] = &found[query.text(1)];
  });
  std::vector<std::int64_t> rows;
  for (const auto& [row, ref] : by_row) rows.push_back(row);
  const std::string lock = db_->shares_turns() ? " ORDER BY q.row FOR UPDATE OF q" : "";
  kFind.for_parts(rows, [&](const std::string& sql, const std::vector<sql::Value>& part) {
    sql::Query query = db_->query(sql + lock, queue.id, part);
    while (query.step()) {
      *by_row.at(query.integer(0)) =
          QueueRef{query.integer(0), query.integer(1), query.integer(2), query.text(3), query.text(4)};
    }
  });
  std::vector<QueueRef> held;
  for (const RefLease& lease : leases) {
    QueueRef& ref = found[lease.ref.sample_id.str()];
    if (!lease.token.empty() && ref.ended_token == lease.token && (ref.state == kAcked) == to_ack) continue;  // said before
    if (ref.state > kRefLeased || lease.token.empty() || ref.token != lease.token) throw_lost(queue, lease, ref);
    --(ref.state == kRefLeased ? queue.leased : queue.available);
    held.push_back(ref);
    ref.ended_token = lease.token;  // for the same lease once more in this call
    ref.state = to_ack ? kAcked : kRefFailed;
  }
  return held;
}

void SqlLedger::ack_refs(const GroupId& group, const std::vector<RefLease>& leases) {
  static const sql::InList kAck(
      "UPDATE queue_ref SET state = 2, ended_token = token, token = NULL, holder = NULL, expires_ms = NULL, reason = NULL"
      " WHERE consumer = ?1 AND row IN ",
      2);
  sql::Transaction transaction(*db_, sql::Turn::kShared);
  Group queue = find_queue(group, "ack_refs");
  check_open(queue.open, queue.name, "ack_refs");
  const Group before = queue;
  std::vector<std::int64_t> rows = rows_of(find_held(queue, leases, true));
  if (rows.empty()) return;
  std::sort(rows.begin(), rows.end());
  kAck.for_parts(rows, [&](const std::string& sql, const std::vector<sql::Value>& part) { db_->run(sql, queue.id, part); });
  lock_shared_samples(queue, rows);
  end_claims(rows);
  queue.acked += static_cast<std::int64_t>(rows.size());
  // Of two that ack the last refs at once the second to count sees that nothing is left: the stream may have ended.
  const bool any_left = add_counts(before, queue);
  transaction.commit(any_left ? sql::Wakes::kNobody : sql::Wakes::kWaiters);
}

// In the order of their rows, which an UPDATE does not promise: two queues may end their claims on the same samples at once.
void SqlLedger::lock_shared_samples(const Group& queue, const std::vector<std::int64_t>& rows) {
  static const sql::InList kLock("SELECT row FROM sample WHERE row IN ", 1, " ORDER BY row FOR UPDATE");
  if (!db_->shares_turns()) return;
  if (!db_->find("SELECT 1 FROM consumer WHERE open = 1 AND kind = 1 AND id <> ?1 LIMIT 1", queue.id)) return;
  kLock.for_parts(rows, [&](const std::string& sql, const std::vector<sql::Value>& part) { db_->query(sql, part).step(); });
}

void SqlLedger::fail_refs(const GroupId& group, const std::vector<RefLease>& leases, const std::string& reason,
                          bool retryable) {
  static const sql::InList kFail(
      "UPDATE queue_ref SET state = ?2, attempts = attempts + 1, reason = ?3, ended_token = token, token = NULL, holder = NULL,"
      " expires_ms = NULL WHERE consumer = ?1 AND row IN ",
      4);
  sql::Transaction transaction(*db_);
  Group queue = find_queue(group, "fail_refs");
  check_open(queue.open, queue.name, "fail_refs");
  std::vector<std::int64_t> again, never;
  for (const QueueRef& ref : find_held(queue, leases, false)) {
    (retryable && ref.attempts + 1 < queue.max_attempts ? again : never).push_back(ref.row);
  }
  if (again.empty() && never.empty()) return;
  const std::string why = printable(reason, kMaxReasonBytes);
  const auto end = [&](const std::vector<std::int64_t>& rows, RefState state) {
    kFail.for_parts(rows, [&](const std::string& sql, const std::vector<sql::Value>& part) {
      db_->run(sql, queue.id, static_cast<int>(state), why, part);
    });
  };
  end(again, kAvailable);
  end(never, kRefFailed);
  end_claims(never);
  queue.available += static_cast<std::int64_t>(again.size());
  queue.failed += static_cast<std::int64_t>(never.size());
  save(queue);
  transaction.commit();
}

std::int64_t SqlLedger::retry_failed(const GroupId& group, const std::vector<SampleId>& ids) {
  static const sql::InList kFind(
      "SELECT q.row FROM sample s JOIN queue_ref q ON q.row = s.row WHERE q.consumer = ?1 AND q.state = 3 AND s.state < "
      "2"
      " AND s.sample_id IN ",
      2);
  static const sql::InList kRetry("UPDATE queue_ref SET state = 0, attempts = 0, reason = NULL WHERE consumer = ?1 AND row IN ",
                                  2);
  static const sql::InList kClaim("UPDATE sample SET claims = claims + 1, state = 0 WHERE row IN ", 1);
  std::vector<std::string_view> names;
  for (const SampleId& id : ids) names.push_back(id.str());
  sql::Transaction transaction(*db_);
  Group queue = find_queue(group, "retry_failed");
  check_open(queue.open, queue.name, "retry_failed");
  std::vector<std::int64_t> rows;
  kFind.for_parts(names, [&](const std::string& sql, const std::vector<sql::Value>& part) {
    sql::Query found = db_->query(sql, queue.id, part);
    while (found.step()) rows.push_back(found.integer(0));
  });
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  if (rows.empty()) return 0;
  kRetry.for_parts(rows, [&](const std::string& sql, const std::vector<sql::Value>& part) { db_->run(sql, queue.id, part); });
  kClaim.for_parts(rows, [&](const std::string& sql, const std::vector<sql::Value>& part) { db_->run(sql, part); });
  queue.available += static_cast<std::int64_t>(rows.size());
  queue.failed -= static_cast<std::int64_t>(rows.size());
  save(queue);
  transaction.commit();
  return static_cast<std::int64_t>(rows.size());
}

}  // namespace draftflow
