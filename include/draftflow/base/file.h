// SPDX-License-Identifier: Apache-2.0
//
// Files: descriptors that close themselves, whole reads and writes, and the two ways to publish a file atomically.
// All functions throw by errno (base/error.h) naming the path, which those that have a descriptor need for nothing else; EINTR
// is retried; short reads and writes are completed.
// A UniqueFd has one owner; the functions are thread-safe on different paths.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace draftflow {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release();
  void reset();                                 // closes, ignoring errors: for reads and for paths already failing
  void close_checked(const std::string& path);  // closes and throws if the file system reports a late error

 private:
  int fd_ = -1;
};

// open(2) with O_CLOEXEC; NotFound, PermissionDenied and so on name the path.
UniqueFd open_file(const std::filesystem::path& path, int flags, unsigned mode = 0660);

std::uint64_t file_size(int fd, const std::string& path);

// Reads exactly `out.size()` bytes at `offset`; a file that ends before is Corrupt.
void read_exact(int fd, std::span<std::byte> out, std::uint64_t offset, const std::string& path);
void write_all(int fd, std::span<const std::byte> data, const std::string& path);

// The whole file as text. A file over max_bytes is InvalidArgument, naming both sizes.
std::string read_text_file(const std::filesystem::path& path, std::uint64_t max_bytes = 1ULL << 30);

// The whole file, mapped for reading while `owner` lives. Of an empty file nothing is mapped. For local file systems: where
// another host, or a writer in place, cuts the file short, reading behind its end is a SIGBUS.
struct MappedFile {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};
MappedFile map_file(int fd, const std::string& path);

// Replaces `path` in one step: a temporary beside it, fsync, rename, fsync of the folder. After a failure the old file is
// untouched and no temporary is left.
void replace_file(const std::filesystem::path& path, std::string_view text);
void replace_file(const std::filesystem::path& path, std::span<const std::span<const std::byte>> parts);  // one after another

// Makes the folder (and its parents); fsyncs nothing.
void make_folders(const std::filesystem::path& path);
void sync_folder(const std::filesystem::path& path);

}  // namespace draftflow
