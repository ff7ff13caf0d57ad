// SPDX-License-Identifier: Apache-2.0
//
// A queue's consumer: lease, read and look at the bytes, write down what it has trained on, ack. It fails what it cannot read,
// is slower than its lease now and then, and gives refs back. It ends with the stream, or when its queue is closed.
#include <fmt/format.h>

#include <chrono>
#include <thread>

#include "chaos/chaos_ledger.h"
#include "chaos/history.h"
#include "chaos/roles.h"
#include "chaos/tables.h"
#include "draftflow/base/error.h"

namespace draftflow::chaos {
namespace {

class Taker {
 public:
  Taker(Stage& stage, std::size_t group)
      : stage_(stage),
        plan_(stage.plan.groups.at(group)),
        group_(plan_.name),
        holder_(random_hex128()),
        file_(stage.plan.taken(plan_)),
        ledger_(stage) {
    with_patience(stage_, [this] { store_ = open_store(stage_.plan, 0); });
  }

  int run() {
    try {
      return work();
    } catch (const Conflict& error) {
      if (!is_closed(error)) throw;
      return kFinished;
    }
  }

 private:
  int work() {
    for (;;) {
      const QueueAnswer answer = ledger_.lease_refs(request());
      if (answer.state == QueueState::kEndOfStream) return kFinished;
      if (answer.leases.empty()) {
        ledger_.wait(kLeaseMs / 2);  // or a lease has run out
        continue;
      }
      stage_.point(Point::kNone);
      if (one_in(40)) {
        ledger_.return_refs(group_, holder_);
        continue;
      }
      take(answer.leases);
      if (one_in(4)) free_bytes(stage_, ledger_, *store_, std::nullopt);
    }
  }

  // By whoever may close it.
  bool is_closed(const Conflict& error) const {
    return plan_.closed && std::string_view(error.what()).find("the group was closed") != std::string_view::npos;
  }

  bool one_in(std::uint64_t draws) { return stage_.random.below(draws) == 0; }
  void log(const char* what, const RefLease& lease) { log_taken(file_, {what, lease.ref.sample_id.str(), lease.token}); }

  // Of the whole queue, or of a shard: how many there are is each call's own choice.
  RefRequest request() {
    RefRequest request{.group = group_, .holder = holder_, .max_refs = 1 + static_cast<int>(stage_.random.below(6))};
    request.lease_ms = kLeaseMs;
    if (one_in(3)) {
      const int count = 2 + static_cast<int>(stage_.random.below(3));
      request.partition =
          Partition{.index = static_cast<int>(stage_.random.below(static_cast<std::uint64_t>(count))), .count = count};
    }
    return request;
  }

  void take(const std::vector<RefLease>& leases) {
    if (stage_.plan.bug == Bug::kAckBeforeReading) ack(leases);
    std::vector<RefLease> sound;
    for (const RefLease& lease : leases) {
      if (const auto failure = look_at(lease)) {
        fail(lease, *failure);
      } else {
        sound.push_back(lease);
      }
      stage_.point(Point::kNone);
    }
    if (one_in(3)) ledger_.extend_refs(group_, holder_, kLeaseMs);
    if (one_in(20)) std::this_thread::sleep_for(std::chrono::milliseconds(stage_.random.below(3 * kLeaseMs)));
    for (const RefLease& lease : sound) log("trained", lease);
    if (one_in(40)) return;  // forgotten: the leases run out
    stage_.point(Point::kNone);
    if (!sound.empty() && stage_.plan.bug != Bug::kAckBeforeReading) ack(sound);
    stage_.point(Point::kNone);
  }

  // Why it cannot be trained on, if it cannot.
  std::optional<std::string> look_at(const RefLease& lease) {
    const std::string& id = lease.ref.sample_id.str();
    stage_.board.add(Count::kReads);
    try {
      auto failure = check_tensors(stage_, id, read_bytes(stage_, *store_, lease.ref));
      if (stage_.plan.bug == Bug::kFreeAtLease) store_->remove(lease.ref);
      if (kind_of(stage_.plan, id) == Kind::kFitful && lease.attempt < kFitfulFailures) failure = "it is fitful";
      return failure;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kNotFound && error.kind() != ErrorKind::kCorrupt) throw;
      judge_failure(id, error);
      stage_.board.add(Count::kFailedReads);
      return error.what();
    }
  }

  // What the queue still claims has its bytes, unless this test took them. Nobody's claim ever comes back.
  void judge_failure(const std::string& id, const Error& error) {
    const Kind kind = kind_of(stage_.plan, id);
    if (kind == (error.kind() == ErrorKind::kNotFound ? Kind::kDeleted : Kind::kDamaged)) return;
    bool claimed = false;
    with_patience(stage_, [&] { claimed = Tables(stage_.plan.ledger).is_claimed(plan_.name, id); });
    if (!claimed && error.kind() == ErrorKind::kNotFound) return;  // another consumer has done with it meanwhile
    stage_.violation(
        fmt::format("queue {}: sample {}, {}claimed, cannot be read: {}", plan_.name, id, claimed ? "" : "not ", error.what()));
  }

  void fail(const RefLease& lease, const std::string& reason) {
    const bool again = kind_of(stage_.plan, lease.ref.sample_id.str()) == Kind::kFitful || !one_in(3);
    log(again ? "fails" : "fails-for-good", lease);
    stage_.point(Point::kNone);
    try {
      ledger_.fail_refs(group_, {lease}, reason, again);
    } catch (const Conflict& error) {
      if (is_closed(error)) throw;
      lose(lease);
    }
  }

  // All or nothing: if one was lost, nothing is acked, and each of the others can be by itself.
  void ack(const std::vector<RefLease>& leases) {
    try {
      ledger_.ack_refs(group_, leases);
    } catch (const Conflict& error) {
      if (is_closed(error)) {
        if (stage_.plan.bug != Bug::kClosedAckIsDone) throw;
      } else if (stage_.plan.bug != Bug::kLostAckIsDone) {
        for (const RefLease& lease : leases) leases.size() == 1 ? lose(lease) : ack({lease});
        return;
      }
    }
    stage_.point(Point::kNone);
    for (const RefLease& lease : leases) log("acked", lease);
    stage_.board.add(Count::kAcks, static_cast<std::int64_t>(leases.size()));
  }

  void lose(const RefLease& lease) {
    log("lost", lease);
    stage_.board.add(Count::kLostRefs);
  }

  Stage& stage_;
  const GroupPlan& plan_;
  const GroupId group_;
  const HolderId holder_;
  const std::filesystem::path file_;
  ChaosLedger ledger_;
  std::unique_ptr<FeatureStore> store_;
};

}  // namespace

int run_taker(Stage& stage, std::size_t group) {
  return Taker(stage, group).run();
}

}  // namespace draftflow::chaos
