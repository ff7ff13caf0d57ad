// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/llama_config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

using Json = nlohmann::ordered_json;

// Reads fields of one config with errors that name it.
class Fields {
 public:
  Fields(std::string_view json, std::string what) : what_(std::move(what)) {
    object_ = Json::parse(json, nullptr, /*allow_exceptions=*/false);
    if (!object_.is_object()) throw Corrupt(what_ + " is not a JSON object");
  }
  Fields(Json object, std::string what) : object_(std::move(object)), what_(std::move(what)) {}

  bool has(const char* name) const { return object_.contains(name) && !object_[name].is_null(); }
  const Json& raw(const char* name) const { return object_[name]; }
  const std::string& what() const { return what_; }

  std::int64_t size(const char* name) const {
    const double value = number(name);
    if (value < 1 || value > 1e9 || value != static_cast<double>(static_cast<std::int64_t>(value))) {
      throw InvalidArgument(
          fmt::format("{}: '{}' is {}: a whole number from 1 to 1,000,000,000 is allowed", what_, name, value));
    }
    return static_cast<std::int64_t>(value);
  }
  std::int64_t size(const char* name, std::int64_t fallback) const { return has(name) ? size(name) : fallback; }

  double number(const char* name) const {
    if (!has(name)) throw InvalidArgument(fmt::format("{} has no field '{}'", what_, name));
    if (!object_[name].is_number()) {
      throw InvalidArgument(
          fmt::format("{}: '{}' is {}: a number is allowed", what_, name, object_[name].dump().substr(0, 60)));
    }
    return object_[name].get<double>();
  }
  double number(const char* name, double fallback) const { return has(name) ? number(name) : fallback; }

  std::string text(const char* name, const std::string& fallback) const {
    if (!has(name)) return fallback;
    if (!object_[name].is_string()) throw InvalidArgument(fmt::format("{}: '{}' is not a string", what_, name));
    return object_[name].get<std::string>();
  }
  bool flag(const char* name, bool fallback) const {
    if (!has(name)) return fallback;
    if (!object_[name].is_boolean()) throw InvalidArgument(fmt::format("{}: '{}' is neither true nor false", what_, name));
    return object_[name].get<bool>();
  }

 private:
  Json object_;
  std::string what_;
};

void check_supported(const Fields& fields) {
  const std::string model_type = fields.text("model_type", "");
  if (model_type != "llama") {
    throw InvalidArgument(
        fmt::format("{}: model_type '{}' is not supported: 'llama' is", fields.what(), printable(model_type, 40)));
  }
  if (fields.has("architectures")) {
    const Json& list = fields.raw("architectures");
    if (!list.is_array() || list.size() != 1 || list[0] != "LlamaForCausalLM") {
      throw InvalidArgument(fmt::format("{}: architectures {} is not supported: [\"LlamaForCausalLM\"] is", fields.what(),
                                        printable(list.dump(), 80)));
    }
  }
  const std::string activation = fields.text("hidden_act", "silu");
  if (activation != "silu") {
    throw InvalidArgument(
        fmt::format("{}: hidden_act '{}' is not supported: 'silu' is", fields.what(), printable(activation, 40)));
  }
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    if (fields.flag(bias, false)) throw InvalidArgument(fmt::format("{}: {} true is not supported", fields.what(), bias));
  }
  if (fields.number("partial_rotary_factor", 1.0) != 1.0) {
    throw InvalidArgument(fmt::format("{}: partial_rotary_factor other than 1 is not supported", fields.what()));
  }
}

RopeKind rope_kind(const std::string& name, const std::string& what) {
  if (name == "default") return RopeKind::kDefault;
  if (name == "linear") return RopeKind::kLinear;
  if (name == "dynamic") return RopeKind::kDynamic;
  if (name == "llama3") return RopeKind::kLlama3;
  if (name == "yarn") return RopeKind::kYarn;
  throw InvalidArgument(
      fmt::format("{}: RoPE type '{}' is not known: default, linear, dynamic, llama3 and yarn are", what, printable(name, 40)));
}

