// SPDX-License-Identifier: Apache-2.0
#include "ledger/memory/shards.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "draftflow/ledger/partition.h"
#include "ledger/rules.h"

namespace draftflow::memory {
namespace {

constexpr std::int64_t kFewGone = 4096;  // not worth the work

}  // namespace

void Shards::Index::append(std::int64_t row, std::int64_t partition, bool available) {
  Shard& shard = shards[static_cast<std::size_t>(partition)];
  const std::size_t at = shard.rows.size();
  places.write(row) = {static_cast<std::uint32_t>(partition), static_cast<std::uint32_t>(at)};
  shard.rows.push_back(static_cast<std::uint32_t>(row));
  if (available) shard.available.insert(static_cast<std::int64_t>(at));
  ++size;
}

const Shard& Shards::of(std::int64_t width, std::int64_t index, const std::function<void(const Visit&)>& each) {
  const auto known = std::find_if(indexes_.begin(), indexes_.end(), [&](const Index& one) { return one.width == width; });
  if (known != indexes_.end()) {
    indexes_.splice(indexes_.begin(), indexes_, known);
  } else {
    std::list<Index> made(1);
    made.front().width = width;
    made.front().shards.resize(static_cast<std::size_t>(width));
    each([&](std::int64_t row, std::string_view id, bool available) {
      made.front().append(row, dp_partition(id, width), available);
    });
    if (indexes_.size() == kMostIndexes) indexes_.pop_back();
    indexes_.splice(indexes_.begin(), made);
  }
  return indexes_.front().shards[static_cast<std::size_t>(index)];
}

void Shards::append(std::int64_t row, std::string_view id) {
  if (indexes_.empty()) return;
  const std::int64_t shard = dp_partition(id, kShardModulus);  // hashed once for all widths that divide it
  for (Index& index : indexes_) {
    index.append(row, kShardModulus % index.width == 0 ? shard % index.width : dp_partition(id, index.width), true);
  }
}

void Shards::set_available(std::int64_t row, bool available) {
  for (Index& index : indexes_) {
    const Place place = index.places[row];
    RowSet& set = index.shards[place.shard].available;
    available ? set.insert(place.at) : set.erase(place.at);
  }
}

void Shards::gone() {
  for (Index& index : indexes_) ++index.gone;
}

void Shards::tidy(const std::function<bool(std::int64_t row)>& is_gone) {
  for (Index& index : indexes_) {
    if (index.gone < kFewGone || 2 * index.gone < index.size) continue;
    std::vector<Shard> old = std::exchange(index.shards, std::vector<Shard>(index.shards.size()));
    index.places.clear();
    index.size = index.gone = 0;
    for (std::size_t number = 0; number < old.size(); ++number) {
      const Shard& shard = old[number];
      for (std::size_t at = 0; at < shard.rows.size(); ++at) {
        if (is_gone(shard.rows[at])) continue;
        const bool available = shard.available.next(static_cast<std::int64_t>(at)) == static_cast<std::int64_t>(at);
        index.append(shard.rows[at], static_cast<std::int64_t>(number), available);
      }
    }
  }
}

std::vector<std::int64_t> Shards::wrong_widths(const std::vector<std::int64_t>& available,
                                               const std::function<std::string_view(std::int64_t row)>& id_of) const {
  std::vector<std::int64_t> wrong;
  for (const Index& index : indexes_) {
    std::vector<std::int64_t> rows;
    bool right = true;
    for (std::size_t number = 0; number < index.shards.size(); ++number) {
      const Shard& shard = index.shards[number];
      for (std::int64_t at = shard.available.next(0); at >= 0; at = shard.available.next(at + 1)) {
        rows.push_back(shard.rows[static_cast<std::size_t>(at)]);
        right = right && dp_partition(id_of(rows.back()), index.width) == static_cast<std::int64_t>(number);
      }
    }
    std::sort(rows.begin(), rows.end());
    if (!right || rows != available) wrong.push_back(index.width);
  }
  return wrong;
}

}  // namespace draftflow::memory
