// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/account.h"

#include <sys/stat.h>

#include <cstring>

#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using store_testing::message_of;
using ::testing::HasSubstr;

constexpr std::int64_t kNow = 1'700'000'000;

class AccountTest : public ::testing::Test {
 protected:
  AccountTest() {
    std::filesystem::create_directory(accounts());
    std::filesystem::create_directory(temp_.path() / "tmp");
    account_.emplace(Folder::open(accounts()), Folder::open(temp_.path() / "tmp"));
  }
  std::filesystem::path accounts() const { return temp_.path() / "accounts"; }
  std::filesystem::path file() const { return std::filesystem::directory_iterator(accounts())->path(); }
  Account another() { return Account(Folder::open(accounts()), Folder::open(temp_.path() / "tmp")); }

  testing_support::TempFolder temp_;
  std::optional<Account> account_;
};

TEST_F(AccountTest, EveryAttachOfTheHostSeesTheSameFigures) {
  account_->add(3, 100, kNow);
  account_->add_leases(2);
  Account other = another();
  other.add(255, 50, kNow);
  other.subtract(3, 100, kNow);
  other.count_freed(100);
  const AccountTotals totals = account_->totals();
  EXPECT_EQ(totals.samples, 1);
  EXPECT_EQ(totals.bytes, 50);
  EXPECT_EQ(totals.birth_seconds, kNow);
  EXPECT_EQ(totals.leases, 2);
  EXPECT_EQ(totals.freed, 1);
  EXPECT_EQ(totals.freed_bytes, 100);
}

// The format outlives processes: offsets are in docs/formats/shared_dir.md.
TEST_F(AccountTest, GoldenOffsets) {
  account_->reserve(11, 0);
  account_->add_leases(12);
  account_->count_freed(13);
  account_->count_codec_saved(14);
  for (int i = 0; i < 15; ++i) account_->count_error();
  account_->add(2, 100, 64 * 5);
  const Account::Change change(*account_, 2);
  const std::string bytes = read_text_file(file());
  ASSERT_EQ(bytes.size(), 64u + 257 * 64 + 16384 * 4);
  const auto word = [&](std::size_t at) {
    std::int64_t value = 0;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
  };
  EXPECT_EQ(bytes.substr(0, 8), "dccount2");
  EXPECT_EQ(word(8), static_cast<std::int64_t>(bytes.size()));
  EXPECT_EQ(word(16), 11);
  EXPECT_EQ(word(24), 12);
  EXPECT_EQ(word(32), 1);
  EXPECT_EQ(word(40), 13);
  EXPECT_EQ(word(48), 14);
  EXPECT_EQ(word(56), 15);
  const std::size_t fan_out = 64 + 2 * 64;
  EXPECT_EQ(word(fan_out), 1);
  EXPECT_EQ(word(fan_out + 8), 100);
  EXPECT_EQ(word(fan_out + 16), 64 * 5);
  EXPECT_EQ(word(fan_out + 24), 1);  // begun
  EXPECT_EQ(word(fan_out + 32), 0);  // ended
  std::int32_t born = 0;
  std::memcpy(&born, bytes.data() + 64 + 257 * 64 + 5 * 4, sizeof born);
  EXPECT_EQ(born, 1);
}

TEST_F(AccountTest, AnotherHostsFileCounts) {
  account_->add(1, 100, kNow);
  account_->reserve(7, 0);
  const std::string bytes = read_text_file(file());
  replace_file(accounts() / "another-boot", bytes);
  EXPECT_EQ(account_->totals().bytes, 200);
  EXPECT_EQ(account_->resident_bytes(), 214);
  EXPECT_FALSE(account_->reserve(10, 220));
  EXPECT_TRUE(account_->reserve(6, 220));
  replace_file(accounts() / "a note", std::string("not an account"));
  EXPECT_EQ(account_->totals().bytes, 200);
}

