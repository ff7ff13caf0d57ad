// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <span>
#include <sstream>

#include "draftflow/base/error.h"

namespace draftflow::store {
namespace {

constexpr int kFolderFlags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;

int open_retrying(int dir, const char* name, int flags, unsigned mode = 0) {
  for (;;) {
    const int fd = ::openat(dir, name, flags, mode);
    if (fd >= 0 || errno != EINTR) return fd;
  }
}

bool same_file(int fd, const Folder& folder, const std::string& name) {
  struct statx ours {
  }, theirs{};
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_INO, &ours) != 0) {
    throw_errno(errno, "looking at the file published as " + folder.shown(name));
  }
  if (::statx(folder.fd(), name.c_str(), AT_SYMLINK_NOFOLLOW | AT_STATX_FORCE_SYNC, STATX_INO, &theirs) != 0) {
    if (errno == ENOENT) return false;
    throw_errno(errno, "looking at " + folder.shown(name));
  }
  return ours.stx_ino == theirs.stx_ino && ours.stx_dev_major == theirs.stx_dev_major &&
         ours.stx_dev_minor == theirs.stx_dev_minor;
}

// No name is left, or the server has forgotten the file.
bool is_gone(int fd) {
  struct statx status {};
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_NLINK, &status) != 0) return errno == ESTALE;
  return status.stx_nlink == 0;
}

// What a rename or link that failed really means.
Published settle(int error, const Folder& from, const std::string& temporary, int fd, const Folder& to,
                 const std::string& name) {
  // A reply that was lost and asked again: one's own success looks like EEXIST, or like ENOENT after a rename, too.
  if ((error == EEXIST || error == ENOENT) && same_file(fd, to, name)) return Published::kDone;
  if (error == EEXIST) return Published::kExists;
  if (error != ENOENT) throw_errno(error, "publishing " + to.shown(name));
  if (!same_file(fd, from, temporary))
    throw Unavailable(fmt::format("{} was removed while it was written: retry", from.shown(temporary)));
  return Published::kFolderGone;
}

}  // namespace

Folder Folder::open(const std::string& path) {
  return {draftflow::open_file(path, O_RDONLY | O_DIRECTORY), path};
}

std::optional<Folder> Folder::find(const std::string& name) const {
  UniqueFd fd(open_retrying(fd_.get(), name.c_str(), kFolderFlags | O_NOFOLLOW));
  if (fd) return Folder(std::move(fd), shown(name));
  if (errno == ENOENT) return std::nullopt;
  if (errno == ELOOP || errno == ENOTDIR) {
    throw Corrupt(fmt::format("{} is not a folder: draftflow did not make it and follows no link; remove it", shown(name)));
  }
  throw_errno(errno, "opening the folder " + shown(name));
}

bool Folder::make(const std::string& name) const {
  if (::mkdirat(fd_.get(), name.c_str(), 0770) == 0) return true;
  if (errno != EEXIST) throw_errno(errno, "making the folder " + shown(name));
  return false;
}

Folder Folder::find_or_make(const std::string& name) const {
  constexpr int kTries = 100;  // each failure means that someone removed it in between
  for (int i = 0; i < kTries; ++i) {
    if (auto found = find(name)) return std::move(*found);
    make(name);
  }
  throw Unavailable(fmt::format("{} was removed each of {} times that it was made: retry", shown(name), kTries));
}

UniqueFd Folder::open_file(const std::string& name, int flags) const {
  UniqueFd fd(open_retrying(fd_.get(), name.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0660));
  if (!fd) throw_errno(errno, "opening " + shown(name));
  return fd;
}

