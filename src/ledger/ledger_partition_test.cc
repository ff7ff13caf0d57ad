// SPDX-License-Identifier: Apache-2.0
//
// Stories of queues whose consumers each take a partition, over every backend, and of changes of their number.
#include <map>
#include <set>

#include "draftflow/ledger/partition.h"
#include "ledger/ledger_queue_story.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;

class LedgerPartitions : public testing_support::QueueStory {};
INSTANTIATE_LEDGER_STORY(LedgerPartitions);

TEST_P(LedgerPartitions, APartitionGivesItsOwnSamplesInOrder) {
  declare_queue();
  commit_many(0, 300);
  // 1 to 42 and 64 have an index; 43 and 5000 have none.
  for (const int count : {1, 2, 3, 7, 41, 42, 43, 64, 5000}) {
    SCOPED_TRACE(count);
    std::vector<std::string> expected;
    const int index = count / 2;
    for (const std::string& id : names(0, 300)) {
      if (dp_partition(id, count) == index) expected.push_back(id);
    }
    const auto leases = lease_of(index, count);
    EXPECT_THAT(ids(leases), ElementsAreArray(expected));
    if (expected.size() > 3) {
      ledger_->return_refs(queue_, HolderId("consumer"));
      expected.resize(3);
      EXPECT_THAT(ids(lease_of(index, count, 3)), ElementsAreArray(expected));
    }
    ledger_->return_refs(queue_, HolderId("consumer"));
  }
  expect_counts(300, 0, 0, 0);
}

TEST_P(LedgerPartitions, HoweverManyWidthsAreTriedEachGivesItsOwn) {
  declare_queue();
  commit_many(0, 150);
  for (int count = 2; count <= 110; ++count) {  // more than get an index
    std::vector<std::string> expected;
    for (const std::string& id : names(0, 150)) {
      if (dp_partition(id, count) == count / 2 && expected.size() < 2) expected.push_back(id);
    }
    EXPECT_THAT(ids(lease_of(count / 2, count, 2)), ElementsAreArray(expected)) << count;
    ledger_->return_refs(queue_, HolderId("consumer"));
  }
}

TEST_P(LedgerPartitions, ACapOnTokensHoldsInAPartitionToo) {
  declare_queue();
  commit_many(0, 60);
  for (const int count : {2, 43}) {
    RefRequest request = asking(10);
    request.partition = Partition{static_cast<int>(dp_partition("s0", count)), count};
    request.max_tokens = 1;
    EXPECT_THAT(ids(ledger_->lease_refs(request).leases), ElementsAre("s0")) << count;
    ledger_->return_refs(queue_, HolderId("consumer"));
  }
}

TEST_P(LedgerPartitions, AShardThatIsEmptyWaitsAlthoughOthersAreNot) {
  declare_queue();
  commit_many(0, 1);
  ledger_->close_prompts();
  for (const int count : {2, 43}) {
    RefRequest request = asking(1);
    const int other = dp_partition("s0", count) == 0 ? 1 : 0;
    request.partition = Partition{other, count};
    EXPECT_EQ(ledger_->lease_refs(request).state, QueueState::kEmpty);
    EXPECT_EQ(ledger_->lease_refs(request).state, QueueState::kEmpty);
  }
  expect_counts(1, 0, 0, 0);
}

TEST_P(LedgerPartitions, ChangingTheNumberOfConsumersInMidStreamLosesAndRepeatsNothing) {
  declare_queue(1000);
  std::multiset<std::string> acked;
  std::map<std::string, std::string> out;  // id -> token, of leases that were left lying
  int committed = 0, turn = 0;
  for (const int count : {2, 5, 1, 43, 3, 64, 4, 2}) {
    commit_many(committed, committed + 60);
    committed += 60;
    for (int index = 0; index < count; ++index, ++turn) {
      const auto leases = lease_of(index, count, 7);
      for (const RefLease& lease : leases) {
        EXPECT_EQ(dp_partition(lease.ref.sample_id.str(), count), index);
        EXPECT_FALSE(out.contains(lease.ref.sample_id.str())) << "leased twice";
        EXPECT_FALSE(acked.contains(lease.ref.sample_id.str())) << "acked already";
      }
      if (turn % 3 == 0) {
        for (const RefLease& lease : leases) out[lease.ref.sample_id.str()] = lease.token;
      } else if (turn % 3 == 1) {
        fail(leases);
      } else {
        ack(leases);
        for (const std::string& id : ids(leases)) acked.insert(id);
      }
    }
  }
  now_ms_ += 1000;
  for (int count = 3, index = 0; queue_status().pinned > 0; index = (index + 1) % count) {
    const auto leases = lease_of(index, count);
    ack(leases);
    for (const std::string& id : ids(leases)) acked.insert(id);
  }
  const std::vector<std::string> all = names(0, committed);
  EXPECT_EQ(acked, std::multiset<std::string>(all.begin(), all.end()));
  EXPECT_EQ(ledger_->trained_ids(queue_), all);
}

}  // namespace
}  // namespace draftflow
