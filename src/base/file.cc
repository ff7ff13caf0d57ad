// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"

namespace draftflow {

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

int UniqueFd::release() {
  return std::exchange(fd_, -1);
}

void UniqueFd::reset() {
  if (fd_ >= 0) ::close(release());
}

void UniqueFd::close_checked(const std::string& path) {
  if (fd_ >= 0 && ::close(release()) != 0 && errno != EINTR) throw_errno(errno, "closing " + path);
}

UniqueFd open_file(const std::filesystem::path& path, int flags, unsigned mode) {
  for (;;) {
    const int fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    if (fd >= 0) return UniqueFd(fd);
    if (errno != EINTR) throw_errno(errno, "opening " + path.string());
  }
}

std::uint64_t file_size(int fd, const std::string& path) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw_errno(errno, "fstat of " + path);
  if (!S_ISREG(status.st_mode)) throw InvalidArgument(path + " is not a regular file");
  return static_cast<std::uint64_t>(status.st_size);
}

void read_exact(int fd, std::span<std::byte> out, std::uint64_t offset, const std::string& path) {
  std::size_t have = 0;
  while (have < out.size()) {
    const ssize_t got = ::pread(fd, out.data() + have, out.size() - have, static_cast<off_t>(offset + have));
    if (got < 0) {
      if (errno == EINTR) continue;
      throw_errno(errno, "reading " + path);
    }
    if (got == 0) {
      throw Corrupt(fmt::format("{} ends at byte {}, but {} bytes from offset {} were expected: the file is truncated", path,
                                offset + have, out.size(), offset));
    }
    have += static_cast<std::size_t>(got);
  }
}

void write_all(int fd, std::span<const std::byte> data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t wrote = ::write(fd, data.data(), data.size());
    if (wrote < 0) {
      if (errno == EINTR) continue;
      throw_errno(errno, "writing " + path);
    }
    data = data.subspan(static_cast<std::size_t>(wrote));
  }
}

MappedFile map_file(int fd, const std::string& path) {
  const std::uint64_t size = file_size(fd, path);
  if (size == 0) return {};
  // Private and writable: who writes to a view by mistake gets a page of its own, and never SIGSEGV or another's bytes.
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
  if (memory == MAP_FAILED) throw_errno(errno, "mapping " + path);
  return {{static_cast<const std::byte*>(memory), size},
          {memory, [size](const void* mapped) { ::munmap(const_cast<void*>(mapped), size); }}};
}

std::string read_text_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  const UniqueFd fd = open_file(path, O_RDONLY | O_NONBLOCK);  // a pipe with this name must not hang us
  const std::uint64_t size = file_size(fd.get(), path);
  if (size > max_bytes) {
    throw InvalidArgument(fmt::format("{} has {} bytes: at most {} are read here", path.string(), size, max_bytes));
  }
  std::string text(size, '\0');
  read_exact(fd.get(), std::as_writable_bytes(std::span(text)), 0, path);
  return text;
}

void replace_file(const std::filesystem::path& path, std::string_view text) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(text));
  replace_file(path, std::span(&bytes, 1));
}

void replace_file(const std::filesystem::path& path, std::span<const std::span<const std::byte>> parts) {
  std::filesystem::path temporary = path;
  temporary += "." + random_hex128().substr(0, 12) + ".tmp";
  try {
    UniqueFd fd = open_file(temporary, O_WRONLY | O_CREAT | O_EXCL);
    for (const auto part : parts) write_all(fd.get(), part, temporary);
    if (::fsync(fd.get()) != 0) throw_errno(errno, "fsync of " + temporary.string());
    fd.close_checked(temporary);
    if (::rename(temporary.c_str(), path.c_str()) != 0) throw_errno(errno, "renaming onto " + path.string());
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  sync_folder(path.has_parent_path() ? path.parent_path() : ".");
}

void make_folders(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw_errno(error.value(), "making the folder " + path.string());
}

void sync_folder(const std::filesystem::path& path) {
  const UniqueFd fd = open_file(path, O_RDONLY | O_DIRECTORY);
  if (::fsync(fd.get()) != 0) throw_errno(errno, "fsync of the folder " + path.string());
}

}  // namespace draftflow
