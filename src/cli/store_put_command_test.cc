// SPDX-License-Identifier: Apache-2.0
#include "cli/store_command_testing.h"
#include "draftflow/formats/feature_file.h"

namespace draftflow::cli {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class StorePut : public StoreCommand {
 protected:
  StorePut() {
    store();
    write_safetensors(file_, tensors());
  }

  const std::filesystem::path file_ = temp_.path() / "in.safetensors", out_ = temp_.path() / "out.safetensors";
};

TEST_F(StorePut, PrintsTheRefAndNothingElse) {
  const Outcome outcome = call({"put", path(), file_.string(), "--id", "run:1", "--run-id", "r"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  ASSERT_EQ(lines_of(outcome.out).size(), 1u);
  const SampleRef ref = sample_ref_from_json(lines_of(outcome.out)[0]);
  EXPECT_EQ(ref.sample_id.str(), "run:1");
  EXPECT_EQ(ref.run_id.str(), "r");
  EXPECT_EQ(ref.num_tokens, 3);
  expect_same_by_name(store()->read(ref), tensors());
}

TEST_F(StorePut, GetGivesBackWhatWasPut) {
  for (const std::string id : {"plain", "ls", "run", "a b/../c", "line\nbreak", "\xF0\x9F\xA6\x86"}) {
    ASSERT_EQ(call({"put", path(), file_.string(), "--id", id}).code, 0) << id;
    const Outcome outcome = call({"get", path(), id, "--out", out_.string(), "--force"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(lines_of(outcome.out).size(), 1u);
    expect_same_by_name(load_feature_file(out_), load_feature_file(file_));
  }
  EXPECT_EQ(store()->health().resident_samples, 6u);
  EXPECT_EQ(store()->health().live_leases, 0u);
}

TEST_F(StorePut, RealFilesComeBackTheSame) {
  DRAFTFLOW_REQUIRE_REAL_DATA(features, "features-torch");
  const auto checkpoint = features / "0000.ckpt";
  ASSERT_EQ(call({"put", path(), checkpoint.string(), "--id", "a"}).code, 0);
  ASSERT_EQ(call({"get", path(), "a", "--out", out_.string()}).code, 0);
  expect_same_by_name(load_feature_file(out_), load_feature_file(checkpoint));
}

TEST_F(StorePut, GetDoesNotConsume) {
  const auto scratch = temp_.path() / "once";
  ASSERT_EQ(call({"create", scratch.string(), "--kind", "consume_once"}).code, 0);
  ASSERT_EQ(call({"put", scratch.string(), file_.string(), "--id", "a"}).code, 0);
  EXPECT_EQ(call({"get", scratch.string(), "a", "--out", out_.string()}).code, 0);
  EXPECT_EQ(call({"get", scratch.string(), "a", "--out", out_.string(), "--force"}).code, 0);
}

TEST_F(StorePut, GetReplacesOnlyByForce) {
  put("a");
  replace_file(out_, "mine");
  const Outcome refused = call({"get", path(), "a", "--out", out_.string()});
  EXPECT_EQ(refused.code, 2);
  EXPECT_EQ(refused.err, "draftflow store get: InvalidArgument: " + out_.string() +
                             " is there already and was left alone: choose another name, or --force to replace it\n");
  EXPECT_EQ(read_text_file(out_), "mine");
  const auto dangling = temp_.path() / "link.safetensors";
  std::filesystem::create_symlink(temp_.path() / "nowhere", dangling);
  EXPECT_EQ(call({"get", path(), "a", "--out", dangling.string()}).code, 2);
  const Outcome forced = call({"get", path(), "a", "--out", out_.string(), "--force", "--json"});
  EXPECT_EQ(forced.code, 0) << forced.err;
  EXPECT_EQ(nlohmann::json::parse(forced.out)["tensors"], 2);
  expect_same_by_name(load_feature_file(out_), tensors());
}

TEST_F(StorePut, GetRefusesAnotherEnding) {
  put("a");
  EXPECT_THAT(call({"get", path(), "a", "--out", (temp_.path() / "a.ckpt").string()}).err, HasSubstr(".safetensors is needed"));
  EXPECT_FALSE(std::filesystem::exists(temp_.path() / "a.ckpt"));
}

TEST_F(StorePut, GetSaysWhatThereIsInstead) {
  const SampleRef old = put("a"), current = put("a", 2);
  const Outcome superseded = call({"get", path(), "a", "--generation", std::to_string(old.generation), "--out", out_.string()});
  EXPECT_EQ(superseded.code, 3);
  EXPECT_THAT(superseded.err, HasSubstr("the current one is " + std::to_string(current.generation)));
  const Outcome unknown = call({"get", path(), "b\n", "--out", out_.string()});
  EXPECT_EQ(unknown.code, 3);
  EXPECT_THAT(unknown.err, HasSubstr("has no sample 'b\\x0a'"));
  EXPECT_THAT(unknown.err, HasSubstr("'draftflow store ls " + path() + "' lists what is there"));
  EXPECT_FALSE(std::filesystem::exists(out_));
}

TEST_F(StorePut, GetNeverWritesDamagedBytes) {
  flip(file_of(put("a")));
  const Outcome outcome = call({"get", path(), "a", "--out", out_.string()});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.err, HasSubstr("differs from what was written"));
  EXPECT_FALSE(std::filesystem::exists(out_));
}

TEST_F(StorePut, PutRefusesAndLeavesNothing) {
  replace_file(temp_.path() / "bad.ckpt", "not a checkpoint");
  EXPECT_EQ(call({"put", path(), (temp_.path() / "bad.ckpt").string(), "--id", "a"}).code, 7);
  EXPECT_EQ(call({"put", path(), (temp_.path() / "none.ckpt").string(), "--id", "a"}).code, 3);
  EXPECT_EQ(call({"put", path(), file_.string(), "--id", ""}).code, 2);
  const Outcome bytes = call({"put", path(), file_.string(), "--id", "a\xFF"});
  EXPECT_EQ(bytes.code, 2);
  EXPECT_THAT(bytes.err, StartsWith("draftflow store put: InvalidArgument: "));
  EXPECT_EQ(store()->health().resident_samples, 0u);
}

}  // namespace
}  // namespace draftflow::cli
