// SPDX-License-Identifier: Apache-2.0
#include "ledger/sql/ref_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <utility>

#include "draftflow/base/error.h"

namespace draftflow::sql {
namespace {

// Control characters, which JSON has only escaped.
constexpr char kId = '\1', kTokens = '\2', kBytes = '\3', kGeneration = '\4';

bool is_plain(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c < 127 && c != '"' && c != '\\'; });
}

std::string escaped(std::string_view text) {
  if (is_plain(text)) return std::string(text);
  const std::string quoted = nlohmann::json(text).dump();
  return quoted.substr(1, quoted.size() - 2);
}

bool begins_value(char c) {
  return c == '"' || c == '-' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= kId && c <= kGeneration);
}

bool ends_value(std::string_view json, std::size_t at) {
  return at >= json.size() || std::string_view(",:]}[{\"").find(json[at]) != std::string_view::npos;
}

// Where the value at `at` ends; `at` itself if there is none.
std::size_t end_of_value(std::string_view json, std::size_t at) {
  if (at >= json.size() || !begins_value(json[at])) return at;
  std::size_t end = at + 1;
  if (json[at] != '"') {
    while (!ends_value(json, end)) ++end;
    return end;
  }
  for (; end < json.size(); ++end) {
    if (json[end] == '"') return end + 1;
    if (json[end] == '\\') ++end;
  }
  return at;  // no end
}

// Where the list at `at` ends; `at` itself if none begins there, or it has no end.
std::size_t end_of_list(std::string_view json, std::size_t at) {
  if (at >= json.size() || json[at] != '[') return at;
  int depth = 0;
  for (std::size_t end = at; end < json.size(); ++end) {
    const char c = json[end];
    if (c == '"') {
      const std::size_t after = end_of_value(json, end);
      if (after == end) return at;
      end = after - 1;
    } else if (c == '[' || c == '{') {
      ++depth;
    } else if ((c == ']' || c == '}') && --depth == 0) {
      return end + 1;
    }
  }
  return at;
}

bool is_at(std::string_view json, std::size_t at, std::string_view text) {
  return at + text.size() <= json.size() && json.compare(at, text.size(), text) == 0;
}

const std::string& column_of(char mark, const RefColumns& columns) {
  return mark == kTokens ? columns.tokens : mark == kBytes ? columns.bytes : columns.generation;
}

// What a template has in the place of a value that stands under `key`.
std::string with_holes(std::string_view value, std::string_view key, const RefColumns& columns) {
  if ((key == "\"num_tokens\"" || key == "\"shape\"") && value == columns.tokens) return {kTokens};
  if (key == "\"estimated_bytes\"" && value == columns.bytes) return {kBytes};
  if (key == "\"generation\"" && value == columns.generation) return {kGeneration};
  std::string text(value);
  if (!value.starts_with('"') || columns.id.empty()) return text;
  // Not with the closing quote, which an id may end in.
  for (std::size_t at = 1; (at = text.find(columns.id, at)) != std::string::npos; ++at) {
    if (at + columns.id.size() >= text.size()) break;
    text.replace(at, columns.id.size(), 1, kId);
  }
  return text;
}

}  // namespace

RefColumns::RefColumns(const SampleRef& ref)
    : RefColumns(ref.sample_id.str(), static_cast<std::int64_t>(ref.generation), static_cast<std::int64_t>(ref.estimated_bytes),
                 ref.num_tokens) {}

RefColumns::RefColumns(std::string_view sample_id, std::int64_t of_generation, std::int64_t of_bytes, std::int64_t of_tokens)
    : id(escaped(sample_id)),
      generation(std::to_string(of_generation)),
      bytes(std::to_string(of_bytes)),
      tokens(std::to_string(of_tokens)) {}

RefTemplate::RefTemplate(std::string text) : text_(std::move(text)) {
  std::size_t from = 0;
  for (std::size_t at = 0; at < text_.size();) {
    // A list is one value, since its length may be another, but for a shape, whose extents are known.
    const bool shape = !values_.empty() && values_.back().text == "\"shape\"";
    const std::size_t end = text_[at] == '[' && !shape ? end_of_list(text_, at) : end_of_value(text_, at);
    if (end == at) {
      if (text_[at] == '"') throw Corrupt("a template of refs ends within a string");
      ++at;
      continue;
    }
    values_.push_back(value_of(text_.substr(from, at - from), text_.substr(at, end - at)));
    from = at = end;
  }
  after_ = text_.substr(from);
}

RefTemplate::Value RefTemplate::value_of(std::string before, std::string text) {
  Value value{.before = std::move(before), .text = std::move(text), .mark = 0, .around = {}};
  if (value.text.size() == 1 && value.text[0] >= kTokens && value.text[0] <= kGeneration) value.mark = value.text[0];
  std::size_t from = 0;
  for (std::size_t hole = 0; (hole = value.text.find(kId, from)) != std::string::npos; from = hole + 1) {
    value.mark = kId;
    value.around.push_back(value.text.substr(from, hole - from));
  }
  if (value.mark == kId) value.around.push_back(value.text.substr(from));
  return value;
}

// Where the value at `at` ends if it is the template's, else 0.
std::size_t RefTemplate::match(std::string_view json, std::size_t at, const Value& value, const RefColumns& columns) {
  const auto take = [&](std::string_view text) {
    if (!is_at(json, at, text)) return false;
    at += text.size();
    return true;
  };
  if (value.mark == kId) {
    if (!take(value.around[0])) return 0;
    for (std::size_t i = 1; i < value.around.size(); ++i) {
      if (!take(columns.id) || !take(value.around[i])) return 0;
    }
    return at;  // with a closing quote
  }
  if (!take(value.mark == 0 ? std::string_view(value.text) : column_of(value.mark, columns))) return 0;
  return value.text[0] == '"' || ends_value(json, at) ? at : 0;
}

