// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/group_sync.h"

#include <fcntl.h>

#include <thread>

#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

TEST(GroupSync, AFolderNamedTwiceIsSyncedOnce) {
  const testing_support::TempFolder temp;
  const Folder one = Folder::open(temp.path()), again = Folder::open(temp.path());
  GroupSync syncs;
  syncs.sync({&one, &again, &one});
  EXPECT_EQ(syncs.syncs(), 1u);
  syncs.sync({&one});
  EXPECT_EQ(syncs.syncs(), 2u) << "a later call is not served by an earlier sync";
}

TEST(GroupSync, ThreadsShareTheSyncsOfTheFoldersTheyShare) {
  constexpr int kThreads = 8, kCalls = 50;
  const testing_support::TempFolder temp;
  GroupSync syncs;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int call = 0; call < kCalls; ++call) {
        const Folder folder = Folder::open(temp.path());
        syncs.sync({&folder});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LT(syncs.syncs(), static_cast<std::uint64_t>(kThreads * kCalls));
  EXPECT_GE(syncs.syncs(), static_cast<std::uint64_t>(kCalls));
}

}  // namespace
}  // namespace draftflow::store
