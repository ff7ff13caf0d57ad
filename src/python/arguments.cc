// SPDX-License-Identifier: Apache-2.0
#include "python/arguments.h"

#include <fmt/format.h>

#include <algorithm>

namespace draftflow::python {

Signature::Signature(const char* method, std::initializer_list<const char*> names, std::size_t by_place, std::size_t required)
    : method_(method), count_(names.size()), by_place_(by_place), required_(required) {
  std::size_t place = 0;
  for (const char* name : names) names_.at(place++) = PyUnicode_InternFromString(name);
}

Arguments::Arguments(const Signature& signature, PyObject* const* given, std::size_t count, PyObject* names)
    : signature_(signature) {
  if (count > signature.by_place_) {
    throw py::type_error(
        fmt::format("{}() takes {} arguments without a name: {} were given", signature.method_, signature.by_place_, count));
  }
  std::copy(given, given + count, given_.begin());
  const std::size_t named = names == nullptr ? 0 : static_cast<std::size_t>(PyTuple_GET_SIZE(names));
  for (std::size_t i = 0; i < named; ++i) {
    const std::size_t place = place_of(PyTuple_GET_ITEM(names, i));
    if (given_[place] != nullptr) {
      throw py::type_error(fmt::format("{}() got {} twice", signature.method_, PyUnicode_AsUTF8(signature.names_[place])));
    }
    given_[place] = given[count + i];
  }
  for (std::size_t i = 0; i < signature.required_; ++i) {
    if (given_[i] == nullptr) {
      throw py::type_error(fmt::format("{}() needs {}", signature.method_, PyUnicode_AsUTF8(signature.names_[i])));
    }
  }
}

std::size_t Arguments::place_of(PyObject* name) const {
  for (std::size_t i = 0; i < signature_.count_; ++i) {
    if (signature_.names_[i] == name) return i;  // a name in a program's text is interned
  }
  for (std::size_t i = 0; i < signature_.count_; ++i) {
    if (PyUnicode_Compare(signature_.names_[i], name) == 0) return i;
  }
  throw py::type_error(fmt::format("{}() has no argument {}", signature_.method_, py::repr(name).cast<std::string>()));
}

void Arguments::refuse(std::size_t place, const char* taken) const {
  throw py::type_error(fmt::format("{}(): {} is a {}: {} is taken", signature_.method_,
                                   PyUnicode_AsUTF8(signature_.names_[place]), Py_TYPE((*this)[place].ptr())->tp_name, taken));
}

std::string Arguments::text(std::size_t place, const char* otherwise) const {
  if (given_[place] == nullptr) return otherwise;
  if (PyUnicode_Check(given_[place]) == 0) refuse(place, "a str");
  return text_from(given_[place]);
}

std::optional<std::string> Arguments::optional_text(std::size_t place) const {
  if ((*this)[place].is_none()) return std::nullopt;
  return text(place);
}

py::dict Arguments::dict(std::size_t place) const {
  if (PyDict_Check((*this)[place].ptr()) == 0) refuse(place, "a dict");
  return py::reinterpret_borrow<py::dict>((*this)[place]);
}

bool Arguments::flag(std::size_t place, bool otherwise) const {
  if (given_[place] == nullptr) return otherwise;
  const int truth = PyObject_IsTrue(given_[place]);
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

void add_method(const py::object& type, PyMethodDef* method) {
  const auto made = py::reinterpret_steal<py::object>(PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(type.ptr()), method));
  if (!made) throw py::error_already_set();
  type.attr(method->ml_name) = made;
}

}  // namespace draftflow::python
