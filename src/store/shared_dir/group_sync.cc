// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/group_sync.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "draftflow/base/error.h"

namespace draftflow::store {

void GroupSync::sync(const std::vector<const Folder*>& folders) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> keys;
  for (const Folder* folder : folders) {
    struct stat status {};
    if (::fstat(folder->fd(), &status) != 0) throw_errno(errno, "fstat of " + folder->path());
    keys.emplace_back(status.st_dev, status.st_ino);
  }
  std::unique_lock lock(mutex_);
  const std::shared_ptr<Batch> batch = next_;
  for (std::size_t i = 0; i < folders.size(); ++i) batch->folders.emplace(keys[i], folders[i]);
  while (!batch->done) {
    if (syncing_) {
      changed_.wait(lock);
    } else {
      run(*batch, lock);  // not done and nobody syncing: it is still `next_`
    }
  }
  if (batch->error_number != 0) throw_errno(batch->error_number, batch->error);
}

// Everybody of the batch waits in sync(), so that its folders stay open.
void GroupSync::run(Batch& batch, std::unique_lock<std::mutex>& lock) {
  syncing_ = true;
  next_ = std::make_shared<Batch>();
  lock.unlock();
  for (const auto& [key, folder] : batch.folders) {
    if (::fsync(folder->fd()) == 0 || batch.error_number != 0) continue;
    batch.error_number = errno;
    batch.error = "fsync of the folder " + folder->path();
  }
  lock.lock();
  syncs_ += batch.folders.size();
  batch.done = true;
  syncing_ = false;
  changed_.notify_all();
}

std::uint64_t GroupSync::syncs() const {
  const std::lock_guard lock(mutex_);
  return syncs_;
}

}  // namespace draftflow::store
