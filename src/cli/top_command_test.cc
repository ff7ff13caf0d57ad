// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/app.h"
#include "draftflow/ledger/ledger.h"
#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

TEST(Top, EachLookIsALineOfJson) {
  const testing_support::TempFolder folder;
  const std::string file = (folder.path() / "l.sqlite3").string();
  open_sqlite_ledger(file)->declare_group({.group = GroupId("train"), .window = 2});
  std::ostringstream out, err;
  const char* const words[] = {"draftflow", "top", "--ledger", file.c_str(), "--seconds", "0.05", "--count", "2", "--json"};
  EXPECT_EQ(run_cli(9, words, {out, err, false}), 0) << err.str();
  std::istringstream lines(out.str());
  int looks = 0;
  for (std::string line; std::getline(lines, line); ++looks) {
    const auto json = nlohmann::json::parse(line);
    EXPECT_EQ(json["committed_per_s"], 0);
    EXPECT_TRUE(json["limit"].is_string());
    EXPECT_TRUE(json["leases"].is_array());
  }
  EXPECT_EQ(looks, 2);
}

}  // namespace
}  // namespace draftflow::cli
