// SPDX-License-Identifier: Apache-2.0
//
// The shape of an EAGLE-3 draft, and its config.json as SGLang and vLLM read it (docs/formats/draft.md). Plain value.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "draftflow/model/llama_config.h"

namespace draftflow {

struct DraftConfig {
  std::int64_t hidden_size = 0, target_hidden_size = 0, intermediate_size = 0;
  std::int64_t num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0;
  std::int64_t vocab_size = 0, draft_vocab_size = 0, max_position_embeddings = 0;
  double rms_norm_eps = 1e-5;
  RopeConfig rope;
  std::string rope_json = "null";  // rope_scaling
  std::int64_t bos_token_id = 1;
  std::vector<std::int64_t> eos_token_ids;
  std::vector<int> capture_layers;  // of the target; empty where the file does not say
};

std::string draft_config_to_json(const DraftConfig& config, const std::string& torch_dtype);

// InvalidArgument, naming `what` and the field, for another architecture, more than one layer, or sizes that contradict.
DraftConfig parse_draft_config(std::string_view json, const std::string& what);

}  // namespace draftflow
