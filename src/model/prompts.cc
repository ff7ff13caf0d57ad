// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/prompts.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string_view>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

using Json = nlohmann::json;
constexpr std::size_t kMaxLineBytes = 1 << 20;  // of one prompt: a longer line is no prompt

void read_ids(const Json& object, Prompt& prompt) {
  prompt.input_ids = object.at("input_ids").get<std::vector<std::int64_t>>();
  prompt.loss_mask.assign(prompt.input_ids.size(), 1);
  if (object.contains("loss_mask")) prompt.loss_mask = object["loss_mask"].get<std::vector<std::int64_t>>();
  if (prompt.loss_mask.size() != prompt.input_ids.size()) {
    throw InvalidArgument(
        fmt::format("loss_mask has {} entries for {} input_ids", prompt.loss_mask.size(), prompt.input_ids.size()));
  }
  for (const std::int64_t value : prompt.loss_mask) {
    if (value != 0 && value != 1) throw InvalidArgument(fmt::format("loss_mask holds {}: 0 and 1 are allowed", value));
  }
}

void read_json_line(std::string_view line, const Tokenizer& tokenizer, Prompt& prompt) {
  if (const std::size_t bad = find_invalid_utf8(line); bad != std::string_view::npos) {
    throw InvalidArgument(fmt::format("it is not UTF-8 at byte {}", bad));
  }
  const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) throw InvalidArgument("it is not a JSON object");
  if (object.contains("input_ids")) return read_ids(object, prompt);
  if (!object.contains("text") || !object["text"].is_string()) {
    throw InvalidArgument("it has neither a string 'text' nor 'input_ids'");
  }
  prompt.text = object["text"].get<std::string>();
  prompt.input_ids = tokenizer.encode(prompt.text);
}

void check_tokens(const Prompt& prompt, std::int64_t max_tokens, std::int64_t vocab_size) {
  const auto count = static_cast<std::int64_t>(prompt.input_ids.size());
  if (count < 2 || count > max_tokens) {
    throw InvalidArgument(fmt::format("it has {} tokens: 2 to {} are allowed", count, max_tokens));
  }
  for (const std::int64_t id : prompt.input_ids) {
    if (id < 0 || id >= vocab_size) throw InvalidArgument(fmt::format("token {} is outside 0 to {}", id, vocab_size - 1));
  }
}

}  // namespace

std::vector<Prompt> read_prompts(const std::filesystem::path& file, const Tokenizer& tokenizer, std::int64_t max_tokens,
                                 std::int64_t vocab_size) {
  const std::string text = read_text_file(file);
  const bool json = file.extension() == ".jsonl";
  std::vector<Prompt> prompts;
  std::int64_t number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) end = text.size();
    std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.find_first_not_of(" \t") == std::string_view::npos) continue;
    Prompt prompt{.line = number};
    try {
      if (line.size() > kMaxLineBytes) {
        throw InvalidArgument(fmt::format("it has {} bytes: at most {} are allowed", line.size(), kMaxLineBytes));
      }
      if (json) {
        read_json_line(line, tokenizer, prompt);
      } else {
        prompt.text = line;
        prompt.input_ids = tokenizer.encode(line);
      }
      if (prompt.loss_mask.empty()) prompt.loss_mask.assign(prompt.input_ids.size(), 1);
      check_tokens(prompt, max_tokens, vocab_size);
    } catch (const std::exception& error) {
      prompt = Prompt{.line = number};
      prompt.error = fmt::format("{} line {}: {}", file.filename().string(), number, error.what());
    }
    prompts.push_back(std::move(prompt));
  }
  if (prompts.empty()) throw InvalidArgument(fmt::format("{} holds no prompt: every line is blank", file.string()));
  return prompts;
}

}  // namespace draftflow
