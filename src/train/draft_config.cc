// SPDX-License-Identifier: Apache-2.0
#include "train/draft_config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

using Json = nlohmann::ordered_json;
constexpr const char* kArchitecture = "LlamaForCausalLMEagle3";
constexpr const char* kLayersKey = "eagle_aux_hidden_state_layer_ids";

void check_architecture(const Json& object, const std::string& what) {
  const Json found = object.value("architectures", Json());
  if (found != Json::array({kArchitecture})) {
    throw InvalidArgument(
        fmt::format("{}: architectures {} is no EAGLE-3 draft: [\"{}\"] is", what, found.dump().substr(0, 80), kArchitecture));
  }
  if (object.value("num_hidden_layers", 0) != 1) {
    throw InvalidArgument(
        fmt::format("{}: num_hidden_layers is {}: an EAGLE-3 draft has exactly 1", what, object.value("num_hidden_layers", 0)));
  }
}

}  // namespace

std::string draft_config_to_json(const DraftConfig& config, const std::string& torch_dtype) {
  Json object = Json::object();
  object["architectures"] = Json::array({kArchitecture});
  object["model_type"] = "llama";
  object["hidden_act"] = "silu";
  object["num_hidden_layers"] = 1;
  object["hidden_size"] = config.hidden_size;
  object["target_hidden_size"] = config.target_hidden_size;
  object["intermediate_size"] = config.intermediate_size;
  object["num_attention_heads"] = config.num_attention_heads;
  object["num_key_value_heads"] = config.num_key_value_heads;
  object["head_dim"] = config.head_dim;
  object["vocab_size"] = config.vocab_size;
  object["draft_vocab_size"] = config.draft_vocab_size;
  object["max_position_embeddings"] = config.max_position_embeddings;
  object["rms_norm_eps"] = config.rms_norm_eps;
  object["rope_theta"] = config.rope.base;
  object["rope_scaling"] = Json::parse(config.rope_json);
  object["tie_word_embeddings"] = false;
  object["bos_token_id"] = config.bos_token_id;
  if (config.eos_token_ids.size() == 1) {
    object["eos_token_id"] = config.eos_token_ids[0];
  } else {
    object["eos_token_id"] = config.eos_token_ids;
  }
  object["torch_dtype"] = torch_dtype;
  if (!config.capture_layers.empty()) object["eagle_config"][kLayersKey] = config.capture_layers;
  return object.dump(1) + "\n";
}

DraftConfig parse_draft_config(std::string_view json, const std::string& what) {
  Json object = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) throw Corrupt(what + " is not a JSON object");
  check_architecture(object, what);
  // The rest is a Llama's: one set of checks serves both.
  object["architectures"] = Json::array({"LlamaForCausalLM"});
  const LlamaConfig llama = parse_llama_config(object.dump(), what);
  DraftConfig config;
  config.hidden_size = llama.hidden_size;
  config.intermediate_size = llama.intermediate_size;
  config.num_attention_heads = llama.num_attention_heads;
  config.num_key_value_heads = llama.num_key_value_heads;
  config.head_dim = llama.head_dim;
  config.vocab_size = llama.vocab_size;
  config.max_position_embeddings = llama.max_position_embeddings;
  config.rms_norm_eps = llama.rms_norm_eps;
  config.rope = llama.rope;
  config.rope_json = llama.rope_json;
  config.bos_token_id = llama.bos_token_id;
  config.eos_token_ids = llama.eos_token_ids;
  try {
    config.target_hidden_size = object.value("target_hidden_size", llama.hidden_size);
    config.draft_vocab_size = object.value("draft_vocab_size", llama.vocab_size);
    if (object.contains("eagle_config")) config.capture_layers = object["eagle_config"].value(kLayersKey, std::vector<int>{});
  } catch (const Json::exception& error) {
    throw InvalidArgument(fmt::format("{}: {}", what, error.what()));
  }
  if (config.draft_vocab_size < 1 || config.draft_vocab_size > config.vocab_size) {
    throw InvalidArgument(fmt::format("{}: draft_vocab_size is {}: 1 to vocab_size {} are allowed", what,
                                      config.draft_vocab_size, config.vocab_size));
  }
  if (config.target_hidden_size < 1) {
    throw InvalidArgument(fmt::format("{}: target_hidden_size is {}: 1 or more is allowed", what, config.target_hidden_size));
  }
  return config;
}

}  // namespace draftflow
