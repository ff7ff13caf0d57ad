// SPDX-License-Identifier: Apache-2.0
//
// IdIndex: from an id to its row in about 16 bytes a row; the ids themselves lie with the rows. Nothing is ever removed, and
// nothing depends on the order of the hashes. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <utility>
#include <vector>

namespace draftflow::memory {

class IdIndex {
 public:
  // The row of the id, or -1; `id_of(row)` gives the id of a row.
  template <class IdOf>
  std::int64_t find(std::string_view id, IdOf id_of) const {
    if (slots_.empty()) return -1;
    const std::uint32_t hash = hash_of(id);
    for (std::size_t at = hash & (slots_.size() - 1);; at = (at + 1) & (slots_.size() - 1)) {
      const Slot& slot = slots_[at];
      if (slot.next_row == 0) return -1;
      if (slot.hash == hash && id_of(std::int64_t{slot.next_row} - 1) == id) return std::int64_t{slot.next_row} - 1;
    }
  }

  // An id that is not there yet.
  void insert(std::string_view id, std::int64_t row) {
    if (slots_.size() * 5 <= (size_ + 1) * 8) grow();
    place({hash_of(id), static_cast<std::uint32_t>(row + 1)});
    ++size_;
  }

 private:
  struct Slot {
    std::uint32_t hash = 0, next_row = 0;  // row + 1; 0: free
  };

  static std::uint32_t hash_of(std::string_view id) {
    const std::uint64_t hash = std::hash<std::string_view>()(id);
    return static_cast<std::uint32_t>(hash ^ hash >> 32);
  }

  void place(Slot slot) {
    std::size_t at = slot.hash & (slots_.size() - 1);
    while (slots_[at].next_row != 0) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = slot;
  }

  void grow() {
    std::vector<Slot> old(slots_.empty() ? 64 : 2 * slots_.size());
    std::swap(old, slots_);
    for (const Slot& slot : old) {
      if (slot.next_row != 0) place(slot);
    }
  }

  std::vector<Slot> slots_;  // a power of two, or none
  std::size_t size_ = 0;
};

}  // namespace draftflow::memory
