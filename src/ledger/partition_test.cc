// SPDX-License-Identifier: Apache-2.0
#include "draftflow/ledger/partition.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "draftflow/base/file.h"
#include "ledger/sql/rows.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

// By Python: int.from_bytes(hashlib.sha1(id.encode()).digest(), "big") % n.
TEST(Partition, EqualsPythonsSha1ModuloN) {
  EXPECT_EQ(dp_partition("run:00000007", 7), 5);
  EXPECT_EQ(dp_partition("run:00000007", 42), 12);
  EXPECT_EQ(dp_partition("run:00000007", 64), 26);
  EXPECT_EQ(dp_partition("run:00000007", 1000), 250);
  EXPECT_EQ(dp_partition("", 1000), 305);
  EXPECT_EQ(dp_partition("emoji \xF0\x9F\x98\x80/../x", 1000), 42);
  EXPECT_EQ(dp_partition(std::string(300, 'x'), 1024), 656);
}

TEST(Partition, IsExactForEveryN) {
  EXPECT_EQ(dp_partition("stories:00000007", (1LL << 31) - 1), 1896212426);
  EXPECT_EQ(dp_partition("stories:00000007", 1LL << 31), 1749775345);
  EXPECT_EQ(dp_partition("a", std::numeric_limits<std::int64_t>::max()), 3401971328412038225);
  EXPECT_EQ(dp_partition("a", kShardModulus), 6098066565226061752);
}

TEST(Partition, OfOneOrFewerIsZero) {
  for (const std::int64_t n : {1LL, 0LL, -1LL, -(1LL << 40)}) EXPECT_EQ(dp_partition("a", n), 0) << n;
}

TEST(Partition, AShardTellsThePartitionOfEveryWidthThatDividesItsModulus) {
  int widths = 0;
  for (std::int64_t n = 1; n <= 1024; ++n) {
    if (kShardModulus % n != 0) {
      EXPECT_GT(n, 42);
      EXPECT_NE(n & (n - 1), 0) << "a power of two: " << n;
      continue;
    }
    ++widths;
    const std::string id = fmt::format("run:{:08}", n);
    EXPECT_EQ(dp_partition(id, kShardModulus) % n, dp_partition(id, n)) << n;
  }
  EXPECT_GT(widths, 400);
}

TEST(Partition, EqualsTheReferencesVectors) {
  const auto path = testing_support::real_data("dp_partition_vectors.json");
  if (!path) GTEST_SKIP() << "real data 'dp_partition_vectors.json' is absent (set DRAFTFLOW_TEST_DATA)";
  const auto vectors = nlohmann::json::parse(read_text_file(*path));
  int checked = 0;
  for (const auto& [n, pairs] : vectors.items()) {
    for (const auto& pair : pairs) {
      EXPECT_EQ(dp_partition(pair[0].get<std::string>(), std::stoll(n)), pair[1].get<std::int64_t>()) << n << " " << pair[0];
      ++checked;
    }
  }
  EXPECT_GT(checked, 20);
}

}  // namespace
}  // namespace draftflow
