// SPDX-License-Identifier: Apache-2.0
//
// Prompt files: .jsonl with {"text": "..."} or {"input_ids": [...], "loss_mask": [...]} a line, anything else a prompt a
// line; blank lines are skipped. A bad line is kept with its reason, so that it can be reported and never stops the rest.
// Needs no libtorch. Pure functions; thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/model/tokenizer.h"

namespace draftflow {

struct Prompt {
  std::int64_t line = 0;  // counted from 1
  std::string text;       // "" where the file gives token ids
  std::vector<std::int64_t> input_ids;
  std::vector<std::int64_t> loss_mask;  // as long as input_ids; all 1 unless the file says otherwise
  std::optional<std::string> error;     // why it cannot be used; the rest is empty then
};

// Tokenizes every line. More than max_tokens tokens, fewer than 2, a token outside 0..vocab_size-1, invalid UTF-8, or a
// mask of another length or other values than 0 and 1 is that prompt's error. InvalidArgument, naming the file, if it holds
// no prompt at all; NotFound if it is missing.
std::vector<Prompt> read_prompts(const std::filesystem::path& file, const Tokenizer& tokenizer, std::int64_t max_tokens,
                                 std::int64_t vocab_size);

}  // namespace draftflow
