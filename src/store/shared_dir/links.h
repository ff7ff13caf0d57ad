// SPDX-License-Identifier: Apache-2.0
//
// The names of a generation's file: its own in the sample's folder, and one a lease. The inode's link count is the reference
// count; whoever takes the last name away takes the generation off the account. On local file systems a lock on the inode,
// held for a few calls and never while bytes move, makes taking away and looking one step. Functions are thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "store/shared_dir/account.h"
#include "store/shared_dir/flat_names.h"
#include "store/shared_dir/folder.h"
#include "store/shared_dir/names.h"

namespace draftflow::store {

class InodeLock {
 public:
  enum class Mode { kShared, kExclusive };
  // Does nothing unless `local`. Unavailable if another process has held it for 10 seconds (it was stopped in mid-step).
  InodeLock(int fd, Mode mode, bool local, const std::string& path);
  ~InodeLock();
  InodeLock(const InodeLock&) = delete;
  InodeLock& operator=(const InodeLock&) = delete;

 private:
  int fd_ = -1;
};

// What a file is to the account.
struct Weight {
  std::uint64_t bytes = 0;
  std::int64_t birth_seconds = 0;
};
Weight weigh(int fd, const std::string& path);

// What names of samples are dropped within.
struct Books {
  Account& account;
  bool local;
  bool marks;                       // of what was consumed, there may be (consume-once stores)
  const FlatNames* flat = nullptr;  // of a store of layout specforge

  std::uint64_t own_names() const { return flat == nullptr ? 1 : 2; }  // of a generation that nobody leases
};

struct Dropped {
  bool was_there = false;
  bool was_last = false;    // the bytes are gone
  std::uint64_t bytes = 0;  // of the generation, if that was the last
};

// Takes one name away of a file that is open as `fd` and, where local, locked exclusively by the caller; `fan_out` is the
// sample's.
Dropped drop_name_locked(const Folder& folder, const std::string& name, int fd, std::size_t fan_out, const Books& books);

}  // namespace draftflow::store
