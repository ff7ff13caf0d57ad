// SPDX-License-Identifier: Apache-2.0
//
// The JSON of a small safetensors header, if it stands there as make_safetensors_header writes it: compact, fields in their
// order, ASCII without escapes, no name twice. Most headers do, and are read in a tenth of the time of a JSON parser. Private
// to this room. Thread-safe.
#pragma once

#include <optional>
#include <string_view>

#include "draftflow/formats/safetensors.h"

namespace draftflow::formats {

// As the JSON parser would give them, in the order of the text and not yet checked against the file; data_offset is 0. Nothing
// for any other header, which may be as good.
std::optional<SafetensorsHeader> scan_plain_header(std::string_view json);

}  // namespace draftflow::formats
