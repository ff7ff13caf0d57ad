// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/account.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"
#include "store/shared_dir/temporary.h"

namespace draftflow::store {
namespace {

constexpr std::uint64_t kMagic = 0x32746e756f636364;  // "dccount2" in the file
constexpr std::int64_t kStuckSeconds = 10;
constexpr const char* kBootIdPath = "/proc/sys/kernel/random/boot_id";

using Counter = std::atomic<std::int64_t>;
static_assert(Counter::is_always_lock_free, "the counters are shared between processes");

// One per kernel and boot: containers of one kernel share memory mappings, two hosts do not.
std::string host_name() {
  const UniqueFd fd = draftflow::open_file(kBootIdPath, O_RDONLY);
  std::string text(36, '\0');
  read_exact(fd.get(), std::as_writable_bytes(std::span(text)), 0, kBootIdPath);
  return text;
}

}  // namespace

// docs/formats/shared_dir.md gives the offsets; account_test.cc pins them.
struct Account::Counters {
  std::uint64_t magic, size;
  Counter reserved, leases, freed, freed_bytes, codec_saved_bytes, errors;
  struct FanOut {
    Counter samples, bytes, birth_seconds, begun, ended, stuck_at, stuck_since;
    std::int64_t unused;
  } fan_outs[kFanOuts + 1];  // the last is kHolders
  std::atomic<std::int32_t> born[kAgeBuckets];
};

// The sums over the files of other hosts, read one after the other.
struct Account::Others {
  std::vector<std::unique_ptr<Counters>> files;
  template <class Read>
  std::int64_t sum(Read read) const {
    std::int64_t total = 0;
    for (const auto& file : files) total += read(*file);
    return total;
  }
};

Account::Account(Folder folder, const Folder& temporaries, bool read_only)
    : folder_(std::move(folder)), name_(host_name()), private_(read_only) {
  const std::string path = folder_.shown(name_);
  auto fd = read_only ? std::nullopt : folder_.find_file(name_, O_RDWR);
  try {
    if (!fd && !read_only) fd = make(temporaries);
  } catch (const Exhausted&) {  // a full disk must not keep anybody from freeing
    private_ = true;
  }
  if (fd && file_size(fd->get(), path) != sizeof(Counters)) {
    throw Corrupt(fmt::format("{} is not {} bytes long: it is damaged; remove it while nobody uses the store, then run gc",
                              path, sizeof(Counters)));
  }
  void* memory = ::mmap(nullptr, sizeof(Counters), PROT_READ | PROT_WRITE, fd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS,
                        fd ? fd->get() : -1, 0);
  if (memory == MAP_FAILED) throw_errno(errno, "mapping " + path);
  counters_ = static_cast<Counters*>(memory);
  if (fd && (counters_->magic != kMagic || counters_->size != sizeof(Counters))) {
    ::munmap(memory, sizeof(Counters));
    throw Corrupt(path + " is not an account of this version: remove it while nobody uses the store, then run gc");
  }
}

UniqueFd Account::make(const Folder& temporaries) {
  const std::string path = folder_.shown(name_);
  Temporary temporary(temporaries);
  // Every block now: a hole that cannot be filled later would be a SIGBUS.
  if (const int error = ::posix_fallocate(temporary.fd(), 0, sizeof(Counters)); error != 0)
    throw_errno(error, "making " + path);
  const std::uint64_t head[2] = {kMagic, sizeof(Counters)};
  write_all(temporary.fd(), std::as_bytes(std::span(head)), path);
  temporary.publish(folder_, name_);
  auto fd = folder_.find_file(name_, O_RDWR);
  if (!fd) throw Unavailable(path + " was removed while it was made: retry");
  return std::move(*fd);
}

Account::~Account() {
  ::munmap(counters_, sizeof(Counters));
}

Account::Change::Change(Account& account, std::size_t fan_out) : account_(account), fan_out_(fan_out) {
  account_.counters_->fan_outs[fan_out_].begun.fetch_add(1);
}

Account::Change::~Change() {
  account_.counters_->fan_outs[fan_out_].ended.fetch_add(1);
}

Account::Others Account::others() const {
  Others others;
  for (const std::string& name : folder_.list()) {
    if (name == name_ && !private_) continue;
    const auto fd = folder_.find_file(name, O_RDONLY);  // one that cannot be read would make the figures too low
    if (!fd) continue;
    auto file = std::make_unique<Counters>();
    void* bytes = static_cast<void*>(file.get());
    if (::pread(fd->get(), bytes, sizeof(Counters), 0) != sizeof(Counters)) continue;
    if (file->magic == kMagic && file->size == sizeof(Counters)) others.files.push_back(std::move(file));
  }
  return others;
}

std::int64_t Account::resident_bytes() const {
  const auto bytes_in = [](const Counters& counters) {
    std::int64_t bytes = counters.reserved.load();
    for (const auto& fan_out : counters.fan_outs) bytes += fan_out.bytes.load();
    return bytes;
  };
  return bytes_in(*counters_) + others().sum(bytes_in);
}

bool Account::reserve(std::uint64_t bytes, std::uint64_t cap) {
  if (try_reserve(bytes, cap)) return true;
  // In the midst of a step bytes may be counted twice: a refusal waits a little for what is going on.
  constexpr int kTries = 100;
  for (int i = 0; i < kTries && is_changing(); ++i) {
    const timespec millisecond{0, 1'000'000};
    ::nanosleep(&millisecond, nullptr);
    check_interrupt();
    if (try_reserve(bytes, cap)) return true;
  }
  return try_reserve(bytes, cap);
}

bool Account::try_reserve(std::uint64_t bytes, std::uint64_t cap) {
  const auto asked = static_cast<std::int64_t>(bytes), most = static_cast<std::int64_t>(cap);
  if (cap != 0 && resident_bytes() + asked > most) return false;  // without a trace that others would see
  counters_->reserved.fetch_add(asked);
  if (cap == 0 || resident_bytes() <= most) return true;
  counters_->reserved.fetch_sub(asked);
  return false;
}

bool Account::is_changing() const {
  return std::any_of(counters_->fan_outs, counters_->fan_outs + kFanOuts,
                     [](const auto& fan_out) { return fan_out.begun.load() != fan_out.ended.load(); });
}

void Account::add_reserved(std::int64_t bytes) {
  counters_->reserved.fetch_add(bytes);
}

void Account::add(std::size_t fan_out, std::uint64_t bytes, std::int64_t birth_seconds) {
  enter(fan_out, 1, bytes, birth_seconds);
}

void Account::subtract(std::size_t fan_out, std::uint64_t bytes, std::int64_t birth_seconds) {
  enter(fan_out, -1, bytes, birth_seconds);
}

void Account::enter(std::size_t fan_out, std::int64_t sign, std::uint64_t bytes, std::int64_t birth_seconds) {
  auto& counters = counters_->fan_outs[fan_out];
  counters.samples.fetch_add(sign);
  counters.bytes.fetch_add(sign * static_cast<std::int64_t>(bytes));
  counters.birth_seconds.fetch_add(sign * birth_seconds);
  auto& born = counters_->born[static_cast<std::uint64_t>(birth_seconds / kAgeBucketSeconds) % kAgeBuckets];
  born.fetch_add(static_cast<std::int32_t>(sign));
}

void Account::count_freed(std::uint64_t bytes) {
  counters_->freed.fetch_add(1);
  counters_->freed_bytes.fetch_add(static_cast<std::int64_t>(bytes));
}

void Account::count_codec_saved(std::uint64_t bytes) {
  counters_->codec_saved_bytes.fetch_add(static_cast<std::int64_t>(bytes));
}

void Account::count_error() {
  counters_->errors.fetch_add(1);
}

void Account::add_leases(std::int64_t count) {
  counters_->leases.fetch_add(count);
}

AccountTotals Account::totals() const {
  AccountTotals totals;
  totals.born.assign(kAgeBuckets, 0);
  const auto add_file = [&](const Counters& counters) {
    totals.reserved += counters.reserved.load();
    totals.leases += counters.leases.load();
    totals.freed += counters.freed.load();
    totals.freed_bytes += counters.freed_bytes.load();
    totals.codec_saved_bytes += counters.codec_saved_bytes.load();
    totals.errors += counters.errors.load();
    for (const auto& fan_out : counters.fan_outs) {
      totals.samples += fan_out.samples.load();
      totals.bytes += fan_out.bytes.load();
      totals.birth_seconds += fan_out.birth_seconds.load();
    }
    for (std::size_t i = 0; i < kAgeBuckets; ++i) totals.born[i] += counters.born[i].load(std::memory_order_relaxed);
  };
  add_file(*counters_);
  for (const auto& file : others().files) add_file(*file);
  return totals;
}

std::uint64_t Account::steps(std::size_t fan_out, bool ended) const {
  const auto read = [&](const Counters& counters) {
    return ended ? counters.fan_outs[fan_out].ended.load() : counters.fan_outs[fan_out].begun.load();
  };
  return static_cast<std::uint64_t>(read(*counters_) + others().sum(read));
}

std::optional<std::uint64_t> Account::begin_count(std::size_t fan_out, std::int64_t now_seconds) {
  auto& mine = counters_->fan_outs[fan_out];
  const std::uint64_t ended = steps(fan_out, true), begun = steps(fan_out, false);
  if (begun == ended) return begun;
  const auto at = static_cast<std::int64_t>(begun);
  if (mine.stuck_at.load() != at) {
    mine.stuck_at.store(at);
    mine.stuck_since.store(now_seconds);
  }
  if (now_seconds - mine.stuck_since.load() < kStuckSeconds) return std::nullopt;
  mine.ended.fetch_add(static_cast<std::int64_t>(begun - ended));  // on behalf of the dead
  return begun;
}

bool Account::settle(std::size_t fan_out, std::uint64_t begun, const FanOutCount& counted) {
  auto& mine = counters_->fan_outs[fan_out];
  const Others elsewhere = others();
  const auto missing = [&](std::int64_t real, auto read) { return real - read(*counters_) - elsewhere.sum(read); };
  const std::int64_t samples = missing(counted.samples, [&](const Counters& c) { return c.fan_outs[fan_out].samples.load(); });
  const std::int64_t bytes = missing(counted.bytes, [&](const Counters& c) { return c.fan_outs[fan_out].bytes.load(); });
  const std::int64_t births =
      missing(counted.birth_seconds, [&](const Counters& c) { return c.fan_outs[fan_out].birth_seconds.load(); });
  if (steps(fan_out, true) != begun || steps(fan_out, false) != begun) return false;
  mine.samples.fetch_add(samples);
  mine.bytes.fetch_add(bytes);
  mine.birth_seconds.fetch_add(births);
  return true;
}

bool Account::settle_holders(std::uint64_t begun, std::int64_t reserved, std::int64_t leases) {
  const Others elsewhere = others();
  const auto missing = [&](std::int64_t real, auto read) { return real - read(*counters_) - elsewhere.sum(read); };
  const std::int64_t more_reserved = missing(reserved, [](const Counters& c) { return c.reserved.load(); });
  const std::int64_t more_leases = missing(leases, [](const Counters& c) { return c.leases.load(); });
  if (steps(kHolders, true) != begun || steps(kHolders, false) != begun) return false;
  counters_->reserved.fetch_add(more_reserved);
  counters_->leases.fetch_add(more_leases);
  return true;
}

void Account::settle_births(const std::vector<std::int64_t>& seen, std::int64_t before_seconds) {
  const Others elsewhere = others();
  const std::int64_t end = before_seconds / kAgeBucketSeconds;
  // The buckets go round: those that births may enter during the walk, and some time after it, are left alone.
  constexpr std::int64_t kFresh = 64;
  for (std::int64_t bucket = std::max<std::int64_t>(0, end - static_cast<std::int64_t>(kAgeBuckets) + kFresh); bucket < end;
       ++bucket) {
    const std::size_t i = static_cast<std::size_t>(bucket) % kAgeBuckets;
    const auto read = [&](const Counters& c) { return static_cast<std::int64_t>(c.born[i].load()); };
    const std::int64_t excess = read(*counters_) + elsewhere.sum(read) - seen[i];
    if (excess > 0) counters_->born[i].fetch_sub(static_cast<std::int32_t>(excess));
  }
}

}  // namespace draftflow::store
