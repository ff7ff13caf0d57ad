// SPDX-License-Identifier: Apache-2.0
#include "formats/plain_header.h"

#include <algorithm>

#include "draftflow/formats/plain_json.h"
#include "formats/safetensors_codes.h"

namespace draftflow::formats {
namespace {

constexpr std::size_t kMaxBytes = 8 << 10;  // names are compared each with each

// From the first key on, whose quote is taken, to the brace that ends the object, and past that.
bool take_metadata(PlainJson& json, std::vector<std::pair<std::string, std::string>>& into) {
  do {
    const auto key = json.text();
    if (!key || !json.take(":\"")) return false;
    const auto value = json.text();
    if (!value || std::any_of(into.begin(), into.end(), [&](const auto& known) { return known.first == *key; })) return false;
    into.emplace_back(*key, *value);
  } while (json.take(",\""));
  return json.take("}");
}

bool take_shape(PlainJson& json, std::vector<std::int64_t>& into) {
  if (json.take("]")) return true;
  do {
    if (!json.number(into.emplace_back())) return false;
  } while (json.take(","));
  return json.take("]");
}

// To the brace that ends the header, and past that.
bool take_entries(PlainJson& json, std::vector<SafetensorsEntry>& into) {
  do {
    if (!json.take("\"")) return false;
    const auto name = json.text();
    if (!name || *name == kMetadataName || !json.take(":{\"dtype\":\"")) return false;
    if (std::any_of(into.begin(), into.end(), [&](const auto& known) { return known.name == *name; })) return false;
    const auto code = json.text();
    const auto dtype = code ? dtype_of_code(*code) : std::nullopt;
    if (!dtype) return false;
    SafetensorsEntry& entry = into.emplace_back(SafetensorsEntry{.name = std::string(*name), .dtype = *dtype});
    if (!json.take(",\"shape\":[") || !take_shape(json, entry.shape)) return false;
    if (!json.take(",\"data_offsets\":[") || !json.number(entry.begin)) return false;
    if (!json.take(",") || !json.number(entry.end) || !json.take("]}")) return false;
  } while (json.take(","));
  return json.take("}");
}

}  // namespace

std::optional<SafetensorsHeader> scan_plain_header(std::string_view text) {
  PlainJson json(text);
  SafetensorsHeader header;
  if (text.size() > kMaxBytes || !json.take("{")) return std::nullopt;
  const bool described = json.take("\"__metadata__\":{\"");
  if (described && !take_metadata(json, header.metadata)) return std::nullopt;
  const bool ends = described && json.take("}");
  if (described && !ends && !json.take(",")) return std::nullopt;
  if (!ends && !take_entries(json, header.entries)) return std::nullopt;
  return json.rest().find_first_not_of(' ') == std::string_view::npos ? std::optional(std::move(header)) : std::nullopt;
}

}  // namespace draftflow::formats
