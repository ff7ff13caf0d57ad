// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <unistd.h>

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

// A Python thread's state counts as its own while the lock is gone, so that the lock can be taken for the check.
void check_signals() {
  const py::gil_scoped_acquire lock;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

bool is_main_thread() {
  return ::gettid() == ::getpid();
}

}  // namespace

Unlocked::Unlocked() : ending_(_Py_IsFinalizing() != 0), state_(PyEval_SaveThread()) {
  if (!ending_ && is_main_thread()) scope_.emplace(check_signals);
}

Unlocked::~Unlocked() noexcept(false) {
  scope_.reset();
  while (!ending_ && _Py_IsFinalizing() != 0) ::pause();
  PyEval_RestoreThread(state_);
}

std::unique_lock<std::timed_mutex> take_turn(std::timed_mutex& mutex) {
  std::unique_lock turn(mutex, std::defer_lock);
  while (!turn.try_lock_for(kInterruptEvery)) check_interrupt();
  return turn;
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
