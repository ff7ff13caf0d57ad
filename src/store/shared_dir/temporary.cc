// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/temporary.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <span>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "store/shared_dir/forks.h"

namespace draftflow::store {
namespace {

constexpr std::string_view kSuffix = ".tmp";
constexpr std::size_t kNameDigits = 32;

struct stat status_of(int fd, const std::string& path) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw_errno(errno, "fstat of " + path);
  return status;
}

bool lock(int fd, int operation) {
  while (::flock(fd, operation) != 0) {
    if (errno != EINTR) return false;
  }
  return true;
}

bool is_temporary_name(std::string_view name) {
  return name.size() == kNameDigits + kSuffix.size() && name.ends_with(kSuffix) &&
         name.substr(0, kNameDigits).find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

}  // namespace

Temporary::Temporary(const Folder& folder) : folder_(folder) {
  constexpr int kTries = 100;  // each failure means that gc came between creating and locking
  for (int i = 0; i < kTries; ++i) {
    name_ = random_hex128() + std::string(kSuffix);
    fd_ = folder_.open_file(name_, O_RDWR | O_CREAT | O_EXCL);
    close_in_children(fd_.get());
    try {
      lock(fd_.get(), LOCK_EX);  // a file system without locks is one where gc goes by age
      if (status_of(fd_.get(), path()).st_nlink > 0) return;
    } catch (...) {
      keep_in_children(fd_.get());
      ::unlinkat(folder_.fd(), name_.c_str(), 0);
      throw;
    }
    keep_in_children(fd_.get());
  }
  throw Unavailable(fmt::format("{}: {} new temporaries were removed at once: retry", folder_.path(), kTries));
}

Temporary::~Temporary() {
  keep_in_children(fd_.get());
  if (!published_) ::unlinkat(folder_.fd(), name_.c_str(), 0);
}

std::int64_t Temporary::modified_seconds() const {
  return status_of(fd_.get(), path()).st_mtim.tv_sec;
}

void Temporary::check_mode() const {
  const mode_t folder = status_of(folder_.fd(), folder_.path()).st_mode, file = status_of(fd_.get(), path()).st_mode;
  if ((folder & S_IWGRP) == 0 || (file & S_IWGRP) != 0) return;
  throw PermissionDenied(
      fmt::format("{} is writable to its group, but what this process writes there is not (mode {:04o}): others in the group "
                  "could not lease it; start with umask 007, or take the group's right away from the store's folders",
                  folder_.path(), file & 07777));
}

void Temporary::sync() {
  if (::fsync(fd_.get()) != 0) throw_errno(errno, "fsync of " + path());
}

void Temporary::check_close() {
  // Closing any descriptor of the file flushes it on NFS and reports its errors; closing ours would drop the lock.
  UniqueFd copy(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy) throw_errno(errno, "duplicating the descriptor of " + path());
  copy.close_checked(path());
}

Published Temporary::publish(const Folder& to, const std::string& name) {
  const Published result = store::publish(folder_, name_, fd_.get(), to, name);
  published_ = result == Published::kDone;
  if (published_) lock(fd_.get(), LOCK_UN);  // from now on the lock is that of whoever counts its names
  return result;
}

Published publish_text(const Folder& temporaries, const Folder& to, const std::string& name, std::string_view text) {
  Temporary temporary(temporaries);
  write_all(temporary.fd(), std::as_bytes(std::span(text)), temporary.path());
  temporary.sync();
  const Published published = temporary.publish(to, name);
  if (published != Published::kFolderGone) to.sync();
  return published;
}

std::int64_t modified_ms(int fd, const std::string& path) {
  struct statx status {};
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_MTIME, &status) != 0) {
    throw_errno(errno, "statx of " + path);
  }
  return status.stx_mtime.tv_sec * 1000 + status.stx_mtime.tv_nsec / 1'000'000;
}

std::int64_t server_time_ms(const Folder& folder) {
  const Temporary probe(folder);
  const char byte = 0;  // a time of creation may be the client's
  if (::pwrite(probe.fd(), &byte, 1, 0) != 1 || ::fsync(probe.fd()) != 0) throw_errno(errno, "writing " + probe.path());
  return modified_ms(probe.fd(), probe.path());
}

Cleared clear_orphans(const Folder& folder) {
  Cleared cleared;
  const bool by_age = on_network_file_system(folder);
  const std::int64_t now = by_age ? server_time_ms(folder) : 0;
  for (const std::string& name : folder.list()) {
    if (!is_temporary_name(name)) continue;
    UniqueFd fd(::openat(folder.fd(), name.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!fd) continue;  // gone, or not ours to open
    const struct stat status = status_of(fd.get(), folder.shown(name));
    if (!S_ISREG(status.st_mode) || (by_age && now - modified_ms(fd.get(), folder.shown(name)) < kNetworkOrphanMs)) continue;
    if (!lock(fd.get(), LOCK_EX | LOCK_NB)) continue;
    if (folder.unlink(name)) {
      ++cleared.files;
      cleared.bytes += status.st_nlink == 1 ? static_cast<std::uint64_t>(status.st_size) : 0;
    }
  }
  return cleared;
}

}  // namespace draftflow::store
