// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/forks.h"

#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <utility>

#include "draftflow/base/error.h"

namespace draftflow::sqlite {
namespace {

using Stat = int (*)(const char*, struct stat*);
using FStat = int (*)(int, struct stat*);

// Never destroyed: a fork may come while the process exits.
struct State {
  std::mutex mutex;
  std::uint64_t forks = 0;                                  // guarded by mutex, as are the next two
  std::map<std::pair<dev_t, ino_t>, std::uint64_t> opened;  // in which process of the line of forks, by their count
  std::set<int> unshared;                                   // descriptors
  Stat stat = nullptr;
  FStat fstat = nullptr;
  std::array<sqlite3_mutex*, 9> sqlite{};  // SQLite's own, in the order in which it takes them
};
State* state = nullptr;

void renumber(struct stat& status) {
  const std::lock_guard lock(state->mutex);
  const auto found = state->opened.find({status.st_dev, status.st_ino});
  if (found != state->opened.end() && found->second < state->forks) {
    status.st_ino ^= static_cast<ino_t>(state->forks * 0x9E3779B97F4A7C15ULL);
  }
}

int stat_as_opened(const char* path, struct stat* status) {
  const int result = state->stat(path, status);
  if (result == 0) renumber(*status);
  return result;
}

int fstat_as_opened(int fd, struct stat* status) {
  const int result = state->fstat(fd, status);
  if (result == 0) renumber(*status);
  return result;
}

// A thread that is in SQLite while another forks must not leave its mutexes taken in the child.
void before_fork() {
  for (sqlite3_mutex* mutex : state->sqlite) sqlite3_mutex_enter(mutex);
  state->mutex.lock();
}

void after_fork() {
  state->mutex.unlock();
  for (auto mutex = state->sqlite.rbegin(); mutex != state->sqlite.rend(); ++mutex) sqlite3_mutex_leave(*mutex);
}

void after_fork_in_child() {
  ++state->forks;
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const int fd : state->unshared) {
    if (null < 0 || ::dup3(null, fd, O_CLOEXEC) < 0) ::close(fd);
  }
  if (null >= 0) ::close(null);
  after_fork();
}

void install() {
  auto* made = new State;
  sqlite3_initialize();
  // PRNG comes first: SQLite looks for its VFS, under MAIN, while it has that.
  constexpr std::array kMutexes = {SQLITE_MUTEX_STATIC_PRNG, SQLITE_MUTEX_STATIC_MAIN, SQLITE_MUTEX_STATIC_OPEN,
                                   SQLITE_MUTEX_STATIC_VFS1, SQLITE_MUTEX_STATIC_VFS2, SQLITE_MUTEX_STATIC_VFS3,
                                   SQLITE_MUTEX_STATIC_LRU,  SQLITE_MUTEX_STATIC_PMEM, SQLITE_MUTEX_STATIC_MEM};
  for (std::size_t i = 0; i < kMutexes.size(); ++i) made->sqlite.at(i) = sqlite3_mutex_alloc(kMutexes.at(i));
  sqlite3_vfs* const unix = sqlite3_vfs_find("unix");
  if (unix == nullptr || unix->iVersion < 3) throw std::logic_error("SQLite's VFS 'unix' has no table of system calls");
  made->stat = reinterpret_cast<Stat>(unix->xGetSystemCall(unix, "stat"));
  made->fstat = reinterpret_cast<FStat>(unix->xGetSystemCall(unix, "fstat"));
  state = made;
  unix->xSetSystemCall(unix, "stat", reinterpret_cast<sqlite3_syscall_ptr>(stat_as_opened));
  unix->xSetSystemCall(unix, "fstat", reinterpret_cast<sqlite3_syscall_ptr>(fstat_as_opened));
  const int error = ::pthread_atfork(before_fork, after_fork, after_fork_in_child);
  if (error != 0) throw_errno(error, "pthread_atfork");
}

void install_once() {
  static std::once_flag once;
  std::call_once(once, install);
}

}  // namespace

// Opened and entered, and taken out and closed, with no fork in between.
UnsharedFd::UnsharedFd(const std::filesystem::path& file, int flags) {
  install_once();
  const std::lock_guard lock(state->mutex);
  fd_ = ::open(file.c_str(), flags | O_CLOEXEC, 0660);
  if (fd_ >= 0) state->unshared.insert(fd_);
}

void UnsharedFd::close(int fd) noexcept {
  if (fd < 0) return;
  const std::lock_guard lock(state->mutex);
  state->unshared.erase(fd);
  ::close(fd);
}

void open_anew_after_forks(const std::filesystem::path& database) {
  install_once();
  struct stat status {};
  if (::stat(database.c_str(), &status) != 0) throw_errno(errno, "opening " + database.string());
  const std::lock_guard lock(state->mutex);
  state->opened.try_emplace({status.st_dev, status.st_ino}, state->forks);
}

}  // namespace draftflow::sqlite
