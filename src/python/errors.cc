// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "python/bindings.h"

namespace draftflow::python {
namespace {

// draftflow._errors has a class for each kind, of the kind's name.
void raise(const Error& error) {
  const py::object errors = py::module_::import("draftflow._errors");
  const py::object type = errors.attr(error_kind_name(error.kind()));
  const std::string text = error.what();
  const auto message =
      py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
  PyErr_SetObject(type.ptr(), message.ptr());
}

}  // namespace

void check_signals() {
  if (_Py_IsFinalizing() != 0) return;
  const py::gil_scoped_acquire lock;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

std::string place_from(const py::object& place) {
  const auto path = py::reinterpret_steal<py::object>(PyOS_FSPath(place.ptr()));
  if (!path || !py::isinstance<py::str>(path)) {
    PyErr_Clear();
    throw py::type_error(fmt::format("url is a {}: a string or a path is taken",
                                     py::type::handle_of(place).attr("__name__").cast<std::string>()));
  }
  return path.cast<std::string>();
}

void throw_closed(const std::string& what) {
  throw InvalidArgument(fmt::format("{} was closed: open it again", what));
}

void bind_errors(py::module_& /*module*/) {
  py::register_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const Error& error) {
      raise(error);
    }
  });
}

}  // namespace draftflow::python
