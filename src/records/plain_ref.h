// SPDX-License-Identifier: Apache-2.0
//
// The short way to and from a ref's JSON, for texts as this program writes them: fields in their order, no spaces, nothing
// escaped, whole numbers, flat values. A queue hands out tens of thousands of refs a second, and a JSON library takes twenty
// times as long for each. Whatever is not so plain is left to the library (sample_ref.cc): here it is nullopt, never an error.
// What comes out is the same either way, to the byte. Private to this room.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "draftflow/records/sample_ref.h"

namespace draftflow::records {

std::optional<std::string> write_plain_ref(const SampleRef& ref);
std::optional<SampleRef> read_plain_ref(std::string_view text);

// The long way, for every ref and every text; tests compare.
std::string write_any_ref(const SampleRef& ref);
SampleRef read_any_ref(std::string_view text);

}  // namespace draftflow::records
