// SPDX-License-Identifier: Apache-2.0
//
// RowSet: a set of row numbers as bits, with a bit a 64 words above them and so on, so that the first one from anywhere on is
// found in a few steps whatever the number of rows. Grows with the greatest row; an eighth of a byte a row. Not thread-safe.
//
//   set.insert(7);
//   for (std::int64_t row = set.next(0); row >= 0; row = set.next(row + 1)) ...
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace draftflow::memory {

class RowSet {
 public:
  void insert(std::int64_t row) {
    auto at = static_cast<std::uint64_t>(row);
    for (std::size_t level = 0;; ++level, at >>= 6) {
      if (level == levels_.size()) add_level();
      auto& words = levels_[level];
      if (words.size() <= at >> 6) words.resize((at >> 6) + 1);
      words[at >> 6] |= 1ULL << (at & 63);
      if (level + 1 == levels_.size() && words.size() == 1) return;
    }
  }

  void erase(std::int64_t row) {
    auto at = static_cast<std::uint64_t>(row);
    for (auto& words : levels_) {
      if (words.size() <= at >> 6) return;
      if ((words[at >> 6] &= ~(1ULL << (at & 63))) != 0) return;
      at >>= 6;
    }
  }

  // The first row from `from` on, or -1.
  std::int64_t next(std::int64_t from) const {
    auto at = static_cast<std::uint64_t>(from);
    std::size_t level = 0;
    for (;; ++level, at = (at >> 6) + 1) {  // up, until a word has something to the right
      if (level == levels_.size() || levels_[level].size() <= at >> 6) return -1;
      if (const std::uint64_t rest = levels_[level][at >> 6] >> (at & 63); rest != 0) {
        at += static_cast<std::uint64_t>(std::countr_zero(rest));
        break;
      }
    }
    for (; level > 0; --level) at = (at << 6) + static_cast<std::uint64_t>(std::countr_zero(levels_[level - 1][at]));
    return static_cast<std::int64_t>(at);
  }

  void clear() { levels_.clear(); }

 private:
  // A new top of one word over what is below it.
  void add_level() {
    std::uint64_t word = 0;
    if (!levels_.empty() && levels_.back().front() != 0) word = 1;
    levels_.push_back({word});
  }

  std::vector<std::vector<std::uint64_t>> levels_;  // the last one has one word
};

}  // namespace draftflow::memory
