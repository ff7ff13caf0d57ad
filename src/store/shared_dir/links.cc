// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/links.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"
#include "store/shared_dir/forks.h"
#include "store/shared_dir/generation_file.h"
#include "store/shared_dir/torch_generation.h"

namespace draftflow::store {

InodeLock::InodeLock(int fd, Mode mode, bool local, const std::string& path) {
  if (!local) return;
  const int operation = mode == Mode::kShared ? LOCK_SH : LOCK_EX;
  close_in_children(fd);
  // Short sleeps, longer and longer: 10 seconds in all.
  for (std::int64_t sleep_us = 1, slept_us = 0;;) {
    if (::flock(fd, operation | LOCK_NB) == 0) break;
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK || slept_us > 10'000'000) {
      keep_in_children(fd);
      if (errno != EWOULDBLOCK) throw_errno(errno, "locking " + path);
      throw Unavailable(path + " has been locked for 10 seconds: a process that uses it may be stopped; retry");
    }
    const timespec pause{0, static_cast<long>(sleep_us * 1000)};
    ::nanosleep(&pause, nullptr);
    if (sleep_us >= 1000) {
      try {
        check_interrupt();
      } catch (...) {
        keep_in_children(fd);
        throw;
      }
    }
    slept_us += sleep_us;
    sleep_us = std::min<std::int64_t>(2 * sleep_us, 10'000);
  }
  fd_ = fd;
}

InodeLock::~InodeLock() {
  if (fd_ < 0) return;
  ::flock(fd_, LOCK_UN);
  keep_in_children(fd_);
}

Weight weigh(int fd, const std::string& path) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw_errno(errno, "fstat of " + path);
  const auto whole = static_cast<std::uint64_t>(status.st_size);
  std::uint64_t bytes = tensor_bytes_of_file(fd, whole);
  if (bytes == whole) {  // no safetensors header: torch's zip, or damaged
    if (const auto facts = find_torch_facts(fd, path)) bytes = facts->tensor_bytes;
  }
  return {bytes, status.st_mtim.tv_sec};
}

Dropped drop_name_locked(const Folder& folder, const std::string& name, int fd, std::size_t fan_out, const Books& books) {
  const std::string path = folder.shown(name);
  const Account::Change change(books.account, fan_out);
  Dropped dropped{.was_there = folder.unlink(name)};
  if (!dropped.was_there) return dropped;
  try {
    if (link_count(fd, path) > 0) return dropped;
    const Weight weight = weigh(fd, path);
    dropped.was_last = true;
    dropped.bytes = weight.bytes;
    books.account.subtract(fan_out, weight.bytes, weight.birth_seconds);
    books.account.count_freed(weight.bytes);
  } catch (const Error&) {  // the name is gone, and that counts; the account stays too high until gc recounts
  }
  return dropped;
}

}  // namespace draftflow::store
