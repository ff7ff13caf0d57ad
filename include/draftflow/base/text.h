// SPDX-License-Identifier: Apache-2.0
//
// Text: UTF-8 checks and the way numbers are shown to people. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace draftflow {

// The offset of the first byte that is not well-formed UTF-8 (surrogates and overlong forms count as ill-formed), or npos.
std::size_t find_invalid_utf8(std::string_view text);

// Text as it may stand in a message or a terminal: control characters (those that reorder a
// line too) and invalid UTF-8 escaped as \xNN, cut to max_bytes.
std::string printable(std::string_view text, std::size_t max_bytes = 200);

std::string human_bytes(std::uint64_t bytes);  // "12.3 MiB"
std::string human_seconds(double seconds);     // "42 s", "3 min 05 s", "2 h 10 min"
std::string human_count(double value);         // "950", "12.3 k", "4.5 M"

}  // namespace draftflow
