// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/holder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "store/shared_dir/forks.h"
#include "store/shared_dir/temporary.h"

namespace draftflow::store {
namespace {

constexpr std::size_t kNameDigits = 32;
constexpr std::string_view kLockSuffix = ".holder";
constexpr std::size_t kFileBytes = 16;

bool try_lock(int fd) {
  while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EINTR) return false;
  }
  return true;
}

struct Counts {
  std::int64_t reserved = 0, leases = 0;
};

Counts counts_in(int fd) {
  Counts counts;
  if (::pread(fd, &counts, sizeof counts, 0) != sizeof counts) return {};
  return {std::max<std::int64_t>(counts.reserved, 0), std::max<std::int64_t>(counts.leases, 0)};
}

}  // namespace

bool is_holder_name(std::string_view name) {
  return name.size() == kNameDigits && name.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::string lock_name(const std::string& holder) {
  return holder + std::string(kLockSuffix);
}

Holder::Holder(const Folder& leases, Account& account, std::int64_t beat_ms)
    : leases_(leases), account_(account), forks_(forks_of_this_process()) {
  constexpr int kTries = 100;  // each failure means that gc came between making and locking
  for (int i = 0; i < kTries && !links_; ++i) make(/*local=*/beat_ms == 0);
  if (!links_) throw Unavailable(fmt::format("{}: {} new holders were removed at once: retry", leases_.path(), kTries));
  if (beat_ms == 0) return;
  heart_ = std::make_unique<Heart>();
  heart_->thread = std::thread([this, beat_ms] { beat(beat_ms); });
}

void Holder::make(bool local) {
  name_ = random_hex128();
  const std::string lock = lock_name(name_);
  lock_ = leases_.open_file(lock, O_RDWR | O_CREAT | O_EXCL);
  close_in_children(lock_.get());
  try {
    if (!try_lock(lock_.get())) {
      if (local && errno != EWOULDBLOCK) throw_errno(errno, "locking " + leases_.shown(lock));
      if (errno == EWOULDBLOCK) return keep_in_children(lock_.get());  // gc has it already, and will remove it
    }
    if (const int error = ::posix_fallocate(lock_.get(), 0, kFileBytes); error != 0) {
      throw_errno(error, "making " + leases_.shown(lock));
    }
    struct stat status {};
    if (::fstat(lock_.get(), &status) != 0) throw_errno(errno, "fstat of " + leases_.shown(lock));
    if (status.st_nlink == 0) return keep_in_children(lock_.get());
    Folder links = leases_.find_or_make(name_);
    // Mapped through another open file: a child inherits the mapping, which would keep the lock of its own.
    const UniqueFd mapped = leases_.open_file(lock, O_RDWR);
    void* memory = ::mmap(nullptr, kFileBytes, PROT_READ | PROT_WRITE, MAP_SHARED, mapped.get(), 0);
    if (memory == MAP_FAILED) throw_errno(errno, "mapping " + leases_.shown(lock));
    counters_ = static_cast<Counters*>(memory);
    links_ = std::move(links);
  } catch (...) {
    keep_in_children(lock_.get());
    ::unlinkat(leases_.fd(), name_.c_str(), AT_REMOVEDIR);
    ::unlinkat(leases_.fd(), lock.c_str(), 0);
    throw;
  }
}

Holder::~Holder() {
  if (inherited()) {
    static_cast<void>(heart_.release());
    lock_.release();  // closed at the fork
  } else {
    if (heart_) {
      {
        const std::lock_guard lock(heart_->mutex);
        heart_->stop = true;
      }
      heart_->stopping.notify_all();
      heart_->thread.join();
    }
    try {
      // Still locked: nobody buries us meanwhile. With a link left, gc finds us dead and ends it.
      if (leases_.remove_if_empty(name_)) leases_.unlink(lock_name(name_));
    } catch (const Error&) {
    }
    keep_in_children(lock_.get());
  }
  ::munmap(counters_, kFileBytes);
}

bool Holder::inherited() const {
  return forks_ != forks_of_this_process();
}

void Holder::beat(std::int64_t beat_ms) {
  std::unique_lock lock(heart_->mutex);
  while (!heart_->stopping.wait_for(lock, std::chrono::milliseconds(beat_ms), [this] { return heart_->stop; })) {
    lock.unlock();
    // Both times as the server's "now". What fails now is tried again with the next beat.
    if (::futimens(lock_.get(), nullptr) == 0) ::fsync(lock_.get());
    lock.lock();
  }
}

void Holder::add_lease(std::int64_t count) {
  const Account::Change change(account_, kHolders);
  account_.add_leases(count);
  counters_->leases.fetch_add(count);
}

bool Holder::reserve(std::uint64_t bytes, std::uint64_t cap) {
  const Account::Change change(account_, kHolders);
  if (!account_.reserve(bytes, cap)) return false;
  counters_->reserved.fetch_add(static_cast<std::int64_t>(bytes));
  return true;
}

void Holder::reserve_again(std::uint64_t bytes) {
  const Account::Change change(account_, kHolders);
  account_.add_reserved(static_cast<std::int64_t>(bytes));
  counters_->reserved.fetch_add(static_cast<std::int64_t>(bytes));
}

void Holder::unreserve(std::uint64_t bytes) {
  const Account::Change change(account_, kHolders);
  counters_->reserved.fetch_sub(static_cast<std::int64_t>(bytes));
  account_.add_reserved(-static_cast<std::int64_t>(bytes));
}

std::vector<DeadHolder> find_dead_holders(const Folder& leases, const Folder& temporaries,
                                          std::optional<std::int64_t> silent_ms) {
  std::vector<DeadHolder> dead;
  const std::int64_t now_ms = silent_ms ? server_time_ms(temporaries) : 0;
  for (const std::string& file : leases.list()) {
    if (!file.ends_with(kLockSuffix)) continue;
    const std::string name = file.substr(0, file.size() - kLockSuffix.size());
    if (!is_holder_name(name)) continue;
    UniqueFd fd(::openat(leases.fd(), file.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!fd) continue;  // gone, or not ours to open
    if (silent_ms && now_ms - modified_ms(fd.get(), leases.shown(file)) < *silent_ms) continue;
    // Its silence alone is proof enough only where its lock could not be seen anyway.
    if (!try_lock(fd.get()) && (errno == EWOULDBLOCK || !silent_ms)) continue;
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_nlink == 0) continue;
    dead.push_back({name, std::move(fd)});
  }
  return dead;
}

bool bury(const Folder& leases, const DeadHolder& dead, Account& account) {
  leases.remove_if_empty(dead.name);
  if (leases.find(dead.name)) return false;
  const Counts counts = counts_in(dead.lock.get());
  const Account::Change change(account, kHolders);
  if (!leases.unlink(lock_name(dead.name))) return true;
  account.add_reserved(-counts.reserved);
  account.add_leases(-counts.leases);
  return true;
}

void recount_holders(const Folder& leases, Account& account, std::int64_t now_seconds) {
  constexpr int kTries = 20;  // a count is short beside the time between two changes
  for (int i = 0; i < kTries; ++i) {
    const auto begun = account.begin_count(kHolders, now_seconds);
    if (!begun) continue;
    Counts sum;
    for (const std::string& file : leases.list()) {
      if (!file.ends_with(kLockSuffix)) continue;
      const UniqueFd fd(::openat(leases.fd(), file.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
      if (!fd && errno != ENOENT) return;  // one that cannot be read would make the figures too low
      if (!fd) continue;
      const Counts counts = counts_in(fd.get());
      sum.reserved += counts.reserved;
      sum.leases += counts.leases;
    }
    if (account.settle_holders(*begun, sum.reserved, sum.leases)) return;
  }
}

}  // namespace draftflow::store
