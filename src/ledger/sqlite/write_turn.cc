// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/write_turn.h"

#include <fcntl.h>
#include <pthread.h>
#include <time.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
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

// A thread that waits for a lock in the place of another, which can so go on to be interrupted: the kernel has no such wait
// that ends at a time, and one that asked again and again would be overtaken by all who wait in line. The lock belongs to the
// descriptor, whoever takes it. fcntl(F_OFD_SETLKW) is a point of cancellation.
class Waiter {
 public:
  Waiter(int fd, int byte) : fd_(fd), byte_(byte) {
    if (const int error = ::pthread_create(&thread_, nullptr, &Waiter::run, this); error != 0) {
      throw_errno(error, "making a thread that waits for the ledger's write turn");
    }
  }
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;
  ~Waiter() {
    if (!running_) return;
    ::pthread_cancel(thread_);
    ::pthread_join(thread_, nullptr);
  }

  // 0 with the lock, errno without; nothing within `most`.
  bool ended(std::chrono::milliseconds most) {
    timespec until{};
    ::clock_gettime(CLOCK_REALTIME, &until);
    const std::int64_t ns = until.tv_nsec + std::chrono::nanoseconds(most).count();
    until.tv_sec += ns / 1'000'000'000;
    until.tv_nsec = ns % 1'000'000'000;
    running_ = ::pthread_timedjoin_np(thread_, nullptr, &until) != 0;
    return !running_;
  }
  int error() const { return error_; }

 private:
  static void* run(void* self) {
    auto& waiter = *static_cast<Waiter*>(self);
    struct flock lock = lock_of(F_WRLCK, waiter.byte_);
    waiter.error_ = ::fcntl(waiter.fd_, F_OFD_SETLKW, &lock) == 0 ? 0 : errno;
    return nullptr;
  }

  const int fd_, byte_;
  int error_ = 0;
  bool running_ = true;
  pthread_t thread_{};
};

}  // namespace

WriteTurn::WriteTurn(const std::filesystem::path& lock_file) : WriteTurn(lock_file, open_file(lock_file, O_RDWR | O_CREAT)) {}

std::optional<WriteTurn> WriteTurn::to_look(const std::filesystem::path& lock_file) {
  UniqueFd fd(::open(lock_file.c_str(), O_RDONLY | O_CLOEXEC));
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

void WriteTurn::wait_for(int byte) {
  if (!may_be_interrupted()) return set_lock(F_WRLCK, byte, F_OFD_SETLKW);
  for (;;) {
    check_interrupt();
    const int held = try_lock(F_WRLCK, byte, F_OFD_SETLK);
    if (held == 0) return;
    if (held != EAGAIN && held != EACCES) throw_errno(held, "locking " + path_.string());
    try {
      Waiter waiter(fd_.get(), byte);
      while (!waiter.ended(kInterruptEvery)) check_interrupt();
      if (waiter.error() == 0) return;
      if (waiter.error() != EINTR) throw_errno(waiter.error(), "locking " + path_.string());
    } catch (...) {
      set_lock(F_UNLCK, byte, F_OFD_SETLK);  // it may have been had in the last moment
      throw;
    }
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
