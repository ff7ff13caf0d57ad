// SPDX-License-Identifier: Apache-2.0
#include "store/testing_faults.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace draftflow::store_testing {
namespace {

using May = ScopedFaults::May;

thread_local ScopedFaults* armed = nullptr;

bool is_possible(int error, May may) {
  const auto has = [&](May bit) { return (static_cast<unsigned>(may) & static_cast<unsigned>(bit)) != 0; };
  if (error == EINTR) return has(May::kInterrupt);
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) return has(May::kFillDisk);
  return true;
}

// The names register themselves, so that a test can hold them against what the store calls.
std::vector<std::string>& names() {
  static std::vector<std::string> all;
  return all;
}

struct Registered {
  explicit Registered(const char* name) { names().emplace_back(name); }
};

// libc's own. The slot is one a wrapper; no lock, since syscall() itself is wrapped.
template <class Function>
Function next(std::atomic<Function>& slot, const char* name) {
  Function found = slot.load(std::memory_order_relaxed);
  if (found == nullptr) {
    found = reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
    if (found == nullptr) {
      ::fprintf(stderr, "testing_faults: libc has no %s\n", name);
      ::abort();
    }
    slot.store(found, std::memory_order_relaxed);
  }
  return found;
}

Fault meet(const char* name, May may) {
  if (armed == nullptr) return {};
  const int before = errno;
  const Fault fault = armed->meet(name, may);
  errno = before;
  return fault;
}

bool refused(const char* name, May may) {
  const Fault fault = meet(name, may);
  if (fault.kind != Fault::Kind::kFail) return false;
  errno = fault.error;
  return true;
}

// False: refused. Else how many bytes to ask for.
bool admit(const char* name, std::size_t& bytes) {
  const Fault fault = meet(name, May::kBoth);
  if (fault.kind == Fault::Kind::kShort && bytes > 1) bytes /= 2;
  if (fault.kind == Fault::Kind::kFail) errno = fault.error;
  return fault.kind != Fault::Kind::kFail;
}

}  // namespace

ScopedFaults::ScopedFaults(FaultPlan plan) : plan_(std::move(plan)), outer_(std::exchange(armed, nullptr)) {
  calls_.reserve(1024);
  armed = this;
}

ScopedFaults::~ScopedFaults() {
  armed = outer_;
}

Fault ScopedFaults::meet(const char* name, May may) {
  calls_.push_back(name);
  for (const Unsupported& call : plan_.unsupported) {
    if (call.call == name) return fail(call.error);
  }
  if (!plan_.only.empty() && plan_.only != name) return {};
  ++numbered_;
  if (plan_.at == 0 || numbered_ < plan_.at || (numbered_ > plan_.at && !plan_.from_then_on)) return {};
  if (plan_.action.kind == Fault::Kind::kKill) ::kill(::getpid(), SIGKILL);
  if (plan_.action.kind == Fault::Kind::kFail && !is_possible(plan_.action.error, may)) return {};
  if (hit_ == 0) {
    hit_ = numbered_;
    hit_name_ = name;
  }
  return plan_.action;
}

std::string ScopedFaults::last_call() const {
  if (hit_ != 0) return std::to_string(hit_) + ": " + hit_name_;
  return std::to_string(calls_.size()) + ": " + (calls_.empty() ? "none" : calls_.back());
}

std::vector<std::string> wrapped_calls() {
  std::vector<std::string> sorted = names();
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

}  // namespace draftflow::store_testing

