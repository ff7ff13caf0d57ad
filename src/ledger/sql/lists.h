// SPDX-License-Identifier: Apache-2.0
//
// Statements over many rows at once, so that a batch costs a few statements and not one a row. Their texts are kept in the
// lengths 1, 2, 4 ... 256 only, so that few are ever prepared. Immutable; any thread. Private to this room.
//
//   static const InList kForget("UPDATE sample SET claims = claims - ?1 WHERE row IN ", 2);
//   kForget.for_parts(rows, [&](const std::string& sql, const std::vector<Value>& part) { db.run(sql, 1, part); });
//   static const RowList kRefs("INSERT INTO sample_ref(row, json) VALUES ", 2);
//   kRefs.for_parts(n, [&](const std::string& sql, std::size_t from, std::size_t to) { db.run(sql, values_of(from, to)); });
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "ledger/sql/database.h"

namespace draftflow::sql {

constexpr std::size_t kMostRows = 256;  // of one statement
using Lengths = std::array<std::string, std::bit_width(kMostRows)>;

// ... IN (?first, ?first + 1, ...) ...
class InList {
 public:
  InList(std::string_view before, int first, std::string_view after = "") {
    for (std::size_t i = 0; i < texts_.size(); ++i) {
      std::string& text = texts_[i] = std::string(before) + "(";
      for (int at = first; at < first + (1 << i); ++at) text += fmt::format("{}?{}", at == first ? "" : ", ", at);
      (text += ")") += after;
    }
  }

  // The last value of a part is said again until the part has one of the lengths.
  template <class T, class Use>
  void for_parts(const std::vector<T>& all, Use use) const {
    std::vector<Value> part;
    for (std::size_t from = 0; from < all.size(); from += kMostRows) {
      const std::size_t count = std::min(kMostRows, all.size() - from), length = std::bit_ceil(count);
      part.clear();
      for (std::size_t i = 0; i < length; ++i) part.emplace_back(all[from + std::min(i, count - 1)]);
      use(texts_[std::bit_width(length) - 1], part);
    }
  }

 private:
  Lengths texts_;
};

// ... (?1, ?2), (?3, ?4) ...
class RowList {
 public:
  RowList(std::string_view before, int columns, std::string_view after = "") {
    for (std::size_t i = 0; i < texts_.size(); ++i) {
      std::string& text = texts_[i] = before;
      for (int at = 1; at <= columns * (1 << i); ++at) {
        const int column = (at - 1) % columns;
        text += fmt::format("{}?{}{}", column > 0 ? ", " : at == 1 ? "(" : ", (", at, column == columns - 1 ? ")" : "");
      }
      text += after;
    }
  }

  // From `rows` rows those from `from` to before `to`, whose number is one of the lengths.
  template <class Use>
  void for_parts(std::size_t rows, Use use) const {
    for (std::size_t from = 0; from < rows;) {
      const std::size_t length = std::bit_floor(std::min(kMostRows, rows - from));
      use(texts_[std::bit_width(length) - 1], from, from + length);
      from += length;
    }
  }

 private:
  Lengths texts_;
};

}  // namespace draftflow::sql
