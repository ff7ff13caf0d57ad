// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/write_turn.h"

#include <fcntl.h>

#include <cerrno>

#include "draftflow/base/error.h"

namespace draftflow::sqlite {
namespace {
constexpr int kGate = 0;
constexpr int kTurn = 1;
}  // namespace

WriteTurn::WriteTurn(const std::filesystem::path& lock_file) : path_(lock_file), fd_(open_file(lock_file, O_RDWR | O_CREAT)) {}

void WriteTurn::set_lock(short type, int byte, int command) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  while (::fcntl(fd_.get(), command, &lock) != 0) {
    if (errno != EINTR) throw_errno(errno, "locking " + path_.string());
  }
}

void WriteTurn::take() {
  set_lock(F_WRLCK, kGate, F_OFD_SETLKW);
  try {
    set_lock(F_WRLCK, kTurn, F_OFD_SETLKW);
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

}  // namespace draftflow::sqlite
