// SPDX-License-Identifier: Apache-2.0
//
// Methods that Python calls for each sample, without pybind11's handling of arguments: between two calls the store's and the
// kernel's code push it out of the processor's caches, and there it costs several times what a loop over it shows. Called with
// Python's lock held. Private to this room.
//
//   struct Find {
//     static constexpr const char* kName = "find";
//     static constexpr const char* kDoc = "find(self: Store, sample_id: str, generation: Optional[int] = None) -> SampleRef";
//     static const Signature& signature() {
//       static const Signature made(kName, {"sample_id", "generation"}, 2, 1);
//       return made;
//     }
//     static py::object call(PyObject* self, const Arguments& given) { ... given.text(0) ... }
//   };
//   add_method<Find>(type);
#pragma once

#include <array>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "python/bindings.h"

namespace draftflow::python {

// The names of a method's arguments, without self. The first `by_place` may come without their names, the first `required`
// must come.
class Signature {
 public:
  Signature(const char* method, std::initializer_list<const char*> names, std::size_t by_place, std::size_t required);

 private:
  friend class Arguments;
  static constexpr std::size_t kMax = 12;

  const char* const method_;
  std::array<PyObject*, kMax> names_{};  // interned; kept for the process's life
  const std::size_t count_, by_place_, required_;
};

// What one call was given, by place in the signature. Borrowed from the caller.
class Arguments {
 public:
  // TypeError for an argument too many, given twice, missing or of an unknown name.
  Arguments(const Signature& signature, PyObject* const* given, std::size_t count, PyObject* names);

  py::handle operator[](std::size_t place) const { return given_[place] == nullptr ? Py_None : given_[place]; }
  // TypeError naming the argument for what is of another type.
  std::string text(std::size_t place, const char* otherwise = "") const;
  std::optional<std::string> optional_text(std::size_t place) const;  // none for None
  py::dict dict(std::size_t place) const;
  bool flag(std::size_t place, bool otherwise) const;
  // What pybind11 makes of it; TypeError.
  template <class T>
  T as(std::size_t place, const char* taken) const {
    try {
      return (*this)[place].template cast<T>();
    } catch (const py::cast_error&) {
      refuse(place, taken);
    } catch (const py::reference_cast_error&) {  // None
      refuse(place, taken);
    }
  }

 private:
  std::size_t place_of(PyObject* name) const;
  [[noreturn]] void refuse(std::size_t place, const char* taken) const;

  const Signature& signature_;
  std::array<PyObject*, Signature::kMax> given_{};
};

template <class Method>
PyObject* call_method(PyObject* self, PyObject* const* given, Py_ssize_t count, PyObject* names) {
  try {
    return Method::call(self, Arguments(Method::signature(), given, static_cast<std::size_t>(count), names)).release().ptr();
  } catch (...) {
    raise_handled();
    return nullptr;
  }
}

void add_method(const py::object& type, PyMethodDef* method);

template <class Method>
void add_method(const py::object& type) {
  static PyMethodDef method{Method::kName, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_method<Method>)),
                            METH_FASTCALL | METH_KEYWORDS, Method::kDoc};
  add_method(type, &method);
}

}  // namespace draftflow::python
