// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/gather_writer.h"

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

constexpr std::size_t kCopiesBytes = 16 << 10;

}  // namespace

std::uint64_t GatherWriter::room_in_window() const {
  return kWindowBytes - (written_ + waiting_bytes_) % kWindowBytes;
}

// At most what the window has room for. What lies behind the last piece in memory goes on as a part of it.
void GatherWriter::add_piece(std::span<const std::byte> piece) {
  constexpr std::size_t kMostPieces = 512;  // of 1,024 that one call takes
  const bool last = piece.size() == room_in_window();
  if (!waiting_.empty() && std::to_address(waiting_.back().end()) == piece.data()) {
    waiting_.back() = {waiting_.back().data(), waiting_.back().size() + piece.size()};
  } else {
    waiting_.push_back(piece);
  }
  waiting_bytes_ += piece.size();
  if (last || waiting_.size() == kMostPieces) flush();
}

void GatherWriter::add(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min<std::uint64_t>(bytes.size(), room_in_window()));
    add_piece(piece);
    bytes = bytes.subspan(piece.size());
  }
}

void GatherWriter::add_copy(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (copies_.empty() || copies_.back().used == kCopiesBytes) {
      copies_.push_back({std::make_unique_for_overwrite<std::byte[]>(kCopiesBytes), 0});
    }
    Copies& copies = copies_.back();
    const std::uint64_t room = std::min<std::uint64_t>(room_in_window(), kCopiesBytes - copies.used);
    const auto piece = bytes.first(std::min<std::uint64_t>(bytes.size(), room));
    std::byte* copy = copies.memory.get() + copies.used;
    std::memcpy(copy, piece.data(), piece.size());
    copies.used += piece.size();
    add_piece({copy, piece.size()});  // which lets the copies go when it writes
    bytes = bytes.subspan(piece.size());
  }
}

void GatherWriter::flush() {
  std::vector<iovec> parts;
  parts.reserve(waiting_.size());
  for (const auto piece : waiting_) parts.push_back({const_cast<std::byte*>(piece.data()), piece.size()});
  for (std::size_t at = 0; at < parts.size();) {
    const ssize_t wrote = ::writev(fd_, &parts[at], static_cast<int>(parts.size() - at));
    if (wrote < 0) {
      if (errno == EINTR) continue;
      throw_errno(errno, "writing " + path_);
    }
    std::size_t left = static_cast<std::size_t>(wrote);
    written_ += left;
    for (; at < parts.size() && left >= parts[at].iov_len; ++at) left -= parts[at].iov_len;
    if (left == 0) continue;
    parts[at].iov_base = static_cast<std::byte*>(parts[at].iov_base) + left;
    parts[at].iov_len -= left;
  }
  waiting_.clear();
  waiting_bytes_ = 0;
  copies_.clear();
}

}  // namespace draftflow
