// SPDX-License-Identifier: Apache-2.0
//
// For this room's tests only: a small target, a small draft, and samples that look like captured ones.
#pragma once

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <vector>

#include "draftflow/base/file.h"
#include "draftflow/base/random.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/loader/prefetcher.h"
#include "draftflow/model/bridge.h"
#include "draftflow/model/llama.h"
#include "train/eagle3_draft.h"

namespace draftflow::testing_support {

constexpr std::int64_t kVocab = 40, kHidden = 16;

inline std::string target_config() {
  return fmt::format(R"({{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":{},"intermediate_size":24,)"
                     R"("num_hidden_layers":7,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":{},)"
                     R"("max_position_embeddings":96,"tie_word_embeddings":true,"eos_token_id":[2]}})",
                     kHidden, kVocab);
}

inline Llama make_target() {
  return Llama::random(parse_llama_config(target_config(), "test"), 3);
}

inline void write_target(const std::filesystem::path& folder) {
  make_folders(folder);
  TensorMap tensors;
  for (const auto& [name, weight] : make_target().parameters()) tensors.emplace_back(name, from_torch(weight));
  write_safetensors(folder / "model.safetensors", tensors);
  replace_file(folder / "config.json", target_config());
}

inline DraftConfig draft_config(std::int64_t draft_vocab) {
  DraftConfig config;
  config.hidden_size = config.target_hidden_size = kHidden;
  config.intermediate_size = 24;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 4;
  config.vocab_size = kVocab;
  config.draft_vocab_size = draft_vocab;
  config.max_position_embeddings = 96;
  config.rope.head_dim = 4;
  config.rope.max_position_embeddings = 96;
  config.eos_token_ids = {2};
  config.capture_layers = {1, 2, 3};
  return config;
}

inline Eagle3Draft make_draft(c10::ScalarType dtype, std::int64_t draft_vocab = 24, std::uint64_t seed = 4) {
  VocabMap map;
  for (std::int64_t i = 0; i < draft_vocab; ++i) map.used.push_back(i + (i >= draft_vocab / 2 ? kVocab - draft_vocab : 0));
  const Llama target = make_target();
  return Eagle3Draft::random(draft_config(draft_vocab), map, target.embedding(), target.head(), dtype, seed);
}

// What a capture worker would store for a seeded random prompt.
inline TensorMap make_features(std::uint64_t seed, std::int64_t length, DType dtype = DType::kBFloat16) {
  static const Llama target = make_target();
  Random random(seed);
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < length; ++i) ids.push_back(static_cast<std::int64_t>(random.below(kVocab)));
  const at::Tensor tokens = at::tensor(at::ArrayRef<std::int64_t>(ids), at::kLong);
  const auto out = target.forward(tokens.unsqueeze(0), {1, 2, 3});
  const auto stored = to_torch_dtype(dtype);
  return {{"input_ids", from_torch(tokens)},
          {"loss_mask", from_torch(at::ones({length}, at::kLong))},
          {"hidden_state", from_torch(out.last_hidden.to(stored))},
          {"aux_hidden_state", from_torch(at::cat(out.captured, -1).to(stored))}};
}

inline LoadedSample make_sample(std::uint64_t seed, std::int64_t length, DType dtype = DType::kBFloat16) {
  LoadedSample sample{.ref = {.sample_id = SampleId(fmt::format("s{}", seed)), .run_id = RunId("test")}};
  sample.tensors = make_features(seed, length, dtype);
  return sample;
}

}  // namespace draftflow::testing_support
