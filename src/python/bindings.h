// SPDX-License-Identifier: Apache-2.0
//
// The Python module draftflow._core: each file binds one room's public header, and says nothing that the header does not. What
// is Python's own (contexts, datasets, hooks) is written in Python, in python/draftflow. Python's lock is let go around every
// call that waits or moves bytes. Private to this room.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "draftflow/base/interrupt.h"

// A str alone: pybind11's own takes bytes, too, and an id of bytes would name another sample than the str that it shows.
template <>
struct pybind11::detail::type_caster<std::string> {
  PYBIND11_TYPE_CASTER(std::string, const_name("str"));

  bool load(handle source, bool /*convert*/) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_Check(source.ptr()) != 0 ? PyUnicode_AsUTF8AndSize(source.ptr(), &size) : nullptr;
    if (text == nullptr) {
      PyErr_Clear();  // a lone surrogate
      return false;
    }
    value.assign(text, static_cast<std::size_t>(size));
    return true;
  }
  static handle cast(const std::string& text, return_value_policy /*policy*/, handle /*parent*/) {
    PyObject* made = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr);
    if (made == nullptr) throw error_already_set();
    return made;
  }
};

namespace draftflow::python {

namespace py = pybind11;

void bind_errors(py::module_& module);
void bind_tensors(py::module_& module);
void bind_records(py::module_& module);
void bind_store(py::module_& module);
void bind_ledger(py::module_& module);
void bind_flow(py::module_& module);
void bind_loader(py::module_& module);
void bind_formats(py::module_& module);
void bind_bench(py::module_& module);
void bind_compat(py::module_& module);

// Makes what is being handled (`catch (...)`) Python's error, as pybind11 does around what it binds.
void raise_handled();

// The UTF-8 of a str. TypeError for anything else, and for text with a lone surrogate.
std::string text_from(py::handle text);

// What is asked of each tensor or ref, by a name that is made once. Python's error where there is none.
inline py::str interned(const char* name) {
  return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name));
}
inline py::object attribute(py::handle object, const py::str& name) {
  auto found = py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), name.ptr()));
  if (!found) throw py::error_already_set();
  return found;
}

// Raises what a signal handler of Python's raises (KeyboardInterrupt), in the main thread; called without Python's lock.
void check_signals();

// Takes Python's lock by `take`. While the interpreter ends Python ends the thread instead, through frames that cannot be
// unwound: such a thread, a daemon, stays here until the process is gone.
template <class Take>
void take_lock(Take take) {
  try {
    take();
  } catch (abi::__forced_unwind&) {
    while (true) ::pause();
  }
}

// Lets Python's lock go for its scope, in which a wait ends as soon as Python has a signal to handle.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked() {
    take_lock([&] { PyEval_RestoreThread(state_); });
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* const state_;
  const InterruptScope interruptible_{&check_signals};
};

// check_interrupt() for what is called very often: to ask Python takes its lock, for which another thread may let one wait.
class PacedCheck {
 public:
  void operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return;
    check_interrupt();
    next_ = now + kInterruptEvery;
  }

 private:
  std::chrono::steady_clock::time_point next_{};
};

// How often this process, or one that it descends from, was forked off: cheaper to ask than getpid, which asks the kernel.
unsigned long times_forked();

// A URL, or a path as os.PathLike (pathlib). TypeError for anything else.
std::string place_from(const py::object& place);

// InvalidArgument naming the object that was closed.
[[noreturn]] void throw_closed(const std::string& what);

// Something opened, which a forked child opens anew: what a parent has open (locks, connections, threads) cannot be shared.
// What was inherited is left as it is, since closing it would speak in the parent's name. Used with Python's lock held.
template <class T>
class PerProcess {
 public:
  using Open = std::function<std::shared_ptr<T>()>;

  PerProcess(std::string what, Open open) : what_(std::move(what)), open_(std::move(open)), opened_(open_()) {}
  // A forked child that lets go of it leaves it open, too.
  ~PerProcess() { leave_inherited(); }

  std::shared_ptr<T> get() {
    if (closed_) throw_closed(what_);
    leave_inherited();
    if (!opened_) opened_ = open_();  // also after a try that failed
    return opened_;
  }
  void close() {
    leave_inherited();
    closed_ = true;
    opened_.reset();
  }
  bool closed() const { return closed_; }
  const std::string& what() const { return what_; }

 private:
  void leave_inherited() {
    if (owner_ == times_forked()) return;
    owner_ = times_forked();
    if (opened_) new std::shared_ptr<T>(std::move(opened_));
  }

  std::string what_;
  Open open_;
  unsigned long owner_ = times_forked();
  std::shared_ptr<T> opened_;
  bool closed_ = false;
};

}  // namespace draftflow::python
