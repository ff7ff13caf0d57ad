// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/generations.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "draftflow/base/error.h"
#include "store/shared_dir/forks.h"
#include "store/shared_dir/names.h"

namespace draftflow::store {
namespace {

constexpr std::uint64_t kMaxCounter = (1ULL << kCounterBits) - 1;
constexpr std::uint64_t kPruneAbove = 4 * kKeptMarkers;

std::vector<std::uint64_t> markers(const Folder& epochs) {
  std::vector<std::uint64_t> numbers;
  for (const std::string& name : epochs.list()) {
    const auto number = parse_number(name);
    if (number && *number <= kMaxEpoch) numbers.push_back(*number);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

bool make_marker(const Folder& epochs, std::uint64_t epoch) {
  const std::string name = std::to_string(epoch);
  const UniqueFd fd(::openat(epochs.fd(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0660));
  if (fd) return true;
  if (errno == EEXIST) return false;
  throw_errno(errno, "claiming the epoch " + epochs.shown(name));
}

void prune(const Folder& epochs, const std::vector<std::uint64_t>& sorted, std::size_t kept) {
  for (std::size_t i = 0; i + kept < sorted.size(); ++i) epochs.unlink(std::to_string(sorted[i]));
}

}  // namespace

Generations::Generations(const Folder& epochs) : epochs_(epochs) {
  forks_of_this_process();
}

std::uint64_t Generations::next(std::uint64_t above, bool newest) {
  const std::lock_guard lock(mutex_);
  const auto number = [&] { return epoch_ << kCounterBits | (counter_ + 1); };
  if (newest || epoch_ == 0 || forks_ != forks_of_this_process() || counter_ == kMaxCounter || number() <= above) claim();
  if (number() <= above) {
    throw Corrupt(
        fmt::format("{}: generation {} is on disk, but this store is only at epoch {}: that file or the store's "
                    "markers are not its own",
                    epochs_.path(), above, epoch_));
  }
  ++counter_;
  return epoch_ << kCounterBits | counter_;
}

void Generations::claim() {
  for (;;) {
    const std::vector<std::uint64_t> before = markers(epochs_);
    const std::uint64_t mine = (before.empty() ? 0 : before.back()) + 1;
    if (mine > kMaxEpoch) {
      throw Exhausted(fmt::format("{}: all {} epochs are used up: make a new store", epochs_.path(), kMaxEpoch));
    }
    if (!make_marker(epochs_, mine)) continue;  // another writer was first
    // A claimer that slept long between listing and creating may have made a marker that was claimed and pruned before.
    const std::vector<std::uint64_t> after = markers(epochs_);
    if (after.empty() || after.back() >= mine + kKeptMarkers) continue;
    epochs_.sync();  // after a power cut, too, the epoch stays taken
    if (after.size() > kPruneAbove) prune(epochs_, after, kKeptMarkers);
    epoch_ = mine;
    counter_ = 0;
    forks_ = forks_of_this_process();
    return;
  }
}

std::uint64_t prune_epochs(const Folder& epochs) {
  const std::vector<std::uint64_t> all = markers(epochs);
  if (all.size() <= kKeptMarkers) return 0;
  prune(epochs, all, kKeptMarkers);
  return all.size() - kKeptMarkers;
}

}  // namespace draftflow::store
