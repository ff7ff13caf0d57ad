// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/error.h"

#include <cerrno>
#include <system_error>

namespace draftflow {

const char* error_kind_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidArgument: return "InvalidArgument";
    case ErrorKind::kNotFound: return "NotFound";
    case ErrorKind::kPermissionDenied: return "PermissionDenied";
    case ErrorKind::kExhausted: return "Exhausted";
    case ErrorKind::kConflict: return "Conflict";
    case ErrorKind::kCorrupt: return "Corrupt";
    case ErrorKind::kUnavailable: return "Unavailable";
    case ErrorKind::kInDoubt: return "InDoubt";
  }
  return "unknown";
}

int exit_code(ErrorKind kind) {
  return 2 + static_cast<int>(kind);
}

void throw_errno(int error_number, const std::string& what) {
  const std::string message = what + ": " + std::generic_category().message(error_number);
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case ENOMEM: throw Exhausted(message);
    case EACCES:
    case EPERM:
    case EROFS: throw PermissionDenied(message);
    case ENOENT: throw NotFound(message);
    default: throw Unavailable(message);
  }
}

}  // namespace draftflow
