// SPDX-License-Identifier: Apache-2.0
//
// The config.json of a Hugging Face Llama: what this program supports of it, checked. Plain values; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "draftflow/model/rope.h"

namespace draftflow {

struct LlamaConfig {
  std::int64_t hidden_size = 0, intermediate_size = 0, num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0;
  std::int64_t vocab_size = 0, max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  std::int64_t bos_token_id = 1;
  std::vector<std::int64_t> eos_token_ids;
  std::string dtype = "float32";  // torch_dtype
  RopeConfig rope;
  std::string rope_json = "null";  // rope_scaling as it stands in the file, for the draft's config
};

// InvalidArgument, naming `what` and the field, for another architecture, activation, bias or RoPE type, a missing field, or
// sizes that contradict each other.
LlamaConfig parse_llama_config(std::string_view json, const std::string& what);

// rope_theta and rope_scaling of any Llama-like config (the draft's too).
RopeConfig parse_rope(std::string_view json, const std::string& what, std::int64_t head_dim, std::int64_t max_positions);

}  // namespace draftflow
