// SPDX-License-Identifier: Apache-2.0
//
// What training needs of the target, and no more: its config, embedding and head. Plain value.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>

#include "draftflow/model/llama_config.h"

namespace draftflow {

struct TargetHead {
  LlamaConfig config;
  at::Tensor embedding, head;  // [V, H]; the same one when tied
};

// Errors as ModelFolder and parse_llama_config; InvalidArgument for shapes that contradict the config.
TargetHead load_target_head(const std::filesystem::path& folder, c10::ScalarType dtype);

}  // namespace draftflow
