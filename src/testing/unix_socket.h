// SPDX-License-Identifier: Apache-2.0
//
// For tests only: a Unix socket, and the address of one that has a place in a folder. Any thread.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"

namespace draftflow::testing_support {

// InvalidArgument for a path that is too long: 107 bytes are allowed.
inline sockaddr_un unix_address(const std::filesystem::path& socket) {
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  if (socket.string().size() >= sizeof(address.sun_path)) throw InvalidArgument(socket.string() + " is too long for a socket");
  std::strncpy(address.sun_path, socket.c_str(), sizeof(address.sun_path) - 1);
  return address;
}

inline UniqueFd unix_socket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) throw_errno(errno, "making a socket");
  return fd;
}

}  // namespace draftflow::testing_support
