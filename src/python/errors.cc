// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <pthread.h>

#include <atomic>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
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

// Of the thread in which Python handles signals; in a forked child that is the one that forked.
std::atomic<unsigned long> main_thread{0};
std::atomic<unsigned long> forks{0};

}  // namespace

void raise_handled() {
  try {
    throw;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::cast_error& error) {  // a value within a list or dict that is not of its kind
    PyErr_SetString(PyExc_TypeError, error.what());
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const Error& error) {
    raise(error);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

std::string text_from(py::handle text) {
  py::detail::make_caster<std::string> caster;
  if (!caster.load(text, false)) {
    throw py::type_error(fmt::format("{}: a str of valid UTF-8 is taken", printable(py::repr(text).cast<std::string>(), 80)));
  }
  return std::move(caster.operator std::string&());
}

unsigned long times_forked() {
  return forks;
}

void check_signals() {
  // Told without Python's lock: a daemon thread must not ask for that while the interpreter ends.
  if (PyThread_get_thread_ident() != main_thread || _Py_IsFinalizing() != 0) return;
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
  main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
  ::pthread_atfork(nullptr, nullptr, [] {
    main_thread = PyThread_get_thread_ident();
    ++forks;
  });
  py::register_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const Error& error) {
      raise(error);
    } catch (const py::cast_error& error) {  // a value within a list or dict that is not of its kind
      PyErr_SetString(PyExc_TypeError, error.what());
    }
  });
}

}  // namespace draftflow::python