std::optional<UniqueFd> Folder::find_file(const std::string& name, int flags) const {
  // O_NONBLOCK: a planted pipe must not hang us.
  UniqueFd fd(open_retrying(fd_.get(), name.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (fd) return fd;
  if (errno == ENOENT) return std::nullopt;
  if (errno == ELOOP) {
    throw Corrupt(
        fmt::format("{} is a symbolic link: draftflow did not make it and does not follow it; remove it", shown(name)));
  }
  throw_errno(errno, "opening " + shown(name));
}

std::optional<std::string> Folder::find_text(const std::string& name, std::uint64_t max_bytes, const char* what) const {
  const auto fd = find_file(name, O_RDONLY);
  if (!fd) return std::nullopt;
  const std::uint64_t size = file_size(fd->get(), shown(name));
  if (size > max_bytes) throw Corrupt(fmt::format("{} has {} bytes: it is not {}", shown(name), size, what));
  std::string text(size, '\0');
  read_exact(fd->get(), std::as_writable_bytes(std::span(text)), 0, shown(name));
  return text;
}

// One call where the kernel has it (5.6); nothing in `unsupported` where it does not, or a sandbox forbids it.
std::optional<UniqueFd> Folder::open_below(const std::string& path, int flags, bool& unsupported) const {
  open_how how{};
  how.flags = static_cast<std::uint64_t>(flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
  for (;;) {
    UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, fd_.get(), path.c_str(), &how, sizeof how)));
    if (fd) return fd;
    if (errno == ENOENT) return std::nullopt;
    if (errno == EINTR || errno == EAGAIN) continue;
    unsupported = errno == ENOSYS || errno == EPERM;
    if (unsupported) return std::nullopt;
    if (errno == ELOOP || errno == ENOTDIR) {
      throw Corrupt(
          fmt::format("{} has a symbolic link or a file where a folder belongs: draftflow did not make it and does "
                      "not follow it; remove it",
                      shown(path)));
    }
    throw_errno(errno, "opening " + shown(path));
  }
}

std::optional<UniqueFd> Folder::find_file_below(const std::string& path, int flags) const {
  bool unsupported = false;
  auto fd = open_below(path, flags, unsupported);
  if (!unsupported) return fd;
  const std::size_t slash = path.find('/');
  if (slash == std::string::npos) return find_file(path, flags);
  const auto next = find(path.substr(0, slash));
  return next ? next->find_file_below(path.substr(slash + 1), flags) : std::nullopt;
}

std::optional<Folder> Folder::find_below(const std::string& path) const {
  bool unsupported = false;
  auto fd = open_below(path, kFolderFlags, unsupported);
  if (fd) return Folder(std::move(*fd), shown(path));
  if (!unsupported) return std::nullopt;
  const std::size_t slash = path.find('/');
  if (slash == std::string::npos) return find(path);
  const auto next = find(path.substr(0, slash));
  return next ? next->find_below(path.substr(slash + 1)) : std::nullopt;
}

bool Folder::holds(const std::string& name, int fd) const {
  return same_file(fd, *this, name);
}

