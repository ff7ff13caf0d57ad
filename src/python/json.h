// SPDX-License-Identifier: Apache-2.0
//
// Python values as JSON text and back, by Python's own json, so that a value comes back as it went. Called with Python's lock
// held. Private to this room.
#pragma once

#include <string>
#include <string_view>

#include "draftflow/records/sample_ref.h"
#include "python/bindings.h"

namespace draftflow::python {

std::string to_json(py::handle value, std::string_view what);  // TypeError naming `what` for a value that JSON has not
py::object from_json(const std::string& text);

JsonMembers members_from(const py::dict& values, std::string_view what);
py::dict members_to(const JsonMembers& members);

}  // namespace draftflow::python
