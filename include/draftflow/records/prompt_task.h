// SPDX-License-Identifier: Apache-2.0
//
// PromptTask: one piece of text (or token ids) waiting to be captured. Plain value; thread-safe as such.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "draftflow/base/ids.h"
#include "draftflow/records/sample_ref.h"

namespace draftflow {

struct PromptTask {
  TaskId task_id;  // also the id of the sample that the task becomes
  RunId run_id;
  std::string source_id;                 // where it came from: "prompts.jsonl:17"
  std::string payload;                   // JSON: {"text": "..."} or {"input_ids": [...]}, optional "loss_mask": [...]
  std::int64_t max_length = 0;           // tokens; 0: the target's context
  std::string chat_template;             // "" = raw text
  std::string loss_mask_policy = "all";  // "all": every token counts
  std::string target_model_version = "unknown";
  std::optional<std::string> draft_weight_version;
  int attempt = 0;
  JsonMembers metadata;
};

std::string prompt_task_to_json(const PromptTask& task);
PromptTask prompt_task_from_json(std::string_view text);  // Corrupt, naming the field

}  // namespace draftflow
