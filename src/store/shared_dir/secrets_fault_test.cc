// SPDX-License-Identifier: Apache-2.0
//
// Every system call of making a store with a secret, and of rotating the secret, fails once or is the last one of its
// process: afterwards one secret opens the store, and nothing is left beside it. Part of the program of fault_test.cc.
#include <sys/wait.h>

#include <functional>
#include <memory>

#include "store/shared_dir/shared_dir_store.h"
#include "store/store_testing.h"
#include "store/testing_faults.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using namespace store_testing;

constexpr std::uint64_t kMostCalls = 2000;  // an operation that makes more does not end
constexpr std::uint64_t kSeed = 10;

// `operation` with its `at`-th call failed or, in a process of its own, killed. False if it makes no such call.
bool cut_short(const std::function<void()>& operation, std::uint64_t at, bool killed) {
  if (!killed) {
    const ScopedFaults faults({.at = at, .action = fail(EIO)});
    try {
      operation();
    } catch (const Error&) {
    }
    return faults.hit();
  }
  const pid_t child = fork_child([&] {
    const ScopedFaults faults({.at = at, .action = kill_process()});
    try {
      operation();
    } catch (const Error&) {
    }
  });
  return WIFSIGNALED(wait_for(child));
}

class SecretsCutShort : public ::testing::TestWithParam<bool> {
 protected:
  static std::shared_ptr<const Secret> secret(const char* text) { return std::make_shared<Secret>(Secret::from_bytes(text)); }
  std::unique_ptr<FeatureStore> create(const char* text) {
    return create_shared_dir_store(temp_.path(), StoreId("st"), {.secret = secret(text)});
  }
  bool opens(const char* text) {
    try {
      open_shared_dir_store(temp_.path(), StoreId("st"), {.secret = secret(text)});
      return true;
    } catch (const PermissionDenied&) {
      return false;
    }
  }
  testing_support::TempFolder temp_;
};

TEST_P(SecretsCutShort, ARotationLeavesOneSecretThatOpens) {
  const SampleRef ref = create("old")->put(small_tensors(kSeed), SampleId("a"), run_metadata());
  const char* now = "old";
  const char* next = "new";
  for (std::uint64_t at = 1; at < kMostCalls; ++at) {
    const auto rotate = [&] { rotate_shared_dir_secret(temp_.path(), StoreId("st"), *secret(now), *secret(next)); };
    const bool cut = cut_short(rotate, at, GetParam());
    const bool old_opens = opens(now);
    EXPECT_NE(old_opens, opens(next)) << "call " << at;
    if (!old_opens) std::swap(now, next);
    const auto store = open_shared_dir_store(temp_.path(), StoreId("st"), {.secret = secret(now)});
    store->gc();
    expect_same(store->read(ref), small_tensors(kSeed));
    ASSERT_EQ(std::distance(std::filesystem::directory_iterator(temp_.path() / "st" / "access"), {}), 1) << "call " << at;
    EXPECT_TRUE(std::filesystem::is_empty(temp_.path() / "st" / "tmp")) << "call " << at;
    if (!cut) return;
    EXPECT_LT(at + 1, kMostCalls);
  }
}

TEST_P(SecretsCutShort, AStoreHalfMadeIsMadeByTheNextAndNeverOpen) {
  for (std::uint64_t at = 1; at < kMostCalls; ++at) {
    std::filesystem::remove_all(temp_.path() / "st");
    const bool cut = cut_short([&] { create("old"); }, at, GetParam());
    if (std::filesystem::exists(temp_.path() / "st" / "store.json")) {
      EXPECT_FALSE(opens("another")) << "call " << at;
    }
    const auto store = create("old");
    expect_same(store->read(store->put(small_tensors(kSeed), SampleId("a"), run_metadata())), small_tensors(kSeed));
    store->gc();
    ASSERT_EQ(std::distance(std::filesystem::directory_iterator(temp_.path() / "st" / "access"), {}), 1) << "call " << at;
    if (!cut) return;
    EXPECT_LT(at + 1, kMostCalls);
  }
}

INSTANTIATE_TEST_SUITE_P(Faults, SecretsCutShort, ::testing::Bool(),
                         [](const auto& test) { return std::string(test.param ? "Killed" : "Failed"); });

}  // namespace
}  // namespace draftflow::store