RefTemplate RefTemplate::of(std::string_view json, const RefColumns& columns) {
  RefTemplate plain{std::string(json)};
  std::string text, key;
  for (std::size_t i = 0; i < plain.values_.size(); ++i) {
    const Value& value = plain.values_[i];
    if (i > 0 && value.before.starts_with(':')) key = plain.values_[i - 1].text;
    text.append(value.before).append(with_holes(value.text, key, columns));
  }
  return RefTemplate(text + plain.after_);
}

std::optional<std::string> RefTemplate::pack(std::string_view json, const RefColumns& columns) const {
  std::string packed;
  std::size_t at = 0;
  for (std::size_t i = 0; i < values_.size(); ++i) {
    const Value& value = values_[i];
    if (!is_at(json, at, value.before)) return std::nullopt;
    at += value.before.size();
    if (const std::size_t end = match(json, at, value, columns); end > 0) {
      at = end;
      continue;
    }
    const std::size_t end = json.substr(at, 1) == "[" ? end_of_list(json, at) : end_of_value(json, at);
    const std::string_view found = json.substr(at, end - at);
    if (found.empty() || found.find('\n') != std::string_view::npos) return std::nullopt;
    at += found.size();
    packed.append(packed.empty() ? "" : "\n").append(std::to_string(i)).append("=").append(found);
    if (packed.size() > json.size() / 2) return std::nullopt;
  }
  if (json.substr(at) != after_) return std::nullopt;
  return packed;
}

std::string RefTemplate::unpack(std::string_view packed, const RefColumns& columns) const {
  const auto misfit = [&] {
    return Corrupt(fmt::format("a packed ref is none of its template's: '{}'", packed.substr(0, 100)));
  };
  std::size_t next = values_.size();  // the value that is another
  std::string_view another, rest = packed;
  const auto take = [&] {
    next = values_.size();
    if (rest.empty()) return;
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    const auto [equals_sign, error] = std::from_chars(rest.data(), rest.data() + end, next);
    const std::string_view line = rest.substr(0, end);
    const auto digits = static_cast<std::size_t>(equals_sign - rest.data());
    if (error != std::errc{} || digits >= line.size() || line[digits] != '=' || next >= values_.size()) throw misfit();
    another = line.substr(digits + 1);
    rest.remove_prefix(std::min(end + 1, rest.size()));
  };
  std::string json;
  json.reserve(text_.size() + 512);
  take();
  for (std::size_t i = 0; i < values_.size(); ++i) {
    const Value& value = values_[i];
    json += value.before;
    if (i == next) {
      json += another;
      take();
      if (next <= i) throw misfit();
    } else if (value.mark == kId) {
      json += value.around[0];
      for (std::size_t part = 1; part < value.around.size(); ++part) json.append(columns.id).append(value.around[part]);
    } else {
      json += value.mark == 0 ? value.text : column_of(value.mark, columns);
    }
  }
  return json + after_;
}

std::optional<RefTemplates::Packed> RefTemplates::pack(const std::string& json, const RefColumns& columns, std::size_t tried) {
  const std::size_t count = known_.size() + made_.size();
  if (json.size() > kLargest) return std::nullopt;
  for (std::size_t i = 0; tried + i < count; ++i) {
    const std::size_t at = last_ < tried ? tried + i : tried + (last_ - tried + i) % (count - tried);
    const RefTemplate& one = at < known_.size() ? known_[at] : made_[at - known_.size()];
    if (auto packed = one.pack(json, columns)) {
      last_ = at;
      return Packed{static_cast<std::int64_t>(at) + 1, std::move(*packed)};
    }
  }
  return std::nullopt;
}

std::string RefTemplates::unpack(std::int64_t number, const std::string& text, const RefColumns& columns) {
  if (number == 0) return text;
  const auto at = static_cast<std::size_t>(number) - 1;
  if (at >= known_.size() + made_.size() && made_.empty()) read_more();
  if (at < known_.size()) return known_[at].unpack(text, columns);
  if (at - known_.size() < made_.size()) return made_[at - known_.size()].unpack(text, columns);
  throw Corrupt(fmt::format("ledger {} has lost template {} of its refs", db_.name(), number));
}

RefTemplates::Packed RefTemplates::Making::pack(const std::string& json, const RefColumns& columns, std::size_t tried) {
  if (!std::exchange(read_, true)) templates_.read_more();
  if (auto packed = templates_.pack(json, columns, tried)) return std::move(*packed);
  const std::size_t count = templates_.known_.size() + templates_.made_.size();
  if (count >= kMost || json.size() > kLargest) return {0, json};
  std::optional<RefTemplate> made;
  std::optional<std::string> packed;
  try {
    made = RefTemplate::of(json, columns);
    packed = made->pack(json, columns);
    if (!packed || made->unpack(*packed, columns) != json) return {0, json};
  } catch (const Corrupt&) {  // an id and a text that cannot be told apart
    return {0, json};
  }
  const auto number = static_cast<std::int64_t>(count) + 1;
  templates_.db_.run("INSERT INTO ref_template(number, text) VALUES (?1, ?2)", number, made->text());
  templates_.made_.push_back(std::move(*made));
  return {number, *packed};
}

void RefTemplates::read_more() {
  Query more = db_.query("SELECT number, text FROM ref_template WHERE number > ?1 ORDER BY number", known_.size());
  while (more.step()) {
    if (more.integer(0) != static_cast<std::int64_t>(known_.size()) + 1) {
      throw Corrupt(fmt::format("ledger {} has lost template {} of its refs", db_.name(), known_.size() + 1));
    }
    known_.emplace_back(more.text(1));
  }
}

}  // namespace draftflow::sql
