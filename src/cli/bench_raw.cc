// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_raw.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/sha.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "cli/bench.h"
#include "draftflow/base/error.h"
#include "draftflow/base/random.h"

namespace draftflow::cli {
namespace {

constexpr std::size_t kPieceBytes = 1 << 20;

std::string sha256_hex(const std::string& text) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  std::string hex;
  for (const unsigned char byte : digest) hex += fmt::format("{:02x}", byte);
  return hex;
}

UniqueFd open_at(int folder, const std::string& name, int flags) {
  UniqueFd fd(::openat(folder, name.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0660));
  if (!fd) throw_errno(errno, "opening " + name);
  return fd;
}

}  // namespace

void write_raw_file(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  UniqueFd fd = open_file(path, O_WRONLY | O_CREAT | O_EXCL);
  for (std::size_t at = 0; at < bytes.size(); at += kPieceBytes) {
    write_all(fd.get(), bytes.subspan(at, std::min(kPieceBytes, bytes.size() - at)), path);
  }
  fd.close_checked(path);
}

void read_raw_file(const std::filesystem::path& path, std::span<std::byte> out) {
  const UniqueFd fd = open_file(path, O_RDONLY);
  for (std::size_t at = 0; at < out.size(); at += kPieceBytes) {
    read_exact(fd.get(), out.subspan(at, std::min(kPieceBytes, out.size() - at)), at, path);
  }
}

RawNames raw_names(const std::string& sample_id, std::uint64_t generation) {
  const std::string hash = sha256_hex(sample_id), folder = sample_id + "~" + hash;
  RawNames names;
  names.temporary = hash.substr(0, 32) + ".tmp";
  names.folder = hash.substr(0, 2) + "/" + folder;
  names.file = fmt::format("{}/{}.g{}.safetensors", names.folder, sample_id, generation);
  names.lease = fmt::format("{}.g{}.1", folder, generation);
  return names;
}

RawStore::RawStore(const std::filesystem::path& store)
    : path_(store),
      temporaries_(open_file(store / "tmp", O_RDONLY | O_DIRECTORY)),
      samples_(open_file(store / "samples", O_RDONLY | O_DIRECTORY)) {
  for (int i = 0; i < 256; ++i) ::mkdirat(samples_.get(), fmt::format("{:02x}", i).c_str(), 0770);
  const std::filesystem::path leases = store / "leases" / random_hex128();
  make_folders(leases);
  leases_ = open_file(leases, O_RDONLY | O_DIRECTORY);
}

std::uint64_t RawStore::size_of(const RawNames& names) const {
  return file_size(open_at(samples_.get(), names.file, O_RDONLY).get(), path_ / names.file);
}

void RawStore::put(const RawNames& names, std::span<const std::byte> bytes) {
  const UniqueFd fd = open_at(temporaries_.get(), names.temporary, O_WRONLY | O_CREAT | O_EXCL);
  if (::write(fd.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) {
    throw_errno(errno, "writing " + names.temporary);
  }
  if (::mkdirat(samples_.get(), names.folder.c_str(), 0770) != 0) throw_errno(errno, "making " + names.folder);
  if (::renameat2(temporaries_.get(), names.temporary.c_str(), samples_.get(), names.file.c_str(), RENAME_NOREPLACE) != 0) {
    throw_errno(errno, "renaming to " + names.file);
  }
}

void RawStore::get(const RawNames& names, std::span<std::byte> out) {
  const UniqueFd fd = open_at(samples_.get(), names.file, O_RDONLY);
  if (::read(fd.get(), out.data(), out.size()) <= 0) throw_errno(errno, "reading " + names.file);
  if (::linkat(samples_.get(), names.file.c_str(), leases_.get(), names.lease.c_str(), 0) != 0) {
    throw_errno(errno, "linking " + names.lease);
  }
}

void RawStore::map_and_unmap(const RawNames& names, double& seconds) {
  const std::uint64_t size = size_of(names);
  void* memory = nullptr;
  seconds += seconds_of([&] {
    const UniqueFd fd = open_at(samples_.get(), names.file, O_RDONLY);
    if (::linkat(samples_.get(), names.file.c_str(), leases_.get(), names.lease.c_str(), 0) != 0) {
      throw_errno(errno, "linking " + names.lease);
    }
    memory = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
    if (memory == MAP_FAILED) throw_errno(errno, "mapping " + names.file);
  });
  ::munmap(memory, size);
  release(names);
}

void RawStore::release(const RawNames& names) {
  if (::unlinkat(leases_.get(), names.lease.c_str(), 0) != 0) throw_errno(errno, "removing " + names.lease);
}

void RawStore::remove(const RawNames& names) {
  if (::unlinkat(samples_.get(), names.file.c_str(), 0) != 0) throw_errno(errno, "removing " + names.file);
  if (::unlinkat(samples_.get(), names.folder.c_str(), AT_REMOVEDIR) != 0) throw_errno(errno, "removing " + names.folder);
}

}  // namespace draftflow::cli
