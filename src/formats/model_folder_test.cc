// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/model_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <fstream>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using testing::HasSubstr;
using testing_support::TempFolder;

Tensor floats(float value) {
  const std::array<float, 2> values{value, value + 1};
  return Tensor::copy_of(DType::kFloat32, {2}, std::as_bytes(std::span(values)));
}

class ModelFolderTest : public testing::Test {
 protected:
  void write(const char* name, const std::string& text) { std::ofstream(path() / name, std::ios::trunc) << text; }
  const std::filesystem::path& path() const { return folder_.path(); }

  void write_shards() {
    write("config.json", "{}");
    write_safetensors(path() / "one.safetensors", {{"a", floats(1)}, {"spare", floats(9)}});
    write_safetensors(path() / "two.safetensors", {{"b", floats(2)}});
    write("model.safetensors.index.json",
          R"({"metadata":{"total_size":16},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  }

  template <class E>
  std::string error_of(const std::filesystem::path& folder) {
    try {
      ModelFolder model(folder);
    } catch (const E& error) {
      return error.what();
    } catch (const Error& error) {
      return std::string("another kind: ") + error_kind_name(error.kind()) + ": " + error.what();
    }
    return "no error";
  }

  template <class E>
  std::string error_of_index(const std::string& index) {
    write_shards();
    write("model.safetensors.index.json", index);
    return error_of<E>(path());
  }

 private:
  TempFolder folder_;
};

TEST_F(ModelFolderTest, ReadsASingleFile) {
  write("config.json", R"({"model_type":"llama"})");
  write_safetensors(path() / "model.safetensors", {{"b", floats(2)}, {"a", floats(1)}});
  const ModelFolder model(path());
  EXPECT_EQ(model.config_json(), R"({"model_type":"llama"})");
  EXPECT_EQ(model.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(model.read("b").as<float>()[1], 3.0f);
  EXPECT_EQ(model.find("a")->shape, std::vector<std::int64_t>{2});
  EXPECT_EQ(model.find("c"), nullptr);
  EXPECT_EQ(model.path(), path());
}

TEST_F(ModelFolderTest, ReadsShards) {
  write_shards();
  const ModelFolder model(path());
  EXPECT_EQ(model.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(model.read("a").as<float>()[0], 1.0f);
  EXPECT_EQ(model.read("b").as<float>()[0], 2.0f);
}

TEST_F(ModelFolderTest, NamesTheNearestTensors) {
  write("config.json", "{}");
  write_safetensors(path() / "model.safetensors", {{"model.norm.weight", floats(1)}, {"lm_head.weight", floats(2)}});
  const ModelFolder model(path());
  try {
    model.read("norm.weight");
    FAIL();
  } catch (const NotFound& error) {
    EXPECT_THAT(error.what(), HasSubstr("has no tensor 'norm.weight': the nearest of 2 are model.norm.weight, lm_head.weight"));
  }
}

TEST_F(ModelFolderTest, NamesWhatIsMissing) {
  EXPECT_EQ(error_of<NotFound>("/nonexistent"), "the model folder /nonexistent does not exist");
  EXPECT_THAT(error_of<NotFound>(path()), HasSubstr("config.json: No such file"));
  write("config.json", "{}");
  EXPECT_THAT(error_of<NotFound>(path()), HasSubstr("has neither model.safetensors nor model.safetensors.index.json"));
  EXPECT_THAT(error_of<InvalidArgument>(path() / "config.json"), HasSubstr("is not a folder"));
}

TEST_F(ModelFolderTest, RefusesADamagedConfig) {
  write_shards();
  for (const char* text : {"", "{", "[]", "{\"a\":1"}) {
    write("config.json", text);
    EXPECT_THAT(error_of<Corrupt>(path()), HasSubstr("config.json is not a JSON object")) << text;
  }
  write("config.json", R"({"hidden_size":64,"hidden_size":32})");
  EXPECT_THAT(error_of<Corrupt>(path()), HasSubstr("config.json gives 'hidden_size' twice"));
  write("config.json", R"({"x":)" + std::string(1'000'000, '['));
  EXPECT_THAT(error_of<Corrupt>(path()), HasSubstr("config.json is not a JSON object"));
}

TEST_F(ModelFolderTest, RefusesADamagedFile) {
  write("config.json", "{}");
  write_safetensors(path() / "model.safetensors", {{"a", floats(1)}});
  const std::string whole = read_text_file(path() / "model.safetensors");
  write("model.safetensors", whole.substr(0, whole.size() - 1));
  EXPECT_THAT(error_of<Corrupt>(path()), HasSubstr("model.safetensors: tensor 'a' claims data bytes"));
}

TEST_F(ModelFolderTest, AFileCutShortAfterOpeningIsCorrupt) {
  write("config.json", "{}");
  write_safetensors(path() / "model.safetensors", {{"a", floats(1)}});
  const ModelFolder model(path());
  std::filesystem::resize_file(path() / "model.safetensors", std::filesystem::file_size(path() / "model.safetensors") - 1);
  EXPECT_THROW(model.read("a"), Corrupt);
}

TEST_F(ModelFolderTest, RefusesAnIndexThatContradictsItsShards) {
  EXPECT_THAT(error_of_index<Corrupt>(R"({"weight_map":{"b":"one.safetensors"}})"),
              HasSubstr("places 'b' in one.safetensors, which has no such tensor"));
  EXPECT_THAT(error_of_index<Corrupt>(R"({"weight_map":{"a":"three.safetensors"}})"),
              HasSubstr("lists the shard three.safetensors"));
  EXPECT_THAT(error_of_index<Corrupt>(R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})"),
              HasSubstr("gives 'a' twice"));
  EXPECT_THAT(error_of_index<Corrupt>(R"({"weight_map":{"a":7}})"), HasSubstr("places 'a' in no file"));
  EXPECT_THAT(error_of_index<Corrupt>(R"({"weight_map":[]})"), HasSubstr("has no object 'weight_map'"));
  EXPECT_THAT(error_of_index<Corrupt>("{}"), HasSubstr("has no object 'weight_map'"));
  EXPECT_THAT(error_of_index<Corrupt>("{"), HasSubstr("is not a JSON object"));
}

TEST_F(ModelFolderTest, RefusesShardsOutsideTheFolder) {
  for (const char* shard :
       {"/etc/passwd", "../one.safetensors", "x/../../one.safetensors", "", "..", "one.safetensors\\u0000"}) {
    EXPECT_THAT(error_of_index<Corrupt>(std::string(R"({"weight_map":{"a":")") + shard + "\"}}"),
                HasSubstr("outside the model's folder"))
        << shard;
  }
}

TEST_F(ModelFolderTest, ReadsARealModel) {
  DRAFTFLOW_REQUIRE_REAL_DATA(real, "stories260k-hf");
  const ModelFolder model(real);
  EXPECT_THAT(model.config_json(), HasSubstr("LlamaForCausalLM"));
  EXPECT_EQ(model.find("model.embed_tokens.weight")->shape, (std::vector<std::int64_t>{512, 64}));
  EXPECT_EQ(model.read("model.norm.weight").as<float>().size(), 64u);
}

}  // namespace
}  // namespace draftflow
