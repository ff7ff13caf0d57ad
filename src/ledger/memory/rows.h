// SPDX-License-Identifier: Apache-2.0
//
// Rows: values by row number, in pieces that never move and are made when a row of theirs is first written. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace draftflow::memory {

template <class T>
class Rows {
 public:
  static constexpr std::int64_t kPiece = 1024;

  // Of a row that has been written.
  T& operator[](std::int64_t row) { return pieces_[piece_of(row)][place_of(row)]; }
  const T& operator[](std::int64_t row) const { return pieces_[piece_of(row)][place_of(row)]; }

  T& write(std::int64_t row) {
    const std::size_t piece = piece_of(row);
    if (pieces_.size() <= piece) pieces_.resize(piece + 1);
    if (!pieces_[piece]) pieces_[piece] = std::make_unique<T[]>(kPiece);
    return pieces_[piece][place_of(row)];
  }

  void clear() { pieces_.clear(); }

 private:
  static std::size_t piece_of(std::int64_t row) { return static_cast<std::size_t>(row / kPiece); }
  static std::size_t place_of(std::int64_t row) { return static_cast<std::size_t>(row % kPiece); }

  std::vector<std::unique_ptr<T[]>> pieces_;
};

}  // namespace draftflow::memory
