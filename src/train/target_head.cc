// SPDX-License-Identifier: Apache-2.0
#include "train/target_head.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "draftflow/formats/model_folder.h"
#include "draftflow/model/bridge.h"

namespace draftflow {
namespace {

at::Tensor read_table(const ModelFolder& folder, const std::string& name, const LlamaConfig& config, c10::ScalarType dtype) {
  const Tensor table = folder.read(name);
  if (table.shape != std::vector<std::int64_t>{config.vocab_size, config.hidden_size}) {
    throw InvalidArgument(fmt::format("model folder {}: tensor '{}' has shape {}, but config.json makes it [{}, {}]",
                                      folder.path().string(), name, shape_text(table.shape), config.vocab_size,
                                      config.hidden_size));
  }
  return to_torch(table).to(dtype, /*non_blocking=*/false, /*copy=*/true);
}

}  // namespace

TargetHead load_target_head(const std::filesystem::path& path, c10::ScalarType dtype) {
  const ModelFolder folder(path);
  TargetHead target;
  target.config = parse_llama_config(folder.config_json(), (path / "config.json").string());
  target.embedding = read_table(folder, "model.embed_tokens.weight", target.config, dtype);
  target.head =
      target.config.tie_word_embeddings ? target.embedding : read_table(folder, "lm_head.weight", target.config, dtype);
  return target;
}

}  // namespace draftflow