std::optional<std::uint64_t> Folder::size_of(const std::string& name) const {
  struct stat status {};
  if (::fstatat(fd_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return std::nullopt;
    throw_errno(errno, "looking at " + shown(name));
  }
  return S_ISREG(status.st_mode) ? std::optional(static_cast<std::uint64_t>(status.st_size)) : std::nullopt;
}

std::vector<std::string> Folder::list() const {
  // A descriptor of its own: the read position belongs to the open file, another thread may be listing too, and a remote file
  // system may answer with what was there when the folder was opened.
  UniqueFd fd(open_retrying(fd_.get(), ".", kFolderFlags));
  if (!fd) {
    if (errno == ENOENT) return {};  // removed meanwhile
    throw_errno(errno, "listing " + path_);
  }
  // The kernel's own call: a stream takes three more and 32 KiB of heap, and put lists twice.
  std::vector<std::string> names;
  alignas(dirent64) std::array<char, 16 << 10> entries;
  for (;;) {
    const ssize_t got = ::getdents64(fd.get(), entries.data(), entries.size());
    if (got == 0 || (got < 0 && errno == ENOENT)) return names;  // or the folder was removed meanwhile
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno(errno, "listing " + path_);
    for (ssize_t at = 0; at < got;) {
      const auto* entry = reinterpret_cast<const dirent64*>(&entries[static_cast<std::size_t>(at)]);
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
      at += entry->d_reclen;
    }
  }
}

bool Folder::unlink(const std::string& name) const {
  if (::unlinkat(fd_.get(), name.c_str(), 0) == 0) return true;
  if (errno != ENOENT) throw_errno(errno, "removing " + shown(name));
  return false;
}

bool Folder::remove_if_empty(const std::string& name) const {
  if (::unlinkat(fd_.get(), name.c_str(), AT_REMOVEDIR) == 0) return true;
  if (errno == ENOENT || errno == ENOTEMPTY || errno == EEXIST || errno == EBUSY) return false;
  throw_errno(errno, "removing the folder " + shown(name));
}

void Folder::sync() const {
  if (::fsync(fd_.get()) != 0) throw_errno(errno, "fsync of the folder " + path_);
}

Published publish(const Folder& from, const std::string& temporary, int fd, const Folder& to, const std::string& name) {
  if (::renameat2(from.fd(), temporary.c_str(), to.fd(), name.c_str(), RENAME_NOREPLACE) == 0) return Published::kDone;
  const int error = errno;
  if (error == EINVAL || error == ENOSYS || error == ENOTTY || error == EOPNOTSUPP) {
    return publish_by_link(from, temporary, fd, to, name);
  }
  return settle(error, from, temporary, fd, to, name);
}

Published publish_by_link(const Folder& from, const std::string& temporary, int fd, const Folder& to, const std::string& name) {
  const bool linked = ::linkat(from.fd(), temporary.c_str(), to.fd(), name.c_str(), 0) == 0;
  const Published result = linked ? Published::kDone : settle(errno, from, temporary, fd, to, name);
  if (result != Published::kDone) return result;
  try {
    from.unlink(temporary);
  } catch (...) {  // with its second name it would count as leased for ever
    to.unlink(name);
    throw;
  }
  return result;
}

bool on_network_file_system(const Folder& folder) {
  constexpr unsigned kTypes[] = {0x6969,     0x517B,     0xFF534D42, 0xFE534D42, 0x65735546,
                                 0x01021997, 0x00C36400, 0x0BD00BD0, 0x47504653};  // NFS SMB CIFS SMB2 FUSE 9P Ceph Lustre GPFS
  struct statfs status {};
  if (::fstatfs(folder.fd(), &status) != 0) throw_errno(errno, "statfs of " + folder.path());
  return std::find(std::begin(kTypes), std::end(kTypes), static_cast<unsigned>(status.f_type)) != std::end(kTypes);
}

std::string file_system_name(const Folder& folder) {
  struct stat status {};
  if (::fstat(folder.fd(), &status) != 0) throw_errno(errno, "fstat of " + folder.path());
  const std::string device = fmt::format("{}:{}", major(status.st_dev), minor(status.st_dev));
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string field, id, parent, found;
    fields >> id >> parent >> found;
    if (found != device) continue;
    while (fields >> field && field != "-") {
    }
    fields >> field;
    return field;
  }
  return "";
}

std::uint64_t link_count(int fd, const std::string& path) {
  struct statx status {};
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_NLINK, &status) != 0) {
    throw_errno(errno, "statx of " + path);
  }
  return status.stx_nlink;
}

bool link_file(int fd, const std::string& path, const Folder& to, const std::string& name, const char* what) {
  const std::string open_file = fmt::format("/proc/self/fd/{}", fd);
  if (::linkat(AT_FDCWD, open_file.c_str(), to.fd(), name.c_str(), AT_SYMLINK_FOLLOW) == 0) return true;
  const int error = errno;
  if (error == EEXIST && to.holds(name, fd)) return true;  // a reply that was lost and asked again
  if ((error == ENOENT || error == ESTALE) && is_gone(fd)) return false;
  if (error == EEXIST) {
    throw Corrupt(to.shown(name) + " is there already, and is another file: draftflow did not make it; take it away");
  }
  if (error == EMLINK) {
    throw Unavailable(fmt::format("{} has as many names (leases) as its file system allows: retry when some have ended", path));
  }
  if (error == EPERM || error == EACCES) {
    throw PermissionDenied(
        fmt::format("{} {} failed: its owner is another user and it, or {}, is not writable to this one; let all users of the "
                    "store share a group, and write with umask 007 (mode 0660)",
                    what, path, to.path()));
  }
  throw_errno(error, fmt::format("{} {} as {}", what, path, to.shown(name)));
}

std::uint64_t free_bytes(const Folder& folder) {
  struct statvfs status {};
  if (::fstatvfs(folder.fd(), &status) != 0) throw_errno(errno, "statvfs of " + folder.path());
  return static_cast<std::uint64_t>(status.f_bavail) * status.f_frsize;
}

}  // namespace draftflow::store
