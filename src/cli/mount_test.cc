// SPDX-License-Identifier: Apache-2.0
#include "cli/mount.h"

#include <gtest/gtest.h>

#include <sstream>

namespace draftflow::cli {
namespace {

constexpr const char* kMounts =
    "22 27 0:20 / /proc rw,nosuid shared:14 - proc proc rw\n"
    "27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "81 27 0:53 / /plain rw shared:2 master:3 - nfs4 server:/a rw,vers=4.2,rsize=1048576,hard,proto=tcp\n"
    "82 27 0:54 /x /short rw - nfs server:/b rw,vers=3,acregmin=1,acregmax=5,acdirmin=1,acdirmax=12,hard\n"
    "83 27 0:55 / /none rw - nfs4 server:/c rw,vers=4.2,noac,acregmax=60\n"
    "84 27 0:56 / /zero rw - nfs4 server:/d rw,acregmin=0,acregmax=0,acdirmin=0,acdirmax=0\n"
    "85 27 0:57 / /one rw - nfs4 server:/e rw,acregmax=3\n"
    "86 27 0:58 / /once rw - nfs4 server:/f rw,actimeo=7\n"
    "87 27 0:59\n"
    "\n";

std::int64_t cache_of(const std::string& device) {
  std::istringstream mounts(kMounts);
  const auto found = find_attribute_cache(mounts, device);
  return found ? found->ms : -1;
}

TEST(Mount, TheAttributeCacheIsWhatTheMountSays) {
  EXPECT_EQ(cache_of("0:53"), 60'000) << "the default";
  EXPECT_EQ(cache_of("0:54"), 12'000);
  EXPECT_EQ(cache_of("0:55"), 0);
  EXPECT_EQ(cache_of("0:56"), 0);
  EXPECT_EQ(cache_of("0:57"), 60'000) << "folders still have the default";
  EXPECT_EQ(cache_of("0:58"), 7'000);
}

TEST(Mount, WhatIsNoNfsHasNone) {
  for (const char* device : {"8:1", "0:20", "0:5", "9:9", "0:59", ""}) EXPECT_EQ(cache_of(device), -1) << device;
}

}  // namespace
}  // namespace draftflow::cli