TEST_F(AccountTest, ReserveKeepsTheCapAndLeavesNothingWhenItRefuses) {
  account_->add(0, 60, kNow);
  EXPECT_TRUE(account_->reserve(40, 100));
  EXPECT_FALSE(account_->reserve(1, 100));
  EXPECT_EQ(account_->resident_bytes(), 100);
  account_->add_reserved(-40);
  EXPECT_TRUE(account_->reserve(40, 100));
}

TEST_F(AccountTest, ACountCorrectsOnlyAFolderThatStoodStill) {
  account_->add(5, 1000, kNow);
  const auto begun = account_->begin_count(5, kNow);
  ASSERT_TRUE(begun);
  { const Account::Change change(*account_, 5); }
  EXPECT_FALSE(account_->settle(5, *begun, {}));
  EXPECT_EQ(account_->totals().bytes, 1000);
  EXPECT_TRUE(account_->settle(5, *account_->begin_count(5, kNow), {.samples = 2, .bytes = 30, .birth_seconds = 9}));
  EXPECT_EQ(account_->totals().samples, 2);
  EXPECT_EQ(account_->totals().bytes, 30);
  EXPECT_EQ(account_->totals().birth_seconds, 9);
}

TEST_F(AccountTest, AStepIsTakenForDeadOnlyAfterAWhile) {
  account_->add(5, 1000, kNow);
  alignas(Account::Change) std::byte memory[sizeof(Account::Change)];
  new (memory) Account::Change(*account_, 5);  // never ends: its process died
  EXPECT_FALSE(account_->begin_count(5, kNow));
  EXPECT_FALSE(account_->begin_count(5, kNow + 9));
  const auto begun = account_->begin_count(5, kNow + 11);
  ASSERT_TRUE(begun);
  EXPECT_TRUE(account_->settle(5, *begun, {}));
  EXPECT_EQ(account_->totals().bytes, 0);
  EXPECT_TRUE(account_->begin_count(5, kNow + 12)) << "it is settled once and for all";
}

TEST_F(AccountTest, HoldersAreCountedAgainOnlyWhileNoneOfThemChanges) {
  account_->reserve(1000, 0);
  account_->add_leases(3);
  const auto begun = account_->begin_count(kHolders, kNow);
  ASSERT_TRUE(begun);
  { const Account::Change change(*account_, kHolders); }
  EXPECT_FALSE(account_->settle_holders(*begun, 0, 0));
  EXPECT_EQ(account_->totals().reserved, 1000);
  EXPECT_TRUE(account_->settle_holders(*account_->begin_count(kHolders, kNow), 10, 1));
  EXPECT_EQ(account_->totals().reserved, 10);
  EXPECT_EQ(account_->totals().leases, 1);
}

TEST_F(AccountTest, BirthsThatNobodySawAreTakenAwayButNotFreshOnes) {
  account_->add(0, 1, kNow - 1000);
  account_->add(0, 1, kNow - 1000);
  account_->add(0, 1, kNow);
  std::vector<std::int64_t> seen(kAgeBuckets, 0);
  seen[static_cast<std::size_t>((kNow - 1000) / kAgeBucketSeconds) % kAgeBuckets] = 1;
  account_->settle_births(seen, kNow - 2 * kAgeBucketSeconds);
  const AccountTotals totals = account_->totals();
  EXPECT_EQ(totals.born[static_cast<std::size_t>((kNow - 1000) / kAgeBucketSeconds) % kAgeBuckets], 1);
  EXPECT_EQ(totals.born[static_cast<std::size_t>(kNow / kAgeBucketSeconds) % kAgeBuckets], 1);
}

TEST_F(AccountTest, ADamagedFileIsRefusedByName) {
  const auto path = file();
  account_.reset();
  std::string bytes = read_text_file(path);
  replace_file(path, bytes.substr(0, 100));
  EXPECT_THAT(message_of<Corrupt>([&] { another(); }), HasSubstr("bytes long: it is damaged; remove it"));
  bytes[0] = 'x';
  replace_file(path, bytes);
  EXPECT_THAT(message_of<Corrupt>([&] { another(); }), HasSubstr("is not an account of this version"));
}

}  // namespace
}  // namespace draftflow::store
