// SPDX-License-Identifier: Apache-2.0
//
// Holder: one attach of one process as others see it while it lives (docs/formats/shared_dir.md): a locked file, and beside
// it a folder of lease links. Made at the first lease or put, so that mere readers make none. Its lock goes with the
// process, whatever kills it; where locks of other hosts are not seen, a thread touches the file and silence for lease_ms is
// death. A forked child does not hold its parent's lock and makes a holder of its own. Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "store/shared_dir/account.h"
#include "store/shared_dir/folder.h"

namespace draftflow::store {

class Holder {
 public:
  // Both outlive this. `beat_ms` > 0: touch the file so often.
  Holder(const Folder& leases, Account& account, std::int64_t beat_ms);
  ~Holder();  // drops the lease links that are left, as a death would, and its file
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;

  const std::string& name() const { return name_; }
  const Folder& links() const { return *links_; }
  bool inherited() const;  // this process is a fork of the one that made it

  // What a death would leave on the store's account, kept in step with it.
  void add_lease(std::int64_t count);
  bool reserve(std::uint64_t bytes, std::uint64_t cap);
  void reserve_again(std::uint64_t bytes);  // what was unreserved just now: no cap can be passed
  void unreserve(std::uint64_t bytes);

 private:
  struct Counters {
    std::atomic<std::int64_t> reserved, leases;
  };
  // The thread that touches the file, and how to stop it. A forked child has no such thread and must not wait for it, not
  // even in a destructor: it leaves this behind.
  struct Heart {
    std::mutex mutex;
    std::condition_variable stopping;
    bool stop = false;  // guarded by mutex
    std::thread thread;
  };
  void make(bool local);
  void beat(std::int64_t beat_ms);

  const Folder& leases_;
  Account& account_;
  std::string name_;
  UniqueFd lock_;
  std::uint64_t forks_;
  std::optional<Folder> links_;
  Counters* counters_ = nullptr;
  std::unique_ptr<Heart> heart_;  // on network file systems
};

// Bytes that a put has reserved through its holder, until they are resident or the put has failed. One owner, one thread.
class Reservation {
 public:
  Reservation(Holder& holder, std::uint64_t bytes) : holder_(holder), bytes_(bytes) {}  // made by Holder::reserve
  ~Reservation() { end(); }
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;

  std::uint64_t bytes() const { return bytes_; }
  void end() {
    if (std::exchange(held_, false)) holder_.unreserve(bytes_);
  }
  void begin_again() {
    if (!std::exchange(held_, true)) holder_.reserve_again(bytes_);
  }

 private:
  Holder& holder_;
  const std::uint64_t bytes_;
  bool held_ = true;
};

// A holder whose process died, locked by us: nobody else cleans it up meanwhile.
struct DeadHolder {
  std::string name;
  UniqueFd lock;
};

// The holders that are dead by the kernel's word or, with `silent_ms`, by their silence on the server's clock.
std::vector<DeadHolder> find_dead_holders(const Folder& leases, const Folder& temporaries,
                                          std::optional<std::int64_t> silent_ms);

// Takes what it had reserved and leased off the account, then removes its folder and file. Its links must be gone: if not,
// nothing happens and it is false.
bool bury(const Folder& leases, const DeadHolder& dead, Account& account);

// Makes the account's figures of holders what the holders' files say, unless something changes meanwhile: what a process left
// that died while it buried, or between the account and its own file. For the processes of one host.
void recount_holders(const Folder& leases, Account& account, std::int64_t now_seconds);

bool is_holder_name(std::string_view name);  // 32 hex digits
std::string lock_name(const std::string& holder);

}  // namespace draftflow::store
