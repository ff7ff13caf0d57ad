// SPDX-License-Identifier: Apache-2.0
//
// Shards: which refs of a queue are available in each partition, for the numbers of partitions that are asked for. The index of
// a number is built when it is first asked for, from what the queue holds, and kept up from then on; of more than kMostIndexes
// numbers the one that was not asked for the longest is forgotten. Refs that are gone are left out again when they are as many
// as the others, so that an index costs some 12 bytes for each ref that may come again. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <string_view>
#include <vector>

#include "ledger/memory/row_set.h"
#include "ledger/memory/rows.h"

namespace draftflow::memory {

// One partition: its refs in commit order, and which of them are available.
struct Shard {
  std::vector<std::uint32_t> rows;
  RowSet available;  // places in `rows`
};

class Shards {
 public:
  static constexpr std::size_t kMostIndexes = 16;
  using Visit = std::function<void(std::int64_t row, std::string_view id, bool available)>;

  // The partition. `each` visits what the queue holds or may hold again, in commit order; it is called to build an index.
  const Shard& of(std::int64_t width, std::int64_t index, const std::function<void(const Visit&)>& each);

  // The newest ref of the queue.
  void append(std::int64_t row, std::string_view id);
  // Of a ref that the queue has had all along.
  void set_available(std::int64_t row, bool available);
  // It never comes again; it was not available.
  void gone();
  // To be called now and then: leaves out what is gone, as `is_gone` says.
  void tidy(const std::function<bool(std::int64_t row)>& is_gone);
  void clear() { indexes_.clear(); }
  // For a check of the books: the numbers of partitions whose index does not have just these available refs.
  std::vector<std::int64_t> wrong_widths(const std::vector<std::int64_t>& available,
                                         const std::function<std::string_view(std::int64_t row)>& id_of) const;
  std::size_t indexes() const { return indexes_.size(); }

 private:
  struct Place {
    std::uint32_t shard = 0, at = 0;
  };
  struct Index {
    std::int64_t width = 0, size = 0, gone = 0;
    std::vector<Shard> shards;
    Rows<Place> places;  // of each row

    void append(std::int64_t row, std::int64_t partition, bool available);
  };

  std::list<Index> indexes_;  // the one that was asked for last comes first
};

}  // namespace draftflow::memory
