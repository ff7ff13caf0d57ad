// SPDX-License-Identifier: Apache-2.0
//
// Reading a record's JSON field by field with errors that name the record and the field. Private to this room.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "draftflow/base/error.h"
#include "draftflow/records/sample_ref.h"

namespace draftflow::records {

using Json = nlohmann::ordered_json;

inline Json parse_object(std::string_view what, std::string_view text) {
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) throw Corrupt(fmt::format("{} is not a JSON object", what));
  return value;
}

// Takes the field out of the object, so that what is left are the unknown ones.
inline Json take(Json& object, std::string_view what, const char* field) {
  const auto at = object.find(field);
  if (at == object.end()) throw Corrupt(fmt::format("{} has no field '{}'", what, field));
  Json value = std::move(*at);
  object.erase(at);
  return value;
}

template <class T>
T take_as(Json& object, std::string_view what, const char* field) {
  const Json value = take(object, what, field);
  try {
    return value.get<T>();
  } catch (const Json::exception& error) {
    throw Corrupt(fmt::format("{} field '{}' is {}: {}", what, field, value.dump().substr(0, 80), error.what()));
  }
}

inline std::optional<std::string> take_optional_string(Json& object, std::string_view what, const char* field) {
  const Json value = take(object, what, field);
  if (value.is_null()) return std::nullopt;
  if (!value.is_string()) throw Corrupt(fmt::format("{} field '{}' is neither a string nor null", what, field));
  return value.get<std::string>();
}

inline JsonMembers members_of(const Json& object) {
  JsonMembers members;
  for (const auto& [name, value] : object.items()) members.emplace_back(name, value.dump());
  return members;
}

inline void add_members(Json& object, const JsonMembers& members) {
  for (const auto& [name, text] : members) object[name] = Json::parse(text);
}

inline Json optional_string(const std::optional<std::string>& text) {
  return text ? Json(*text) : Json(nullptr);
}

}  // namespace draftflow::records
