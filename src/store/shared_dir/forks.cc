// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/forks.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <vector>

#include "draftflow/base/error.h"

namespace draftflow::store {
namespace {

// Never destroyed: a fork may come while the process exits.
struct State {
  std::atomic<std::uint64_t> forks{0};
  std::mutex mutex;
  std::vector<int> descriptors;  // guarded by mutex
};

State& state() {
  static State* const made = [] {
    auto* fresh = new State;
    static State* shared = fresh;
    const int error = ::pthread_atfork([] { shared->mutex.lock(); }, [] { shared->mutex.unlock(); },
                                       [] {
                                         shared->forks.fetch_add(1);
                                         for (const int fd : shared->descriptors) ::close(fd);
                                         shared->descriptors.clear();
                                         shared->mutex.unlock();
                                       });
    if (error != 0) throw_errno(error, "pthread_atfork");
    return fresh;
  }();
  return *made;
}

}  // namespace

std::uint64_t forks_of_this_process() {
  return state().forks.load();
}

void close_in_children(int fd) {
  const std::lock_guard lock(state().mutex);
  state().descriptors.push_back(fd);
}

void keep_in_children(int fd) {
  const std::lock_guard lock(state().mutex);
  std::erase(state().descriptors, fd);
}

}  // namespace draftflow::store
