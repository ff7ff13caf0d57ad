// SPDX-License-Identifier: Apache-2.0
//
// GatherWriter: writes a new file front to back in calls that end, but where `flush` is asked for, at multiples of kWindowBytes
// of it: the page cache then keeps it in few large folios, quicker to write and to read again (docs/dead-ends.md). One owner,
// one thread. Errors as in base/file.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace draftflow {

class GatherWriter {
 public:
  static constexpr std::uint64_t kWindowBytes = 1 << 20;

  GatherWriter(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

  void add(std::span<const std::byte> bytes);       // which stay where they are until they are written
  void add_copy(std::span<const std::byte> bytes);  // which may go when this returns
  void flush();
  std::uint64_t written() const { return written_; }  // bytes; the rest waits for its window to be full

 private:
  struct Copies {
    std::unique_ptr<std::byte[]> memory;
    std::size_t used = 0;
  };

  std::uint64_t room_in_window() const;
  void add_piece(std::span<const std::byte> piece);

  const int fd_;
  const std::string path_;
  std::uint64_t written_ = 0, waiting_bytes_ = 0;
  std::vector<std::span<const std::byte>> waiting_;
  std::vector<Copies> copies_;  // of what is waiting; blocks of kCopiesBytes, the last in use
};

}  // namespace draftflow
