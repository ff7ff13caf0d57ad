// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/gather_writer.h"

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "draftflow/base/error.h"

namespace draftflow {

std::uint64_t GatherWriter::room_in_window() const {
  return kWindowBytes - (written_ + waiting_bytes_) % kWindowBytes;
}

void GatherWriter::add(std::span<const std::byte> bytes) {
  constexpr std::size_t kMostPieces = 512;  // of 1,024 that one call takes
  while (!bytes.empty()) {
    const std::uint64_t room = room_in_window();
    const auto piece = bytes.first(std::min<std::uint64_t>(bytes.size(), room));
    waiting_.push_back(piece);
    waiting_bytes_ += piece.size();
    bytes = bytes.subspan(piece.size());
    if (piece.size() == room || waiting_.size() == kMostPieces) flush();
  }
}

void GatherWriter::add_copy(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {  // by windows: `add` lets the copies go when it writes
    const std::uint64_t room = room_in_window();
    const auto piece = bytes.first(std::min<std::uint64_t>(bytes.size(), room));
    copies_.push_back(std::make_unique_for_overwrite<std::byte[]>(piece.size()));
    std::memcpy(copies_.back().get(), piece.data(), piece.size());
    add({copies_.back().get(), piece.size()});
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
