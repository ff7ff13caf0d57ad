// SPDX-License-Identifier: Apache-2.0
//
// What SQLite must not take over a fork. It keeps the locks that the process has on a database in the process's memory, found
// by the file's number; a forked child inherits that list but none of the locks, believes that it has them, and the parent, the
// last one as far as the kernel knows, removes the log that the child writes to. So a child sees its parent's databases under
// other numbers, and locks them anew. A connection itself must not be used, or closed, on the other side of a fork. Of a
// descriptor with locks of its own a child would keep the locks when its parent has died: there it is one of /dev/null.
// Thread-safe.
#pragma once

#include <filesystem>
#include <utility>

namespace draftflow::sqlite {

// Before a database is opened: from a later fork on, the child's connections to it have nothing of this process's.
void open_anew_after_forks(const std::filesystem::path& database);

// A descriptor that no fork shares, or none.
class UnsharedFd {
 public:
  UnsharedFd() = default;
  UnsharedFd(const std::filesystem::path& file, int flags);  // as open(2); none, with errno, if that fails
  UnsharedFd(UnsharedFd&& other) noexcept : fd_(other.release()) {}
  UnsharedFd& operator=(UnsharedFd&& other) noexcept {
    close(std::exchange(fd_, other.release()));
    return *this;
  }
  ~UnsharedFd() { close(fd_); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() noexcept { return std::exchange(fd_, -1); }  // to be closed by close()
  static void close(int fd) noexcept;

 private:
  int fd_ = -1;
};

}  // namespace draftflow::sqlite
