// SPDX-License-Identifier: Apache-2.0
#include "draftflow/flow/cross_check.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <ctime>
#include <fstream>

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
  EXPECT_FALSE(check_store(*ledger_, *store_)) << "nobody has said where its samples are";
  declare_store(*ledger_, *store_);
  declare_store(*ledger_, *store_);
  EXPECT_TRUE(check_store(*ledger_, *store_));
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

template <class Call>
std::string conflict_of(const Call& call) {
  try {
    call();
  } catch (const Conflict& error) {
    return error.what();
  }
  return "no Conflict";
}

TEST_F(CrossCheckTest, TheFirstSampleTellsWhereNobodyHasSaid) {
  const auto other = create_shared_dir_store(folder_.path(), StoreId("other"), {.free_space_floor_bytes = 0});
  const auto memory = create_memory_store(StoreId("m"), {}), files = open_files_store();
  put_committed("deep/er");
  EXPECT_TRUE(check_store(*ledger_, *store_));
  EXPECT_THAT(conflict_of([&] { check_store(*ledger_, *other); }),
              AllOf(HasSubstr("has its samples in store " + store_fact(store_->health()) + ", and "),
                    HasSubstr("is store " + store_fact(other->health()) + ": name the store that belongs to the ledger")));
  EXPECT_THAT(conflict_of([&] { check_store(*ledger_, *memory); }), HasSubstr(", and this is store m/"));
  EXPECT_THAT(conflict_of([&] { check_store(*ledger_, *files); }), HasSubstr("and this is file://, which reads files"));
  EXPECT_THAT(conflict_of([&] { declare_store(*ledger_, *other); }), HasSubstr("has its samples in store st/"));
  EXPECT_EQ(ledger_->declared(kStoreFact), std::nullopt);
}

TEST_F(CrossCheckTest, AStoreThatWasMadeAgainIsAnother) {
  put_committed("a");
  store_.reset();
  std::filesystem::remove_all(folder_.path() / "st");
  store_ = create_shared_dir_store(folder_.path(), StoreId("st"), {.free_space_floor_bytes = 0});
  EXPECT_THAT(conflict_of([&] { check_store(*ledger_, *store_); }), HasSubstr("has its samples in store st/"));
}

TEST_F(CrossCheckTest, AStoreInMemoryIsKnownByItsSamples) {
  const auto mine = create_memory_store(StoreId("m/1"), {}), other = create_memory_store(StoreId("m/1"), {});
  ledger_->commit_samples({mine->put({{"x", Tensor::copy_of(DType::kUInt8, {4}, std::vector<std::byte>(4))}}, SampleId("a/b"),
                                     {.run_id = RunId("run")})},
                          {});
  EXPECT_TRUE(check_store(*ledger_, *mine));
  EXPECT_THAT(conflict_of([&] { check_store(*ledger_, *other); }),
              HasSubstr("in store " + store_fact(mine->health()) + ", and this is store " + store_fact(other->health())));
}

// The refs of a ledger that was taken over from the reference have no incarnation: the folder's name in the URI tells.
TEST_F(CrossCheckTest, AReferenceFolderIsKnownByItsName) {
  for (const char* const name : {"ref", "ref2"}) {
    std::filesystem::create_directory(folder_.path() / name);
    std::ofstream(folder_.path() / name / "a.g1.ckpt") << "x";
  }
  SampleRef ref{.sample_id = SampleId("a"), .run_id = RunId("run"), .feature_store_uri = "disagg://ref/a"};
  ref.generation = 1;
  ledger_->commit_samples({ref}, {});
  const auto mine = open_shared_dir_store(folder_.path(), StoreId("ref"), {});
  const auto other = open_shared_dir_store(folder_.path(), StoreId("ref2"), {});
  ASSERT_EQ(mine->health().backend, "reference");
  EXPECT_TRUE(check_store(*ledger_, *mine));
  EXPECT_THAT(conflict_of([&] { check_store(*ledger_, *other); }), HasSubstr("in store ref/, and "));
  EXPECT_THAT(conflict_of([&] { check_store(*ledger_, *store_); }), HasSubstr("in store ref/, and "));
}

TEST_F(CrossCheckTest, FilesInPlaceAreOfNoStore) {
  const auto files = open_files_store();
  SampleRef ref{.sample_id = SampleId("f"), .run_id = RunId("run"), .feature_store_uri = "file:///features/a.ckpt"};
  ref.generation = 1;
  ledger_->commit_samples({ref}, {});
  EXPECT_FALSE(check_store(*ledger_, *files));
  EXPECT_FALSE(check_store(*ledger_, *store_)) << "those of a stream may be beside others that are in a store";
  EXPECT_FALSE(check_reader(*ledger_, *files));
  EXPECT_THAT(
      conflict_of([&] { check_reader(*ledger_, *store_); }),
      AllOf(HasSubstr("has its samples in files where they lie (file:///"), HasSubstr("which the store file:// reads")));
  ledger_->declare("kind", "offline");
  EXPECT_FALSE(check_store(*ledger_, *files));
  EXPECT_THAT(
      conflict_of([&] { check_store(*ledger_, *store_); }),
      HasSubstr("has its samples in files where they lie (file:///features/a.ckpt is one), which the store file:// reads"));
  put_committed("a");
  EXPECT_TRUE(check_store(*ledger_, *store_)) << "of an offline set, too, the first one in a store tells";
}

TEST_F(CrossCheckTest, TheSweepOfAnotherStoreTakesNothing) {
  put_committed("a");
  const auto other = create_shared_dir_store(folder_.path(), StoreId("other"), {.free_space_floor_bytes = 0});
  const std::vector<std::byte> bytes(100);
  other->put({{"x", Tensor::copy_of(DType::kUInt8, {100}, bytes)}}, SampleId("a"), {.run_id = RunId("run")});
  EXPECT_THAT(conflict_of([&] { sweep_orphans(*ledger_, *other, 0); }), HasSubstr("has its samples in store st/"));
  EXPECT_EQ(other->health().resident_samples, 1u);
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
