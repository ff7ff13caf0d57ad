// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/llama.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/model/bridge.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

constexpr const char* kConfig =
    R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":32,"intermediate_size":48,)"
    R"("num_hidden_layers":3,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":40,)"
    R"("max_position_embeddings":64,"tie_word_embeddings":%TIED%})";

std::string config_json(bool tied = true) {
  std::string text = kConfig;
  text.replace(text.find("%TIED%"), 6, tied ? "true" : "false");
  return text;
}

// Writes a random model as a Hugging Face folder, leaving out or reshaping tensors on request.
void write_folder(const std::filesystem::path& folder, bool tied, const std::string& without = "", bool misshapen = false) {
  const Llama model = Llama::random(parse_llama_config(config_json(tied), "test"), 5);
  TensorMap tensors;
  for (const auto& [name, weight] : model.parameters()) {
    if (name == without && !misshapen) continue;
    tensors.emplace_back(name, from_torch(name == without ? weight.narrow(0, 0, 1) : weight));
  }
  write_safetensors(folder / "model.safetensors", tensors);
  replace_file(folder / "config.json", config_json(tied));
}

at::Tensor some_ids(std::int64_t length) {
  return (at::arange(length, at::kLong) * 7 % 40).unsqueeze(0);
}

TEST(Llama, LoadsWhatItWroteTiedAndUntied) {
  for (const bool tied : {true, false}) {
    const testing_support::TempFolder folder;
    write_folder(folder.path(), tied);
    const Llama model = Llama::load(ModelFolder(folder.path()), at::kFloat);
    EXPECT_EQ(model.head().is_alias_of(model.embedding()), tied);
    EXPECT_EQ(model.forward(some_ids(9), {0, 2}).captured.size(), 2u);
  }
}

TEST(Llama, NamesAMissingTensorAndAMisshapenOne) {
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  for (const bool misshapen : {false, true}) {
    const testing_support::TempFolder folder;
    write_folder(folder.path(), true, name, misshapen);
    try {
      Llama::load(ModelFolder(folder.path()), at::kFloat);
      FAIL();
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
      if (misshapen) {
        EXPECT_NE(std::string(error.what()).find("[1, 32], but config.json makes it [48, 32]"), std::string::npos);
      }
    }
  }
}

TEST(Llama, RefusesAConfigWithFewerLayersThanTheFile) {
  const testing_support::TempFolder folder;
  write_folder(folder.path(), true);
  std::string config = config_json();
  config.replace(config.find("\"num_hidden_layers\":3"), 21, "\"num_hidden_layers\":2");
  replace_file(folder.path() / "config.json", config);
  EXPECT_THROW(Llama::load(ModelFolder(folder.path()), at::kFloat), InvalidArgument);
}

TEST(Llama, CachedPassesGiveWhatOneForwardGives) {
  const at::NoGradGuard no_grad;
  const Llama model = Llama::random(parse_llama_config(config_json(), "test"), 5);
  const at::Tensor ids = some_ids(20);
  const at::Tensor whole = model.forward(ids, {}).last_hidden;
  KvCache cache = model.make_cache(40);
  const at::Tensor first = model.forward_cached(ids.narrow(1, 0, 11), 0, cache, {}).last_hidden;
  // A rejected draft: garbage goes in and is overwritten by the real continuation.
  model.forward_cached(some_ids(5), 11, cache, {});
  const at::Tensor second = model.forward_cached(ids.narrow(1, 11, 9), 11, cache, {}).last_hidden;
  EXPECT_TRUE(at::allclose(at::cat({first, second}, 1), whole, 1e-5, 1e-6));
}

TEST(Llama, RefusesTokensAndLengthsOutOfRange) {
  const Llama model = Llama::random(parse_llama_config(config_json(), "test"), 5);
  EXPECT_THROW(model.forward(at::full({1, 3}, 40, at::kLong), {}), InvalidArgument);
  EXPECT_THROW(model.forward(at::full({1, 3}, -1, at::kLong), {}), InvalidArgument);
  EXPECT_THROW(model.forward(some_ids(65), {}), InvalidArgument);
  EXPECT_THROW(model.forward(some_ids(5), {3}), InvalidArgument);
  KvCache cache = model.make_cache(8);
  EXPECT_THROW(model.forward_cached(some_ids(4), 5, cache, {}), InvalidArgument);
}

