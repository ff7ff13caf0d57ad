// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/llama_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

nlohmann::json base() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", 64},
          {"intermediate_size", 172},
          {"num_hidden_layers", 5},
          {"num_attention_heads", 8},
          {"num_key_value_heads", 4},
          {"vocab_size", 512}};
}

std::string refusal(const nlohmann::json& config) {
  try {
    parse_llama_config(config.dump(), "config.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(LlamaConfig, FillsWhatIsLeftOut) {
  const LlamaConfig config = parse_llama_config(base().dump(), "config.json");
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.rope.kind, RopeKind::kDefault);
}

TEST(LlamaConfig, RefusesByName) {
  auto config = base();
  config["model_type"] = "mamba";
  EXPECT_EQ(refusal(config), "config.json: model_type 'mamba' is not supported: 'llama' is");
  config = base();
  config["architectures"] = {"GPT2"};
  EXPECT_EQ(refusal(config), R"(config.json: architectures ["GPT2"] is not supported: ["LlamaForCausalLM"] is)");
  config = base();
  config["rope_scaling"] = {{"rope_type", "longrope"}, {"factor", 2.0}};
  EXPECT_EQ(refusal(config),
            "config.json rope_scaling: RoPE type 'longrope' is not known: default, linear, dynamic, llama3 and yarn are");
  config = base();
  config["attention_bias"] = true;
  EXPECT_EQ(refusal(config), "config.json: attention_bias true is not supported");
  config = base();
  config.erase("hidden_size");
  EXPECT_EQ(refusal(config), "config.json has no field 'hidden_size'");
  config = base();
  config["num_key_value_heads"] = 3;
  EXPECT_EQ(refusal(config), "config.json: num_attention_heads 8 is no multiple of num_key_value_heads 3");
  config = base();
  config["vocab_size"] = -4;
  EXPECT_EQ(refusal(config), "config.json: 'vocab_size' is -4: a whole number from 1 to 1,000,000,000 is allowed");
  EXPECT_EQ(refusal("text"), "config.json is not a JSON object");
}

TEST(LlamaConfig, ReadsScalingUnderBothNames) {
  auto config = base();
  for (const char* key : {"type", "rope_type"}) {
    config["rope_scaling"] = {{key, "linear"}, {"factor", 4.0}};
    const LlamaConfig parsed = parse_llama_config(config.dump(), "config.json");
    EXPECT_EQ(parsed.rope.kind, RopeKind::kLinear);
    EXPECT_EQ(parsed.rope.factor, 4.0);
  }
}

}  // namespace
}  // namespace draftflow
