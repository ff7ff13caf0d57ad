// SPDX-License-Identifier: Apache-2.0
#include "draftflow/store/secret.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"

namespace draftflow {
namespace {

// A buffer that is wiped however its scope is left.
struct Wiped {
  explicit Wiped(std::size_t size) : bytes(size) {}
  Wiped(const Wiped&) = delete;
  Wiped& operator=(const Wiped&) = delete;
  ~Wiped() { sodium_memzero(bytes.data(), bytes.size()); }
  std::vector<std::byte> bytes;
};

// Checked and trimmed alike wherever a secret comes from, so that the same text is the same secret.
std::span<const std::byte> trimmed(std::span<const std::byte> bytes, const std::string& source) {
  if (bytes.size() > kMaxSecretBytes) {
    throw InvalidArgument(
        fmt::format("the store's secret in {} is longer than {} bytes, the most that is allowed: is it the right one?", source,
                    kMaxSecretBytes));
  }
  if (!bytes.empty() && bytes.back() == std::byte{'\n'}) {
    bytes = bytes.first(bytes.size() - 1);
    if (!bytes.empty() && bytes.back() == std::byte{'\r'}) bytes = bytes.first(bytes.size() - 1);
  }
  if (bytes.empty()) {
    throw InvalidArgument(
        fmt::format("the store's secret in {} is empty: put at least one byte there, better 32 random ones", source));
  }
  return bytes;
}

void check_mode(int fd, const std::filesystem::path& path) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw_errno(errno, "fstat of " + path.string());
  if (!S_ISREG(status.st_mode))
    throw InvalidArgument(path.string() + " is not a regular file: a store's secret is read from one");
  if ((status.st_mode & 007) == 0) return;
  throw PermissionDenied(
      fmt::format("{} holds a store's secret and has mode {:03o}, open to everybody: chmod 600 (or 640, for "
                  "the group) and choose a new secret if others could have read it",
                  path.string(), status.st_mode & 0777));
}

std::size_t read_up_to(int fd, std::span<std::byte> out, const std::filesystem::path& path) {
  std::size_t have = 0;
  while (have < out.size()) {
    const ssize_t got = ::read(fd, out.data() + have, out.size() - have);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno(errno, "reading " + path.string());
    if (got == 0) break;
    have += static_cast<std::size_t>(got);
  }
  return have;
}

}  // namespace

void Secret::Free::operator()(std::byte* memory) const {
  sodium_free(memory);
}

Secret::Secret(std::span<const std::byte> bytes) : size_(bytes.size()) {
  if (sodium_init() < 0) throw Unavailable("libsodium could not be initialised: is /dev/urandom there?");
  memory_.reset(static_cast<std::byte*>(sodium_malloc(bytes.size())));
  if (memory_ == nullptr) throw Exhausted("no memory for a store's secret: free some and retry");
  std::memcpy(memory_.get(), bytes.data(), bytes.size());
}

Secret Secret::from_file(const std::filesystem::path& path) {
  const UniqueFd fd = open_file(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);  // a pipe with this name must not hang us
  check_mode(fd.get(), path);
  Wiped read(kMaxSecretBytes + 1);
  const std::size_t size = read_up_to(fd.get(), read.bytes, path);
  return Secret(trimmed(std::span(read.bytes).first(size), path.string()));
}

std::optional<Secret> Secret::from_environment(const char* name, Afterwards afterwards) {
  char* const value = std::getenv(name);
  if (value == nullptr) return std::nullopt;
  const std::size_t size = std::strlen(value);
  Wiped copy(size + 1);
  std::memcpy(copy.bytes.data(), value, size);
  if (afterwards == Afterwards::kTake) {
    // The kernel shows the memory that the process started with: unsetting alone leaves it there.
    sodium_memzero(value, size);
    if (::unsetenv(name) != 0) throw_errno(errno, fmt::format("unsetting {}", name));
  }
  return Secret(trimmed(std::span(copy.bytes).first(size), fmt::format("the environment variable {}", name)));
}

Secret Secret::from_bytes(std::string_view bytes) {
  return Secret(trimmed(std::as_bytes(std::span(bytes)), "memory"));
}

std::shared_ptr<const Secret> find_secret(const std::filesystem::path& file, std::shared_ptr<const Secret> other) {
  return file.empty() ? std::move(other) : std::make_shared<Secret>(Secret::from_file(file));
}

}  // namespace draftflow
