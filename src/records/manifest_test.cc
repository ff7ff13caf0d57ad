// SPDX-License-Identifier: Apache-2.0
#include "draftflow/records/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Manifest : public ::testing::Test {
 protected:
  template <class E>
  std::string message_of(const std::string& text) {
    replace_file(path_, std::string_view(text));
    try {
      read_ref_manifest(path_);
    } catch (const E& error) {
      return error.what();
    }
    return "nothing was thrown";
  }
  static SampleRef ref(const std::string& id) {
    SampleRef made{.sample_id = SampleId(id), .run_id = RunId("run")};
    made.feature_store_uri = "disagg://st/" + id;
    made.feature_keys = {{"input_ids", id + "/input_ids"}};
    FeatureSpec spec;
    spec.name = "input_ids";
    spec.shape = {3};
    spec.dtype = DType::kInt64;
    made.feature_specs = {spec};
    made.generation = 4;
    made.set_metadata("layers", "[1, 2]");
    return made;
  }

  testing_support::TempFolder temp_;
  std::filesystem::path path_ = temp_.path() / "manifest.json";
};

TEST_F(Manifest, RoundTripsWhateverTheIdsHold) {
  const std::vector<SampleRef> refs{ref("a"), ref("../x\n\"y\" \xF0\x9F\x98\x80"), ref(std::string(1024, 'z'))};
  write_ref_manifest(path_, refs);
  const std::vector<SampleRef> again = read_ref_manifest(path_);
  ASSERT_EQ(again.size(), refs.size());
  for (std::size_t i = 0; i < refs.size(); ++i) EXPECT_EQ(sample_ref_to_json(again[i]), sample_ref_to_json(refs[i]));
  write_ref_manifest(path_, {});
  EXPECT_TRUE(read_ref_manifest(path_).empty());
}

// The reference builds a ref of its fields by name: one more of ours would be a TypeError there.
TEST_F(Manifest, HasNoFieldThatTheReferenceDoesNotKnow) {
  SampleRef one = ref("a");
  one.incarnation = std::string(32, 'e');
  write_ref_manifest(path_, {one});
  const auto json = nlohmann::ordered_json::parse(read_text_file(path_));
  std::vector<std::string> names;
  for (const auto& [name, value] : json["refs"][0].items()) names.push_back(name);
  EXPECT_THAT(names,
              ::testing::ElementsAre("sample_id", "run_id", "source_task_id", "feature_store_uri", "feature_keys",
                                     "feature_specs", "strategy", "schema_version", "target_model_version",
                                     "draft_weight_version", "tokenizer_version", "num_tokens", "estimated_bytes", "metadata"));
  EXPECT_EQ(json["refs"][0]["metadata"]["incarnation"], one.incarnation);
}

TEST_F(Manifest, KeepsWhatItDoesNotKnowOfARef) {
  auto json = nlohmann::ordered_json::parse(sample_ref_to_json(ref("a")));
  json["later"] = {{"x", 1}};
  json["metadata"]["also_later"] = "y";
  replace_file(path_, std::string_view(R"({"schema_version": 1, "refs": [)" + json.dump() + "]}"));
  write_ref_manifest(path_, read_ref_manifest(path_));
  EXPECT_EQ(nlohmann::json::parse(read_text_file(path_))["refs"][0], nlohmann::json::parse(json.dump()));  // in any order
}

TEST_F(Manifest, OneThatIsThereIsReplacedOrStays) {
  write_ref_manifest(path_, {ref("a")});
  write_ref_manifest(path_, {ref("b")});
  EXPECT_EQ(read_ref_manifest(path_)[0].sample_id.str(), "b");
  EXPECT_EQ(temp_.list().size(), 1u);
  const auto folder = temp_.path() / "folder";
  std::filesystem::create_directories(folder / "in it");
  EXPECT_ANY_THROW(write_ref_manifest(folder, {ref("a")}));
  EXPECT_EQ(temp_.list().size(), 2u);
}

TEST_F(Manifest, RefusesWhatIsNoneByName) {
  EXPECT_THROW(read_ref_manifest(temp_.path() / "none.json"), NotFound);
  EXPECT_THAT(message_of<Corrupt>("[]"), AllOf(HasSubstr("manifest.json"), HasSubstr("not a JSON object")));
  EXPECT_THAT(message_of<Corrupt>(R"({"refs": []})"), HasSubstr("no field 'schema_version'"));
  EXPECT_THAT(message_of<InvalidArgument>(R"({"schema_version": 2, "refs": []})"), AllOf(HasSubstr("2"), HasSubstr("knows 1")));
  EXPECT_THAT(message_of<Corrupt>(R"({"schema_version": 1, "refs": {}})"), HasSubstr("not a list"));
  const std::string good = sample_ref_to_json(ref("a"));
  EXPECT_THAT(message_of<Corrupt>(R"({"schema_version": 1, "refs": [)" + good + R"(, {"sample_id": "b"}]})"),
              AllOf(HasSubstr("ref 2 of 2"), HasSubstr("'schema_version'")));
  auto newer = nlohmann::ordered_json::parse(good);
  newer["schema_version"] = 9;
  EXPECT_THAT(message_of<InvalidArgument>(R"({"schema_version": 1, "refs": [)" + newer.dump() + "]}"), HasSubstr("ref 1 of 1"));
}

TEST_F(Manifest, ReadsTheReferencesOwn) {
  DRAFTFLOW_REQUIRE_REAL_DATA(real, "reference-store/manifest.json");
  const std::vector<SampleRef> refs = read_ref_manifest(real);
  ASSERT_EQ(refs.size(), 8u);
  EXPECT_EQ(refs[3].sample_id.str(), "stories:00000003");
  EXPECT_EQ(refs[3].generation, 1u);
  EXPECT_EQ(refs[3].incarnation, "");
  write_ref_manifest(path_, refs);
  EXPECT_EQ(nlohmann::ordered_json::parse(read_text_file(path_)), nlohmann::ordered_json::parse(read_text_file(real)));
}

}  // namespace
}  // namespace draftflow