// The real 260K-parameter model says what it is known to say.
TEST(Llama, RealModelTellsItsStoryTokenForToken) {
  DRAFTFLOW_REQUIRE_REAL_DATA(folder, "stories260k-hf");
  const at::NoGradGuard no_grad;
  const Llama model = Llama::load(ModelFolder(folder), at::kFloat);
  const auto vocab = nlohmann::json::parse(read_text_file(folder / "tok512.json"))["vocab"];
  KvCache cache = model.make_cache(256);
  std::string text;
  std::int64_t token = 1;
  for (std::int64_t position = 0; position < 60; ++position) {
    const at::Tensor ids = at::full({1, 1}, token, at::kLong);
    token = model.logits(model.forward_cached(ids, position, cache, {}).last_hidden).argmax(-1).item<std::int64_t>();
    text += vocab[static_cast<std::size_t>(token)].get<std::string>();
  }
  EXPECT_NE(text.find("Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, "
                      "she saw a big, red ball."),
            std::string::npos)
      << text;
}

// Features that PyTorch computed from the same model: layers 1, 2, 3 and the normed output, in bfloat16.
TEST(Llama, RealFeaturesAgreeWithPyTorchs) {
  DRAFTFLOW_REQUIRE_REAL_DATA(folder, "stories260k-hf");
  DRAFTFLOW_REQUIRE_REAL_DATA(features, "features-torch");
  const at::NoGradGuard no_grad;
  const Llama model = Llama::load(ModelFolder(folder), at::kFloat);
  for (const char* name : {"0000.ckpt", "0031.ckpt", "0063.ckpt"}) {
    const TensorMap file = load_feature_file(features / name);
    const auto out = model.forward(to_torch(*find_tensor(file, "input_ids")).unsqueeze(0), {1, 2, 3});
    const auto differs = [](const at::Tensor& found, const at::Tensor& wanted) {
      const at::Tensor wide = wanted.to(at::kFloat);
      return ((found - wide).norm() / wide.norm()).item<double>();
    };
    // Half a unit of bfloat16's last place is 2e-3 of each element.
    EXPECT_LT(differs(at::cat(out.captured, -1), to_torch(*find_tensor(file, "aux_hidden_state"))), 3e-3) << name;
    EXPECT_LT(differs(out.last_hidden, to_torch(*find_tensor(file, "hidden_state"))), 3e-3) << name;
  }
}

TEST(Llama, LoadsBfloat16AndRefusesIntegersAndNaN) {
  const testing_support::TempFolder folder;
  const Llama model = Llama::random(parse_llama_config(config_json(), "test"), 5);
  const auto write = [&](const std::function<at::Tensor(const std::string&, const at::Tensor&)>& change) {
    TensorMap tensors;
    for (const auto& [name, weight] : model.parameters()) tensors.emplace_back(name, from_torch(change(name, weight)));
    write_safetensors(folder.path() / "model.safetensors", tensors);
    replace_file(folder.path() / "config.json", config_json());
  };
  write([](const std::string&, const at::Tensor& weight) { return weight.to(at::kBFloat16); });
  EXPECT_EQ(Llama::load(ModelFolder(folder.path()), at::kBFloat16).embedding().scalar_type(), at::kBFloat16);
  write([](const std::string&, const at::Tensor& weight) { return weight.to(at::kLong); });
  EXPECT_THROW(Llama::load(ModelFolder(folder.path()), at::kFloat), InvalidArgument);
  write([](const std::string& name, const at::Tensor& weight) {
    return name == "model.norm.weight" ? at::full_like(weight, std::numeric_limits<float>::quiet_NaN()) : weight;
  });
  EXPECT_THROW(Llama::load(ModelFolder(folder.path()), at::kFloat), Corrupt);
}

}  // namespace
}  // namespace draftflow
