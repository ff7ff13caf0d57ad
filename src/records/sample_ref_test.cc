// SPDX-License-Identifier: Apache-2.0
#include "draftflow/records/sample_ref.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

constexpr const char* kRef =
    R"({"sample_id":"st:1","run_id":"st","source_task_id":null,"feature_store_uri":"disagg://st/st:1",)"
    R"("feature_keys":{"input_ids":"st:1/input_ids"},"feature_specs":{"input_ids":{"name":"input_ids","shape":[192],)"
    R"("dtype":"int64","device_hint":null,"required":true,"target_repr":null,"target_meta":{}}},"strategy":"eagle3",)"
    R"("schema_version":1,"target_model_version":"unknown","draft_weight_version":null,"tokenizer_version":"unknown",)"
    R"("num_tokens":192,"estimated_bytes":1536,"metadata":{"ttt_length":7,"generation":3}})";

TEST(SampleRef, RoundTripsTheReferencesJsonByteForByte) {
  EXPECT_EQ(sample_ref_to_json(sample_ref_from_json(kRef)), kRef);
}

TEST(SampleRef, ReadsTheFields) {
  const SampleRef ref = sample_ref_from_json(kRef);
  EXPECT_EQ(ref.sample_id.str(), "st:1");
  EXPECT_EQ(ref.generation, 3u);
  EXPECT_EQ(ref.find_spec("input_ids")->bytes(), 1536u);
  EXPECT_EQ(*ref.find_metadata("ttt_length"), "7");
}

TEST(SampleRef, KeepsUnknownFields) {
  std::string text = kRef;
  text.insert(text.size() - 1, R"(,"later":{"x":[1,2]})");
  EXPECT_EQ(sample_ref_to_json(sample_ref_from_json(text)), text);
}

TEST(SampleRef, RefusesAnUnknownSchemaVersionNamingBoth) {
  std::string text = kRef;
  text.replace(text.find("\"schema_version\":1"), 18, "\"schema_version\":999");
  try {
    sample_ref_from_json(text);
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "sample ref has schema_version 999: this program knows 1; a newer draftflow wrote it");
  }
}

TEST(SampleRef, NamesAMissingField) {
  std::string text = kRef;
  text.replace(text.find("\"strategy\""), 10, "\"strategyx\"");
  try {
    sample_ref_from_json(text);
    FAIL();
  } catch (const Corrupt& error) {
    EXPECT_STREQ(error.what(), "sample ref has no field 'strategy'");
  }
}

TEST(SampleRef, RefusesWhatIsNotAnObject) {
  EXPECT_THROW(sample_ref_from_json("[1]"), Corrupt);
  EXPECT_THROW(sample_ref_from_json("{"), Corrupt);
}

TEST(SampleRef, ReadsTheReferencesManifest) {
  DRAFTFLOW_REQUIRE_REAL_DATA(path, "reference-store/manifest.json");
  const auto manifest = nlohmann::ordered_json::parse(read_text_file(path));
  ASSERT_EQ(manifest["refs"].size(), 8u);
  for (const auto& ref : manifest["refs"]) EXPECT_EQ(sample_ref_to_json(sample_ref_from_json(ref.dump())), ref.dump());
}

}  // namespace
}  // namespace draftflow
