// SPDX-License-Identifier: Apache-2.0
#include "python/json.h"

#include <fmt/format.h>

#include "draftflow/base/text.h"

namespace draftflow::python {
namespace {

// Kept for the process's life, as all Python objects here.
const py::object& json_function(const char* name) {
  // Not made by a static's initialiser: an import lets Python's lock go, which another thread would then hold at the guard.
  static const py::object *dumps = nullptr, *loads = nullptr;  // guarded by Python's lock
  const py::object*& kept = name[0] == 'd' ? dumps : loads;
  if (kept == nullptr) kept = new py::object(py::module_::import("json").attr(name));
  return *kept;
}

}  // namespace

std::string to_json(py::handle value, std::string_view what) {
  if (value.is_none()) return "null";
  if (value.ptr() == Py_True) return "true";
  if (value.ptr() == Py_False) return "false";
  try {
    if (PyLong_CheckExact(value.ptr()) != 0) return py::str(value);
    return json_function("dumps")(value, py::arg("allow_nan") = false).cast<std::string>();
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError) && !error.matches(PyExc_ValueError)) throw;
    throw py::type_error(fmt::format("{} is no JSON value ({}): strings, numbers, bools, None, lists and dicts of them are",
                                     printable(std::string(what), 80), py::str(error.value()).cast<std::string>()));
  }
}

py::object from_json(const std::string& text) {
  if (text == "null") return py::none();
  return json_function("loads")(text);
}

JsonMembers members_from(const py::dict& values, std::string_view what) {
  JsonMembers members;
  members.reserve(values.size());
  for (const auto& [key, value] : values) {
    if (!py::isinstance<py::str>(key)) throw py::type_error(fmt::format("{}: its names are strings", what));
    auto name = key.cast<std::string>();
    std::string text = to_json(value, fmt::format("{}['{}']", what, name));
    members.emplace_back(std::move(name), std::move(text));
  }
  return members;
}

py::dict members_to(const JsonMembers& members) {
  py::dict made;
  for (const auto& [name, text] : members) made[py::str(name)] = from_json(text);
  return made;
}

}  // namespace draftflow::python
