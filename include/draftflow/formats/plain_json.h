// SPDX-License-Identifier: Apache-2.0
//
// JSON as it is written here: compact, its fields in one order, its texts mostly ASCII. What small files say of themselves is
// put down and read back in a tenth of the time that a JSON library takes for any JSON; whoever reads so falls back on the
// library for text that stands otherwise. Thread-safe, one thread a reader.
//
//   PlainJson json(R"({"id":"s0","number":7})");
//   if (json.take(R"({"id":")")) { const auto id = json.text(); ... }
#pragma once

#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace draftflow {

void append_json_text(std::string& json, std::string_view text);  // in its quotes; UTF-8
void append_json_number(std::string& json, std::uint64_t number);

class PlainJson {
 public:
  explicit PlainJson(std::string_view json) : rest_(json) {}

  // Past the literal, if it comes next.
  bool take(std::string_view literal) {
    if (!rest_.starts_with(literal)) return false;
    rest_.remove_prefix(literal.size());
    return true;
  }

  // What stands before the next quote, and past that: printable ASCII without escapes, else nothing.
  std::optional<std::string_view> text();

  // A number without sign, fraction or leading zeros and of at most 18 digits; false for any other.
  template <class Number>
  bool number(Number& into) {
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), into);
    const auto digits = static_cast<std::size_t>(end - rest_.data());
    const bool plain = error == std::errc() && digits <= 18 && rest_[0] != '-' && (rest_[0] != '0' || digits == 1);
    if (plain) rest_.remove_prefix(digits);
    return plain;
  }

  std::string_view rest() const { return rest_; }

 private:
  std::string_view rest_;
};

}  // namespace draftflow
