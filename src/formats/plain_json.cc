// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/plain_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace draftflow {

void append_json_text(std::string& json, std::string_view text) {
  const auto is_plain = [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\'; };
  if (!std::all_of(text.begin(), text.end(), is_plain)) {
    json += nlohmann::json(text).dump();
    return;
  }
  json += '"';
  json += text;
  json += '"';
}

void append_json_number(std::string& json, std::uint64_t number) {
  char digits[20];
  json.append(digits, std::to_chars(std::begin(digits), std::end(digits), number).ptr);
}

std::optional<std::string_view> PlainJson::text() {
  const auto ends = [](char c) { return c < 0x20 || c > 0x7e || c == '"' || c == '\\'; };
  const auto end = std::find_if(rest_.begin(), rest_.end(), ends);
  if (end == rest_.end() || *end != '"') return std::nullopt;
  const std::string_view found(rest_.begin(), end);
  rest_.remove_prefix(found.size() + 1);
  return found;
}

}  // namespace draftflow