// The symbol is libc's, the name in C++ is not: libc's headers declare each with attributes that we cannot repeat.
// Parameter lists cannot stand in parentheses of their own, and the analyzer does not see va_start in a macro.
// NOLINTBEGIN(bugprone-macro-parentheses,clang-analyzer-valist.Uninitialized)
#define DRAFTFLOW_NEXT(call)                                            \
  [] {                                                                  \
    static constinit std::atomic<decltype(&over_##call)> slot{nullptr}; \
    return ::draftflow::store_testing::next(slot, #call);               \
  }()

#define DRAFTFLOW_WRAPPER(result, call, parameters)                             \
  extern "C" result over_##call parameters __asm__(#call);                      \
  static const ::draftflow::store_testing::Registered registered_##call(#call); \
  extern "C" result over_##call parameters

#define DRAFTFLOW_WRAP(result, failed, call, may, parameters, arguments)                                 \
  DRAFTFLOW_WRAPPER(result, call, parameters) {                                                          \
    if (::draftflow::store_testing::refused(#call, ::draftflow::store_testing::May::may)) return failed; \
    return DRAFTFLOW_NEXT(call) arguments;                                                               \
  }

#define DRAFTFLOW_WRAP_BYTES(call, parameters, arguments)            \
  DRAFTFLOW_WRAPPER(ssize_t, call, parameters) {                     \
    if (!::draftflow::store_testing::admit(#call, bytes)) return -1; \
    return DRAFTFLOW_NEXT(call) arguments;                           \
  }

// Shortened within its first part.
#define DRAFTFLOW_WRAP_PARTS(call, parameters, one, arguments)       \
  DRAFTFLOW_WRAPPER(ssize_t, call, parameters) {                     \
    const std::size_t whole = count > 0 ? parts->iov_len : 0;        \
    std::size_t bytes = whole;                                       \
    if (!::draftflow::store_testing::admit(#call, bytes)) return -1; \
    const iovec first{count > 0 ? parts->iov_base : nullptr, bytes}; \
    if (bytes < whole) return DRAFTFLOW_NEXT(call) one;              \
    return DRAFTFLOW_NEXT(call) arguments;                           \
  }

#define DRAFTFLOW_WRAP_OPEN(call, parameters, arguments)                   \
  DRAFTFLOW_WRAPPER(int, call, parameters) {                               \
    unsigned mode = 0;                                                     \
    if ((flags & (O_CREAT | O_TMPFILE)) != 0) {                            \
      va_list more;                                                        \
      va_start(more, flags);                                               \
      mode = va_arg(more, unsigned);                                       \
      va_end(more);                                                        \
    }                                                                      \
    using ::draftflow::store_testing::May;                                 \
    const May may = (flags & O_CREAT) != 0 ? May::kBoth : May::kInterrupt; \
    if (::draftflow::store_testing::refused(#call, may)) return -1;        \
    return DRAFTFLOW_NEXT(call) arguments;                                 \
  }

DRAFTFLOW_WRAP_OPEN(open, (const char* path, int flags, ...), (path, flags, mode))
DRAFTFLOW_WRAP_OPEN(open64, (const char* path, int flags, ...), (path, flags, mode))
DRAFTFLOW_WRAP_OPEN(openat, (int dir, const char* path, int flags, ...), (dir, path, flags, mode))
DRAFTFLOW_WRAP_OPEN(openat64, (int dir, const char* path, int flags, ...), (dir, path, flags, mode))

DRAFTFLOW_WRAP_BYTES(read, (int fd, void* to, std::size_t bytes), (fd, to, bytes))
DRAFTFLOW_WRAP_BYTES(pread, (int fd, void* to, std::size_t bytes, off_t at), (fd, to, bytes, at))
DRAFTFLOW_WRAP_BYTES(pread64, (int fd, void* to, std::size_t bytes, off_t at), (fd, to, bytes, at))
DRAFTFLOW_WRAP_BYTES(write, (int fd, const void* from, std::size_t bytes), (fd, from, bytes))
DRAFTFLOW_WRAP_BYTES(pwrite, (int fd, const void* from, std::size_t bytes, off_t at), (fd, from, bytes, at))
DRAFTFLOW_WRAP_BYTES(pwrite64, (int fd, const void* from, std::size_t bytes, off_t at), (fd, from, bytes, at))

DRAFTFLOW_WRAP(ssize_t, -1, readv, kInterrupt, (int fd, const iovec* parts, int count), (fd, parts, count))
DRAFTFLOW_WRAP_PARTS(writev, (int fd, const iovec* parts, int count), (fd, &first, 1), (fd, parts, count))
DRAFTFLOW_WRAP(ssize_t, -1, preadv, kInterrupt, (int fd, const iovec* parts, int count, off_t at), (fd, parts, count, at))
DRAFTFLOW_WRAP(ssize_t, -1, preadv64, kInterrupt, (int fd, const iovec* parts, int count, off_t at), (fd, parts, count, at))
DRAFTFLOW_WRAP_PARTS(pwritev, (int fd, const iovec* parts, int count, off_t at), (fd, &first, 1, at), (fd, parts, count, at))
DRAFTFLOW_WRAP_PARTS(pwritev64, (int fd, const iovec* parts, int count, off_t at), (fd, &first, 1, at), (fd, parts, count, at))

DRAFTFLOW_WRAP(int, -1, rename, kFillDisk, (const char* from, const char* to), (from, to))
DRAFTFLOW_WRAP(int, -1, renameat, kFillDisk, (int from_dir, const char* from, int to_dir, const char* to),
               (from_dir, from, to_dir, to))
DRAFTFLOW_WRAP(int, -1, renameat2, kFillDisk, (int from_dir, const char* from, int to_dir, const char* to, unsigned flags),
               (from_dir, from, to_dir, to, flags))
DRAFTFLOW_WRAP(int, -1, link, kFillDisk, (const char* from, const char* to), (from, to))
DRAFTFLOW_WRAP(int, -1, linkat, kFillDisk, (int from_dir, const char* from, int to_dir, const char* to, int flags),
               (from_dir, from, to_dir, to, flags))
DRAFTFLOW_WRAP(int, -1, symlink, kFillDisk, (const char* target, const char* path), (target, path))
DRAFTFLOW_WRAP(int, -1, symlinkat, kFillDisk, (const char* target, int dir, const char* path), (target, dir, path))
DRAFTFLOW_WRAP(int, -1, unlink, kOnlyFail, (const char* path), (path))
DRAFTFLOW_WRAP(int, -1, unlinkat, kOnlyFail, (int dir, const char* path, int flags), (dir, path, flags))
DRAFTFLOW_WRAP(int, -1, rmdir, kOnlyFail, (const char* path), (path))
DRAFTFLOW_WRAP(int, -1, mkdir, kFillDisk, (const char* path, mode_t mode), (path, mode))
DRAFTFLOW_WRAP(int, -1, mkdirat, kFillDisk, (int dir, const char* path, mode_t mode), (dir, path, mode))
DRAFTFLOW_WRAP(ssize_t, -1, readlink, kOnlyFail, (const char* path, char* to, std::size_t size), (path, to, size))
DRAFTFLOW_WRAP(ssize_t, -1, readlinkat, kOnlyFail, (int dir, const char* path, char* to, std::size_t size),
               (dir, path, to, size))
DRAFTFLOW_WRAP(int, -1, chmod, kOnlyFail, (const char* path, mode_t mode), (path, mode))
DRAFTFLOW_WRAP(int, -1, fchmod, kOnlyFail, (int fd, mode_t mode), (fd, mode))
DRAFTFLOW_WRAP(int, -1, fchmodat, kOnlyFail, (int dir, const char* path, mode_t mode, int flags), (dir, path, mode, flags))

DRAFTFLOW_WRAP(int, -1, fsync, kBoth, (int fd), (fd))
DRAFTFLOW_WRAP(int, -1, fdatasync, kBoth, (int fd), (fd))
DRAFTFLOW_WRAP(int, -1, syncfs, kFillDisk, (int fd), (fd))
DRAFTFLOW_WRAP(int, -1, msync, kFillDisk, (void* at, std::size_t bytes, int flags), (at, bytes, flags))
DRAFTFLOW_WRAP(int, -1, flock, kInterrupt, (int fd, int operation), (fd, operation))
DRAFTFLOW_WRAP(int, -1, ftruncate, kBoth, (int fd, off_t size), (fd, size))
DRAFTFLOW_WRAP(int, -1, ftruncate64, kBoth, (int fd, off_t size), (fd, size))
DRAFTFLOW_WRAP(int, -1, truncate, kBoth, (const char* path, off_t size), (path, size))
DRAFTFLOW_WRAP(int, -1, fallocate, kBoth, (int fd, int mode, off_t at, off_t bytes), (fd, mode, at, bytes))
DRAFTFLOW_WRAP(int, -1, fallocate64, kBoth, (int fd, int mode, off_t at, off_t bytes), (fd, mode, at, bytes))
DRAFTFLOW_WRAP(int, errno, posix_fallocate, kBoth, (int fd, off_t at, off_t bytes), (fd, at, bytes))
DRAFTFLOW_WRAP(int, -1, futimens, kOnlyFail, (int fd, const timespec* times), (fd, times))
DRAFTFLOW_WRAP(int, -1, utimensat, kOnlyFail, (int dir, const char* path, const timespec* times, int flags),
               (dir, path, times, flags))

DRAFTFLOW_WRAP(int, -1, stat, kOnlyFail, (const char* path, struct stat* to), (path, to))
DRAFTFLOW_WRAP(int, -1, stat64, kOnlyFail, (const char* path, struct stat* to), (path, to))
DRAFTFLOW_WRAP(int, -1, lstat, kOnlyFail, (const char* path, struct stat* to), (path, to))
DRAFTFLOW_WRAP(int, -1, lstat64, kOnlyFail, (const char* path, struct stat* to), (path, to))
DRAFTFLOW_WRAP(int, -1, fstat, kOnlyFail, (int fd, struct stat* to), (fd, to))
DRAFTFLOW_WRAP(int, -1, fstat64, kOnlyFail, (int fd, struct stat* to), (fd, to))
DRAFTFLOW_WRAP(int, -1, fstatat, kOnlyFail, (int dir, const char* path, struct stat* to, int flags), (dir, path, to, flags))
DRAFTFLOW_WRAP(int, -1, fstatat64, kOnlyFail, (int dir, const char* path, struct stat* to, int flags), (dir, path, to, flags))
DRAFTFLOW_WRAP(int, -1, statx, kOnlyFail, (int dir, const char* path, int flags, unsigned mask, struct statx* to),
               (dir, path, flags, mask, to))
DRAFTFLOW_WRAP(int, -1, statfs, kInterrupt, (const char* path, struct statfs* to), (path, to))
DRAFTFLOW_WRAP(int, -1, fstatfs, kInterrupt, (int fd, struct statfs* to), (fd, to))
DRAFTFLOW_WRAP(int, -1, statvfs, kInterrupt, (const char* path, struct statvfs* to), (path, to))
DRAFTFLOW_WRAP(int, -1, fstatvfs, kInterrupt, (int fd, struct statvfs* to), (fd, to))
DRAFTFLOW_WRAP(int, -1, access, kOnlyFail, (const char* path, int mode), (path, mode))
DRAFTFLOW_WRAP(int, -1, faccessat, kOnlyFail, (int dir, const char* path, int mode, int flags), (dir, path, mode, flags))

DRAFTFLOW_WRAP(DIR*, nullptr, opendir, kInterrupt, (const char* path), (path))
DRAFTFLOW_WRAP(DIR*, nullptr, fdopendir, kOnlyFail, (int fd), (fd))
DRAFTFLOW_WRAP(dirent*, nullptr, readdir, kOnlyFail, (DIR * folder), (folder))
DRAFTFLOW_WRAP(dirent*, nullptr, readdir64, kOnlyFail, (DIR * folder), (folder))
DRAFTFLOW_WRAP(ssize_t, -1, getdents64, kOnlyFail, (int fd, void* entries, std::size_t bytes), (fd, entries, bytes))

// Linux has let go of the descriptor by the time that it says EIO or EINTR, and so do these.
DRAFTFLOW_WRAPPER(int, close, (int fd)) {
  const bool fails = ::draftflow::store_testing::refused("close", ::draftflow::store_testing::May::kBoth);
  const int error = errno;
  const int result = DRAFTFLOW_NEXT(close)(fd);
  if (!fails) return result;
  errno = error;
  return -1;
}

DRAFTFLOW_WRAPPER(int, closedir, (DIR * folder)) {
  const bool fails = ::draftflow::store_testing::refused("closedir", ::draftflow::store_testing::May::kInterrupt);
  const int error = errno;
  const int result = DRAFTFLOW_NEXT(closedir)(folder);
  if (!fails) return result;
  errno = error;
  return -1;
}

DRAFTFLOW_WRAPPER(int, fcntl, (int fd, int command, ...)) {
  va_list more;
  va_start(more, command);
  void* argument = va_arg(more, void*);
  va_end(more);
  if (::draftflow::store_testing::refused("fcntl", ::draftflow::store_testing::May::kInterrupt)) return -1;
  return DRAFTFLOW_NEXT(fcntl)(fd, command, argument);
}

DRAFTFLOW_WRAPPER(int, fcntl64, (int fd, int command, ...)) {
  va_list more;
  va_start(more, command);
  void* argument = va_arg(more, void*);
  va_end(more);
  if (::draftflow::store_testing::refused("fcntl64", ::draftflow::store_testing::May::kInterrupt)) return -1;
  return DRAFTFLOW_NEXT(fcntl64)(fd, command, argument);
}

// Only maps of files count: malloc's are none of our business.
DRAFTFLOW_WRAPPER(void*, mmap, (void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset)) {
  using ::draftflow::store_testing::May;
  if (fd >= 0 && ::draftflow::store_testing::refused("mmap", May::kOnlyFail)) return MAP_FAILED;
  return DRAFTFLOW_NEXT(mmap)(at, bytes, protection, flags, fd, offset);
}

DRAFTFLOW_WRAPPER(void*, mmap64, (void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset)) {
  using ::draftflow::store_testing::May;
  if (fd >= 0 && ::draftflow::store_testing::refused("mmap64", May::kOnlyFail)) return MAP_FAILED;
  return DRAFTFLOW_NEXT(mmap64)(at, bytes, protection, flags, fd, offset);
}

DRAFTFLOW_WRAPPER(long, syscall, (long number, ...)) {
  using ::draftflow::store_testing::May;
  va_list more;
  va_start(more, number);
  long arguments[6];
  for (long& argument : arguments) argument = va_arg(more, long);
  va_end(more);
  const char* name = number == SYS_openat2 ? "openat2" : number == SYS_renameat2 ? "renameat2" : nullptr;
  const May may = number == SYS_openat2 ? May::kBoth : May::kFillDisk;
  if (name != nullptr && ::draftflow::store_testing::refused(name, may)) return -1;
  return DRAFTFLOW_NEXT(syscall)(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}
// NOLINTEND(bugprone-macro-parentheses,clang-analyzer-valist.Uninitialized)
