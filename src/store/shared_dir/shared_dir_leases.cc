// SPDX-License-Identifier: Apache-2.0
//
// SharedDirStore's leases: the holder of this process, and the links that are given to generations and taken away again.
#include <fmt/format.h>

#include <optional>

#include "draftflow/base/error.h"
#include "store/shared_dir/names.h"
#include "store/shared_dir/shared_dir_store.h"

namespace draftflow::store {
namespace {

constexpr int kBeatsALease = 6;  // a holder may miss a few

std::optional<std::uint64_t> lease_number(const std::string& token, const std::string& holder) {
  if (!token.starts_with(holder) || token.size() < holder.size() + 2 || token[holder.size()] != '.') return std::nullopt;
  return parse_number(std::string_view(token).substr(holder.size() + 1));
}

}  // namespace

std::shared_ptr<Holder> SharedDirStore::holder() {
  const std::lock_guard lock(mutex_);
  if (!holder_ || holder_->inherited()) {
    live_.clear();  // a parent's leases are the parent's
    const std::int64_t beat_ms = books_.local ? 0 : std::max<std::int64_t>(1, options_.lease_ms / kBeatsALease);
    holder_ = std::make_shared<Holder>(leases_, account_, beat_ms);
  }
  return holder_;
}

SharedDirStore::Lease SharedDirStore::take_lease(const Opened& opened) {
  constexpr int kTries = 3;
  for (int i = 0; i < kTries; ++i) {
    std::shared_ptr<Holder> mine = holder();
    Lease lease{mine, "", opened.place, opened.identity.sample_id, opened.identity.generation};
    {
      const std::lock_guard lock(mutex_);
      lease.link = lease_name(opened.place, opened.identity.generation, ++next_lease_);
    }
    mine->add_lease(1);
    try {
      // Where a release can free, it may not come between our look at the file and our link.
      const InodeLock lock(opened.fd.get(), InodeLock::Mode::kShared, books_.local && file_.kind == StoreKind::kConsumeOnce,
                           opened.path);
      if (!link_file(opened.fd.get(), opened.path, mine->links(), lease.link, "leasing")) throw_not_found(opened.identity);
    } catch (const NotFound&) {
      mine->add_lease(-1);
      if (leases_.find(mine->name())) throw;
      // gc on another host took our silence for death. What we had leased is gone; we begin anew.
      const std::lock_guard lock(mutex_);
      if (holder_ == mine) {
        holder_.reset();
        live_.clear();
      }
      continue;
    } catch (...) {
      mine->add_lease(-1);
      throw;
    }
    // A link made by handle succeeds on a name that was taken away since: look again.
    if (books_.local || is_named(opened)) return lease;
    end_lease(lease, /*consume=*/false);
    throw_not_found(opened.identity);
  }
  throw Unavailable(
      fmt::format("leasing {}: this process was taken for dead {} times; is lease_ms ({}) too short for this file "
                  "system?",
                  opened.path, kTries, options_.lease_ms));
}

bool SharedDirStore::is_named(const Opened& opened) const {
  const std::string name = name_of(SampleId(opened.identity.sample_id), opened.place, opened.identity.generation);
  if (books_.flat != nullptr) return books_.flat->folder().holds(name, opened.fd.get());
  const auto folder = layout_.find_sample(opened.place);
  return folder && folder->holds(name, opened.fd.get());
}

void SharedDirStore::end_lease(const Lease& lease, bool consume) {
  LeaseEnd end{.consume_once = file_.kind == StoreKind::kConsumeOnce,
               .consume = consume,
               .durable = options_.durability != Durability::kNone};
  if (end.consume_once) end.name = name_of(SampleId(lease.sample_id), lease.place, lease.generation);
  end_lease_link(layout_, lease.holder->links(), lease.link, lease.place, lease.generation, end, books_);
  lease.holder->add_lease(-1);
}

void SharedDirStore::release(const FeatureHandle& handle) try {
  std::optional<Lease> lease;
  std::uint64_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    if (!holder_ || holder_->inherited()) return;
    number = lease_number(handle.lease_token, holder_->name()).value_or(0);
    const auto found = live_.find(number);
    if (found == live_.end() || found->second.generation != handle.generation ||
        found->second.sample_id != handle.sample_id.str()) {
      return;
    }
    lease = std::move(found->second);
    live_.erase(found);
  }
  try {
    end_lease(*lease, /*consume=*/!options_.retain_on_release);
  } catch (...) {  // still ours, so that a retry can end it
    const std::lock_guard lock(mutex_);
    live_.emplace(number, std::move(*lease));
    throw;
  }
} catch (const Error& error) {
  count_if_failed(error);
  throw;
}

}  // namespace draftflow::store
