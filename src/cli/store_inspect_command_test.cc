// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "cli/store_command_testing.h"

namespace draftflow::cli {
namespace {

using testing::HasSubstr;

using StoreInspect = StoreCommand;

TEST_F(StoreInspect, TellsTensorsAndWhose) {
  const SampleRef ref = put("a\nb");
  const auto reader = store();
  const Fetched leased = reader->get(ref);
  const Outcome outcome = call({"inspect", path(), "a\nb"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("sample     a\\x0ab   generation " + std::to_string(ref.generation) + "\n"));
  EXPECT_THAT(outcome.out, HasSubstr("store      st, incarnation " + ref.incarnation + "\n"));
  EXPECT_THAT(outcome.out, HasSubstr("file       " + file_of(ref).string() + "\n"));
  EXPECT_THAT(outcome.out, HasSubstr("36 B, 1 leases, age "));
  EXPECT_THAT(outcome.out, testing::ContainsRegex("hidden_state  float32   \\[1, 3\\] +min -2.5 +max 8 +NaN 0  checksum ok\n"));
  EXPECT_THAT(outcome.out, testing::ContainsRegex("input_ids     int64     \\[3\\] +min 5 +max 7 +NaN 0  checksum ok\n"));
}

TEST_F(StoreInspect, JsonHasTheSame) {
  const SampleRef ref = put("a", std::numeric_limits<float>::quiet_NaN());
  const auto json =
      nlohmann::json::parse(call({"inspect", path(), "a", "--generation", std::to_string(ref.generation), "--json"}).out);
  EXPECT_EQ(json["sample_id"], "a");
  EXPECT_EQ(json["generation"], ref.generation);
  EXPECT_EQ(json["leases"], 0);
  ASSERT_EQ(json["tensors"].size(), 2u);
  for (const auto& entry : json["tensors"]) {
    EXPECT_EQ(entry["checksum"], "ok");
    EXPECT_EQ(entry["nan_count"], entry["name"] == "hidden_state" ? 1 : 0);
  }
}

TEST_F(StoreInspect, NamesTheTensorThatDiffersAndWhere) {
  flip(file_of(put("a")));
  const Outcome outcome = call({"inspect", path(), "a"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.out, testing::ContainsRegex("input_ids .* checksum ok\n"));
  EXPECT_THAT(outcome.out, testing::ContainsRegex("hidden_state .* checksum differs\n"));
  EXPECT_THAT(outcome.out, HasSubstr("tensor 'hidden_state' differs from what was written, in its bytes 0 to 12"));
  EXPECT_THAT(outcome.err,
              HasSubstr("1 of the 2 tensors of sample 'a' are not what was written: capture it, or put it, again"));
  const auto json = nlohmann::json::parse(call({"inspect", path(), "a", "--json"}).out);
  EXPECT_EQ(json["tensors"][1]["checksum"], "differs");
  EXPECT_FALSE(json["tensors"][1].contains("min"));
}

TEST_F(StoreInspect, AFileWithoutItsHeadIsCorruptAndNamed) {
  const auto file = file_of(put("a"));
  replace_file(file, "junk");
  const Outcome outcome = call({"inspect", path(), "a"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.err, HasSubstr(file.string()));
}

TEST_F(StoreInspect, UnknownSamplesAreNotFound) {
  put("a");
  EXPECT_EQ(call({"inspect", path(), "b"}).code, 3);
  EXPECT_EQ(call({"inspect", path(), "a", "--generation", "1"}).code, 3);
}

}  // namespace
}  // namespace draftflow::cli
