// SPDX-License-Identifier: Apache-2.0
#include "draftflow/flow/cross_check.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <ctime>

#include "draftflow/base/error.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using testing::HasSubstr;

class CrossCheckTest : public ::testing::Test {
 protected:
  SampleRef put(const std::string& id) {
    const std::vector<std::byte> bytes(100);
    return store_->put({{"x", Tensor::copy_of(DType::kUInt8, {100}, bytes)}}, SampleId(id), {.run_id = RunId("run")});
  }
  SampleRef put_committed(const std::string& id) {
    const SampleRef ref = put(id);
    ledger_->commit_samples({ref}, {});
    return ref;
  }
  // As if it had been put so long ago.
  void age(const SampleRef& ref, int seconds) {
    const timespec then{::time(nullptr) - seconds, 0};
    const timespec times[2] = {then, then};
    ASSERT_EQ(::utimensat(AT_FDCWD, store_->resident(ref).path.c_str(), times, 0), 0);
  }

  testing_support::TempFolder folder_;
  std::unique_ptr<Ledger> ledger_ = open_sqlite_ledger(folder_.path() / "l.sqlite3");
  std::unique_ptr<FeatureStore> store_ = create_shared_dir_store(folder_.path(), StoreId("st"), {.free_space_floor_bytes = 0});
};

TEST_F(CrossCheckTest, WhatBelongsTogetherMatches) {
  for (const char* const id : {"a", "b", "c"}) put_committed(id);
  const CrossCheck found = cross_check(*ledger_, *store_, {.settle_seconds = 0});
  EXPECT_EQ(found.matching, 3);
  EXPECT_EQ(found.missing + found.newer + found.orphans, 0);
  EXPECT_THAT(found.examples, testing::IsEmpty());
}

TEST_F(CrossCheckTest, EachDifferenceIsCountedAndNamed) {
  store_->remove(put_committed("lost"));
  put("orphan");
  put_committed("replaced");
  const SampleRef newer = put("replaced");
  const CrossCheck found = cross_check(*ledger_, *store_, {.settle_seconds = 0});
  EXPECT_EQ(found.missing, 2) << "the generation that the books know of 'replaced' is gone as well";
  EXPECT_EQ(found.orphans, 1);
  EXPECT_EQ(found.orphan_bytes, 100u);
  EXPECT_EQ(found.newer, 1);
  const std::string all = testing::PrintToString(found.examples);
  EXPECT_THAT(all, HasSubstr("sample 'lost' generation"));
  EXPECT_THAT(all, HasSubstr("sample 'orphan': the store has generation"));
  EXPECT_THAT(all, HasSubstr("the ledger none"));
  const CrossCheck settling = cross_check(*ledger_, *store_, {});
  EXPECT_EQ(settling.orphans + settling.newer, 0) << "what was put just now may be on its way";
  EXPECT_GT(newer.generation, 0u);
}

// A backup of the ledger that is older than the store: its samples are freed, or in greater generations.
TEST_F(CrossCheckTest, AnOlderLedgerBesideANewerStoreIsFound) {
  const SampleRef old = put_committed("a");
  std::filesystem::copy(folder_.path() / "l.sqlite3", folder_.path() / "backup.sqlite3");
  std::filesystem::copy(folder_.path() / "l.sqlite3-wal", folder_.path() / "backup.sqlite3-wal");
  store_->remove(old);
  put("a");
  const auto backup = open_sqlite_ledger(folder_.path() / "backup.sqlite3");
  const CrossCheck found = cross_check(*backup, *store_, {.settle_seconds = 0});
  EXPECT_EQ(found.newer, 1);
  EXPECT_EQ(found.missing, 1);
}

TEST_F(CrossCheckTest, TheSweepTakesOldOrphansAndNothingElse) {
  const SampleRef kept = put_committed("kept"), young = put("young"), orphan = put("orphan");
  age(kept, 5000);
  age(orphan, 5000);
  const OrphanSweep sweep = sweep_orphans(*ledger_, *store_, 3600);
  EXPECT_EQ(sweep.removed, 1);
  EXPECT_EQ(sweep.bytes, 100u);
  EXPECT_THROW(store_->read(orphan), NotFound);
  EXPECT_NO_THROW(store_->read(kept));
  EXPECT_NO_THROW(store_->read(young));
  EXPECT_EQ(sweep_orphans(*ledger_, *store_, 3600).removed, 0);
}

TEST_F(CrossCheckTest, ALedgerHasOneStore) {
  EXPECT_NO_THROW(check_store(*ledger_, *store_)) << "nobody has said where its samples are";
  declare_store(*ledger_, *store_);
  declare_store(*ledger_, *store_);
  const auto other = create_shared_dir_store(folder_.path(), StoreId("other"), {.free_space_floor_bytes = 0});
  EXPECT_THROW(declare_store(*ledger_, *other), Conflict);
  try {
    check_store(*ledger_, *other);
    FAIL();
  } catch (const Conflict& error) {
    EXPECT_THAT(error.what(), HasSubstr("has its samples in store st/"));
    EXPECT_THAT(error.what(), HasSubstr("is store other/"));
  }
}

TEST_F(CrossCheckTest, FreedSamplesAreNotMissing) {
  ledger_->declare_group({.group = GroupId("train"), .window = 1});
  const SampleRef ref = put_committed("a");
  put_committed("b");
  const TimelineInfo timeline = ledger_->open_timeline({});
  ledger_->read_window(GroupId("train"), timeline.number, 0);
  ledger_->trained(GroupId("train"), timeline.number, 0, 1, {});
  ledger_->checkpointed(GroupId("train"), timeline.number, 1);
  ASSERT_EQ(ledger_->freeable(9).size(), 1u);
  store_->remove(ref);
  ledger_->freed({ref.sample_id});
  const CrossCheck found = cross_check(*ledger_, *store_, {.settle_seconds = 0});
  EXPECT_EQ(found.matching, 1);
  EXPECT_EQ(found.missing, 0);
}

}  // namespace
}  // namespace draftflow