RopeConfig parse_rope_fields(const Fields& fields, std::int64_t head_dim, std::int64_t max_positions) {
  RopeConfig rope;
  rope.base = fields.number("rope_theta", 10000.0);
  rope.head_dim = head_dim;
  rope.max_position_embeddings = max_positions;
  if (!(rope.base > 1.0))
    throw InvalidArgument(fmt::format("{}: rope_theta is {}: more than 1 is allowed", fields.what(), rope.base));
  if (!fields.has("rope_scaling")) return rope;
  if (!fields.raw("rope_scaling").is_object()) {
    throw InvalidArgument(fmt::format("{}: rope_scaling is neither null nor an object", fields.what()));
  }
  const Fields scaling(fields.raw("rope_scaling"), fields.what() + " rope_scaling");
  rope.kind = rope_kind(scaling.text("rope_type", scaling.text("type", "default")), scaling.what());
  if (rope.kind == RopeKind::kDefault) return rope;
  rope.factor = scaling.number("factor");
  if (!(rope.factor >= 1.0)) {
    throw InvalidArgument(fmt::format("{}: factor is {}: 1 or more is allowed", scaling.what(), rope.factor));
  }
  if (rope.kind == RopeKind::kLlama3) {
    rope.original_max_position = scaling.number("original_max_position_embeddings");
    rope.low_freq_factor = scaling.number("low_freq_factor");
    rope.high_freq_factor = scaling.number("high_freq_factor");
    if (!(rope.high_freq_factor > rope.low_freq_factor)) {
      throw InvalidArgument(fmt::format("{}: high_freq_factor must be more than low_freq_factor", scaling.what()));
    }
  }
  if (rope.kind == RopeKind::kYarn) {
    rope.original_max_position = scaling.number("original_max_position_embeddings", static_cast<double>(max_positions));
    rope.beta_fast = scaling.number("beta_fast", 32.0);
    rope.beta_slow = scaling.number("beta_slow", 1.0);
    rope.mscale = scaling.number("mscale", 1.0);
    rope.mscale_all_dim = scaling.number("mscale_all_dim", 0.0);
  }
  return rope;
}

void check_heads(const LlamaConfig& config, const std::string& what) {
  if (!(config.rms_norm_eps > 0 && config.rms_norm_eps < 1)) {
    throw InvalidArgument(fmt::format("{}: rms_norm_eps is {}: more than 0 and under 1 is allowed", what, config.rms_norm_eps));
  }
  for (const std::int64_t id : config.eos_token_ids) {
    if (id < 0 || id >= config.vocab_size) {
      throw InvalidArgument(fmt::format("{}: eos_token_id {} is outside the vocabulary of {}", what, id, config.vocab_size));
    }
  }
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    throw InvalidArgument(fmt::format("{}: num_attention_heads {} is no multiple of num_key_value_heads {}", what,
                                      config.num_attention_heads, config.num_key_value_heads));
  }
  if (config.head_dim % 2 != 0) throw InvalidArgument(fmt::format("{}: head_dim {} is odd", what, config.head_dim));
}

std::vector<std::int64_t> parse_eos(const Fields& fields) {
  if (!fields.has("eos_token_id")) return {2};
  const Json& value = fields.raw("eos_token_id");
  if (value.is_number_integer()) return {value.get<std::int64_t>()};
  std::vector<std::int64_t> ids;
  for (const Json& item : value) {
    if (!item.is_number_integer()) throw InvalidArgument(fields.what() + ": eos_token_id holds something that is no number");
    ids.push_back(item.get<std::int64_t>());
  }
  return ids;
}

}  // namespace

RopeConfig parse_rope(std::string_view json, const std::string& what, std::int64_t head_dim, std::int64_t max_positions) {
  return parse_rope_fields(Fields(json, what), head_dim, max_positions);
}

LlamaConfig parse_llama_config(std::string_view json, const std::string& what) {
  const Fields fields(json, what);
  check_supported(fields);
  LlamaConfig config;
  config.hidden_size = fields.size("hidden_size");
  config.intermediate_size = fields.size("intermediate_size");
  config.num_hidden_layers = fields.size("num_hidden_layers");
  config.num_attention_heads = fields.size("num_attention_heads");
  config.num_key_value_heads = fields.size("num_key_value_heads", config.num_attention_heads);
  if (!fields.has("head_dim") && config.hidden_size % config.num_attention_heads != 0) {
    throw InvalidArgument(fmt::format("{}: hidden_size {} is no multiple of num_attention_heads {}, and head_dim is not given",
                                      what, config.hidden_size, config.num_attention_heads));
  }
  config.head_dim = fields.size("head_dim", config.hidden_size / config.num_attention_heads);
  config.vocab_size = fields.size("vocab_size");
  config.max_position_embeddings = fields.size("max_position_embeddings", 2048);
  config.rms_norm_eps = fields.number("rms_norm_eps", 1e-6);
  config.tie_word_embeddings = fields.flag("tie_word_embeddings", false);
  config.bos_token_id = static_cast<std::int64_t>(fields.number("bos_token_id", 1));
  config.eos_token_ids = parse_eos(fields);
  config.dtype = fields.text("torch_dtype", fields.text("dtype", "float32"));
  check_heads(config, what);
  config.rope = parse_rope_fields(fields, config.head_dim, config.max_position_embeddings);
  if (fields.has("rope_scaling")) config.rope_json = fields.raw("rope_scaling").dump();
  return config;
}

}  // namespace draftflow
