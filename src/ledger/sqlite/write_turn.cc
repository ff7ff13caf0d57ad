// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/write_turn.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"

namespace draftflow::sqlite {
namespace {

constexpr int kGate = 0;
constexpr int kTurn = 1;

struct flock lock_of(short type, int byte) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

// A wait for a lock by a thread of its own, so that who needs it can go on to be interrupted: the kernel has no such wait that
// ends at a time, and one that asked again and again would be overtaken by all who wait in line. The lock belongs to the
// descriptor, whoever takes it. A wait that is given up has the descriptor from then on, and closes it when it gets the lock.
struct Waiting {
  std::mutex mutex;
  std::condition_variable changed;
  bool ended = false, given_up = false;  // guarded by mutex
  int error = 0;                         // set before `ended`
};

std::shared_ptr<Waiting> start_waiting(int fd, int byte) {
  auto waiting = std::make_shared<Waiting>();
  std::thread([waiting, fd, byte] {
    struct flock lock = lock_of(F_WRLCK, byte);
    const int error = ::fcntl(fd, F_OFD_SETLKW, &lock) == 0 ? 0 : errno;
    const std::lock_guard guard(waiting->mutex);
    waiting->error = error;
    waiting->ended = true;
    if (waiting->given_up) UnsharedFd::close(fd);
    waiting->changed.notify_all();
  }).detach();
  return waiting;
}

UnsharedFd open_lock(const std::filesystem::path& file) {
  UnsharedFd fd(file, O_RDWR | O_CREAT);
  if (!fd) throw_errno(errno, "opening " + file.string());
  return fd;
}

}  // namespace

WriteTurn::WriteTurn(const std::filesystem::path& lock_file) : WriteTurn(lock_file, open_lock(lock_file)) {}

std::optional<WriteTurn> WriteTurn::to_look(const std::filesystem::path& lock_file) {
  UnsharedFd fd(lock_file, O_RDONLY);
  if (!fd) return std::nullopt;
  return WriteTurn(lock_file, std::move(fd));
}

int WriteTurn::try_lock(short type, int byte, int command) {
  struct flock lock = lock_of(type, byte);
  return ::fcntl(fd_.get(), command, &lock) == 0 ? 0 : errno;
}

void WriteTurn::set_lock(short type, int byte, int command) {
  for (;;) {
    const int error = try_lock(type, byte, command);
    if (error == 0) return;
    if (error != EINTR) throw_errno(error, "locking " + path_.string());
  }
}

// 0 with the lock, else errno.
int WriteTurn::wait_interruptibly(int byte) {
  const std::shared_ptr<Waiting> waiting = start_waiting(fd_.get(), byte);
  std::unique_lock guard(waiting->mutex);
  try {
    while (!waiting->ended) {
      waiting->changed.wait_for(guard, kInterruptEvery);
      if (!waiting->ended) check_interrupt();
    }
  } catch (...) {
    // What the descriptor has goes at once; the lock, when it comes, with the descriptor.
    struct flock all = lock_of(F_UNLCK, 0);
    all.l_len = 0;
    ::fcntl(fd_.get(), F_OFD_SETLK, &all);
    waiting->given_up = true;
    fd_.release();
    guard.unlock();
    fd_ = open_lock(path_);
    throw;
  }
  return waiting->error;
}

void WriteTurn::wait_for(int byte) {
  if (!may_be_interrupted()) return set_lock(F_WRLCK, byte, F_OFD_SETLKW);
  for (;;) {
    check_interrupt();
    const int held = try_lock(F_WRLCK, byte, F_OFD_SETLK);
    if (held == 0) return;
    if (held != EAGAIN && held != EACCES) throw_errno(held, "locking " + path_.string());
    const int error = wait_interruptibly(byte);
    if (error == 0) return;
    if (error != EINTR) throw_errno(error, "locking " + path_.string());
  }
}

void WriteTurn::take() {
  wait_for(kGate);
  try {
    wait_for(kTurn);
  } catch (...) {
    set_lock(F_UNLCK, kGate, F_OFD_SETLK);
    throw;
  }
  held_ = true;
  set_lock(F_UNLCK, kGate, F_OFD_SETLK);
}

void WriteTurn::give() {
  if (!held_) return;
  held_ = false;
  set_lock(F_UNLCK, kTurn, F_OFD_SETLK);
}

bool WriteTurn::is_taken() {
  struct flock lock = lock_of(F_WRLCK, kTurn);
  return ::fcntl(fd_.get(), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

}  // namespace draftflow::sqlite
