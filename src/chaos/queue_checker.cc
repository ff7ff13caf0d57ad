// SPDX-License-Identifier: Apache-2.0
#include "chaos/queue_checker.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "chaos/history.h"
#include "chaos/roles.h"

namespace draftflow::chaos {
namespace {

constexpr std::int64_t kAcked = 2, kFailed = 3;

// What the consumers wrote down of one sample: the tokens of the leases by which they did it.
struct Said {
  std::multiset<std::string> trained;
  std::set<std::string> acked, failing, failing_for_good;
};

class QueueChecker {
 public:
  QueueChecker(const Plan& plan, const GroupPlan& queue, Tables& tables)
      : plan_(plan), queue_(queue), tables_(tables), dropped_(tables.dropped(queue.name)) {
    for (const Taken& taken : load_taken(plan.taken(queue))) {
      Said& said = said_[taken.id];
      if (taken.what == "trained") said.trained.insert(taken.token);
      if (taken.what == "acked") said.acked.insert(taken.token);
      if (taken.what == "fails") said.failing.insert(taken.token);
      if (taken.what == "fails-for-good") said.failing_for_good.insert(taken.token);
    }
  }

  std::vector<std::string> run() {
    const std::vector<QueueRow> rows = tables_.queue(queue_.name);
    for (const QueueRow& row : rows) check_row(row);
    check_dropped();
    check_members(rows);
    check_answers(rows);
    return wrong_;
  }

 private:
  template <class... Args>
  void wrong(fmt::format_string<Args...> text, Args&&... args) {
    wrong_.push_back(fmt::format("queue {}: {}", queue_.name, fmt::format(text, std::forward<Args>(args)...)));
  }

  void check_row(const QueueRow& row) {
    const Said& said = said_[row.id];
    if (said.acked.size() > 1) wrong("sample {} was acked by {} leases", row.id, said.acked.size());
    if (row.state == kAcked) {
      if (said.trained.count(row.token) != 1) {
        wrong("sample {} is acked, and was trained on {} times by that lease", row.id, said.trained.count(row.token));
      }
      if (!said.acked.empty() && !said.acked.contains(row.token)) wrong("sample {} was acked by a lease that was lost", row.id);
    } else if (row.state == kFailed) {
      if (!said.acked.empty()) wrong("sample {} was acked, and failed", row.id);
      check_failure(row, said);
    } else {
      wrong("sample {} is left in state {}", row.id, row.state);
    }
    check_kind(row);
  }

  void check_failure(const QueueRow& row, const Said& said) {
    const bool for_good = said.failing_for_good.contains(row.token);
    if (!for_good && !said.failing.contains(row.token)) wrong("sample {} failed, and no consumer said so", row.id);
    if (!for_good && row.attempts != kQueueAttempts) {
      wrong("sample {} failed for good after {} attempts of {}", row.id, row.attempts, kQueueAttempts);
    }
    if (row.reason.empty()) wrong("sample {} failed without a reason", row.id);
  }

  // Neither a lease that ran out nor a lost failure is an attempt.
  void check_kind(const QueueRow& row) {
    const Kind kind = kind_of(plan_, row.id);
    const bool may_fail = kind == Kind::kNotFinite || kind == Kind::kDeleted || kind == Kind::kDamaged;
    if (row.state == kFailed && !may_fail) wrong("sample {} failed, and nothing was wrong with it", row.id);
    if (row.state == kAcked && kind == Kind::kNotFinite) wrong("sample {} was trained on, and holds a NaN", row.id);
    const std::int64_t attempts = kind == Kind::kFitful ? kFitfulFailures : 0;
    if (!may_fail && row.attempts != attempts) wrong("sample {} has {} attempts, not {}", row.id, row.attempts, attempts);
  }

  // Only by its closing, and never after an ack that a consumer has heard.
  void check_dropped() {
    for (const auto& [id, reason] : dropped_) {
      if (!queue_.closed || reason != "the group was closed") wrong("sample {} is dropped because of '{}'", id, reason);
      if (!said_[id].acked.empty()) wrong("sample {} was acked, and is dropped because of '{}'", id, reason);
    }
  }

  // What was committed before it was closed, and was there or came when it had joined.
  void check_members(const std::vector<QueueRow>& rows) {
    std::set<std::string> members, perhaps;
    for (const QueueRow& row : rows) members.insert(row.id);
    for (const auto& [id, reason] : dropped_) {
      if (!members.insert(id).second) wrong("sample {} is dropped, and in it", id);
    }
    const std::vector<SampleRow> samples = tables_.samples();
    const std::set<std::string> all = members_of(plan_, queue_, samples, perhaps);
    std::size_t before_the_end = 0;
    for (std::size_t i = 0; i < samples.size(); ++i) {
      const std::string& id = samples[i].id;
      if (!members.contains(id)) continue;
      before_the_end = i + 1;
      if (!all.contains(id) && !perhaps.contains(id)) wrong("sample {} was freed before it joined", id);
    }
    if (!queue_.closed) before_the_end = samples.size();
    for (std::size_t i = 0; i < before_the_end; ++i) {
      const std::string& id = samples[i].id;
      if (all.contains(id) && !members.contains(id)) wrong("sample {} was never in it", id);
    }
  }

  // What the ledger's functions say of it.
  void check_answers(const std::vector<QueueRow>& rows) {
    const GroupId group(queue_.name);
    std::vector<std::string> acked, failed, told;
    for (const QueueRow& row : rows) {
      if (row.state == kAcked) acked.push_back(row.id);
      if (row.state == kFailed) failed.push_back(row.id + " " + row.reason);
    }
    if (tables_.ledger().trained_ids(group) != acked) wrong("trained_ids() are not the {} that are acked", acked.size());
    for (const FailedSample& one : tables_.ledger().failed_refs(group, std::numeric_limits<int>::max())) {
      told.push_back(one.sample_id.str() + " " + one.reason);
    }
    if (told != failed) wrong("failed_refs() are not the {} that have failed", failed.size());
    const GroupStatus status = tables_.ledger().status().of(group);
    const auto dropped = static_cast<std::int64_t>(dropped_.size());
    const bool right = status.available == 0 && status.leased == 0 && status.dropped == dropped &&
                       status.open != queue_.closed && status.durable == static_cast<std::int64_t>(acked.size()) &&
                       status.failed == static_cast<std::int64_t>(failed.size());
    if (right) return;
    wrong("status() says {} available, {} leased, {} durable, {} failed, {} dropped, {}; found 0, 0, {}, {}, {}",
          status.available, status.leased, status.durable, status.failed, status.dropped, status.open ? "open" : "closed",
          acked.size(), failed.size(), dropped);
  }

  const Plan& plan_;
  const GroupPlan& queue_;
  Tables& tables_;
  const std::map<std::string, std::string> dropped_;  // id, reason
  std::map<std::string, Said> said_;
  std::vector<std::string> wrong_;
};

}  // namespace

std::vector<std::string> check_queue(const Plan& plan, const GroupPlan& queue, Tables& tables) {
  return QueueChecker(plan, queue, tables).run();
}

}  // namespace draftflow::chaos
