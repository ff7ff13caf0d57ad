// SPDX-License-Identifier: Apache-2.0
//
// For tests only: what stories of queues have in common.
#pragma once

#include <string>
#include <vector>

#include "ledger/ledger_story.h"

namespace draftflow::testing_support {

class QueueStory : public LedgerStory {
 protected:
  void declare_queue(int max_attempts = 3) {
    ledger_->declare_group({.group = queue_, .kind = GroupKind::kQueue, .max_attempts = max_attempts});
  }
  RefRequest asking(int max_refs, const std::string& holder = "consumer") {
    return {.group = queue_, .holder = HolderId(holder), .max_refs = max_refs, .lease_ms = 1000};
  }
  std::vector<RefLease> lease(int max_refs, const std::string& holder = "consumer") {
    return ledger_->lease_refs(asking(max_refs, holder)).leases;
  }
  std::vector<RefLease> lease_of(int index, int count, int max_refs = 1000) {
    RefRequest request = asking(max_refs);
    request.partition = Partition{index, count};
    return ledger_->lease_refs(request).leases;
  }
  QueueState state() { return ledger_->lease_refs(asking(1)).state; }
  void ack(const std::vector<RefLease>& leases) { ledger_->ack_refs(queue_, leases); }
  void fail(const std::vector<RefLease>& leases, bool retryable = true, const std::string& reason = "unreadable") {
    ledger_->fail_refs(queue_, leases, reason, retryable);
  }
  static std::vector<std::string> ids(const std::vector<RefLease>& leases) {
    std::vector<std::string> found;
    for (const RefLease& lease : leases) found.push_back(lease.ref.sample_id.str());
    return found;
  }
  static std::vector<std::string> names(int from, int to) {
    std::vector<std::string> all;
    for (int i = from; i < to; ++i) all.push_back(fmt::format("s{}", i));
    return all;
  }
  static std::vector<SampleId> typed(const std::vector<std::string>& ids) { return {ids.begin(), ids.end()}; }
  void commit_many(int from, int to) {
    std::vector<SampleRef> refs;
    for (int i = from; i < to; ++i) refs.push_back(make_ref(fmt::format("s{}", i)));
    ledger_->commit_samples(refs, {});
  }
  GroupStatus queue_status() { return ledger_->status().of(queue_); }
  void expect_counts(std::int64_t available, std::int64_t leased, std::int64_t acked, std::int64_t failed) {
    const GroupStatus status = queue_status();
    EXPECT_EQ(status.available, available);
    EXPECT_EQ(status.leased, leased);
    EXPECT_EQ(status.durable, acked);
    EXPECT_EQ(status.failed, failed);
    EXPECT_EQ(status.pinned, status.open ? available + leased : 0);
  }

  const GroupId queue_{"queue"};
};
}  // namespace draftflow::testing_support
