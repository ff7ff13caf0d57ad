// SPDX-License-Identifier: Apache-2.0
//
// GroupSync: threads that put at the same time share the fsyncs of the folders they share. A call returns when each of its
// folders was synced by a sync that began after the call. Thread-safe.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "store/shared_dir/folder.h"

namespace draftflow::store {

class GroupSync {
 public:
  // The folders stay open until the call returns. Throws by errno what fsync says of any folder of the batch.
  void sync(const std::vector<const Folder*>& folders);

  std::uint64_t syncs() const;  // fsyncs made so far

 private:
  struct Batch {
    std::map<std::pair<std::uint64_t, std::uint64_t>, const Folder*> folders;  // by device and inode
    bool done = false;
    std::string error;
    int error_number = 0;
  };
  void run(Batch& batch, std::unique_lock<std::mutex>& lock);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Batch> next_ = std::make_shared<Batch>();  // guarded by mutex_
  bool syncing_ = false;                                     // guarded by mutex_
  std::uint64_t syncs_ = 0;                                  // guarded by mutex_
};

}  // namespace draftflow::store
