// SPDX-License-Identifier: Apache-2.0
//
// The errors draftflow raises: few, each one a different thing for the caller to do.
//
//   InvalidArgument   the call or the configuration is wrong: change it
//   NotFound          freed, superseded or never written: go on without it
//   PermissionDenied  a secret or a mode is missing
//   Exhausted         a cap or the disk is full: slow down, then retry
//   Conflict          the lease or the timeline was lost: start again from the ledger
//   Corrupt           the bytes are not what was written: never use them
//   Unavailable       a passing failure: retry
//   InDoubt           the outcome is unknown: ask before retrying
//
// A message names the object, what was found, what is allowed and what to do next. Normal outcomes (timed out, paused,
// end of stream) are values, not exceptions. Thread safety: plain values.
//
//   throw NotFound("sample 'a' generation 3 is not in store 'st': it was freed; ask the ledger for a current ref");
#pragma once

#include <stdexcept>
#include <string>

namespace draftflow {

enum class ErrorKind {
  kInvalidArgument,
  kNotFound,
  kPermissionDenied,
  kExhausted,
  kConflict,
  kCorrupt,
  kUnavailable,
  kInDoubt,
};

// The kind's name as people read it: "InvalidArgument".
const char* error_kind_name(ErrorKind kind);

// The process exit code for an error of this kind: 2 for InvalidArgument, then 3 to 9 in the order above. 1 is a bug of
// ours or an unknown exception; 130 a stop by signal.
int exit_code(ErrorKind kind);

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

template <ErrorKind K>
class ErrorOf : public Error {
 public:
  explicit ErrorOf(const std::string& message) : Error(K, message) {}
};

using InvalidArgument = ErrorOf<ErrorKind::kInvalidArgument>;
using NotFound = ErrorOf<ErrorKind::kNotFound>;
using PermissionDenied = ErrorOf<ErrorKind::kPermissionDenied>;
using Exhausted = ErrorOf<ErrorKind::kExhausted>;
using Conflict = ErrorOf<ErrorKind::kConflict>;
using Corrupt = ErrorOf<ErrorKind::kCorrupt>;
using Unavailable = ErrorOf<ErrorKind::kUnavailable>;
using InDoubt = ErrorOf<ErrorKind::kInDoubt>;

// Throws the kind that fits an errno: ENOSPC, EDQUOT, EMFILE and ENOMEM are Exhausted, EACCES and EPERM PermissionDenied,
// ENOENT NotFound, anything else Unavailable. The message reads "<what>: <strerror>".
[[noreturn]] void throw_errno(int error_number, const std::string& what);

}  // namespace draftflow
