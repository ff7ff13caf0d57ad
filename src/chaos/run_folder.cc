// SPDX-License-Identifier: Apache-2.0
#include "chaos/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "draftflow/base/error.h"

namespace draftflow::chaos {
namespace {

constexpr std::uint64_t kDiskBytes = 2ULL << 30;  // of memory, of which a run takes what it writes
constexpr const char* kPrefix = "dfchaos.";

UniqueFd lock_folder(const std::filesystem::path& folder) {
  UniqueFd lock = open_file(folder / "lock.new", O_RDWR | O_CREAT, 0600);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) throw_errno(errno, "locking " + folder.string());
  std::filesystem::rename(folder / "lock.new", folder / "lock");
  return lock;
}

// The lock has its name only when it is held, so a folder whose lock can be had is of a run that was killed.
void remove_abandoned(const std::filesystem::path& root) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(root, ignored)) {
    if (!entry.path().filename().string().starts_with(kPrefix)) continue;
    const UniqueFd lock(::open((entry.path() / "lock").c_str(), O_RDWR | O_CLOEXEC));
    if (lock && ::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) std::filesystem::remove_all(entry.path(), ignored);
  }
}

// Once for the process: from here on its mounts are its own.
bool has_own_mounts() {
  static const bool done =
      ::geteuid() == 0 && ::unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  return done;
}

}  // namespace

RunFolder::RunFolder() {
  const std::filesystem::path root = std::filesystem::temp_directory_path();
  remove_abandoned(root);
  std::string pattern = root / (std::string(kPrefix) + "XXXXXX");
  if (::mkdtemp(pattern.data()) == nullptr) throw_errno(errno, "making " + pattern);
  path_ = pattern;
  lock_ = lock_folder(path_);
  for (const char* name : {"disk", "logs", "rdv"}) make_folders(path_ / name);
  const std::string options = fmt::format("size={},mode=0700", kDiskBytes);
  mounted_ = has_own_mounts() && ::mount("tmpfs", (path_ / "disk").c_str(), "tmpfs", 0, options.c_str()) == 0;
}

RunFolder::~RunFolder() {
  std::error_code ignored;
  // To look into afterwards.
  if (const char* kept = std::getenv("DRAFTFLOW_CHAOS_KEEP"); kept != nullptr) {
    std::filesystem::copy(
        path_, kept, std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing, ignored);
  }
  if (mounted_) ::umount2((path_ / "disk").c_str(), MNT_DETACH);
  std::filesystem::remove_all(path_, ignored);
}

bool RunFolder::resize(std::uint64_t bytes) const {
  return ::mount("tmpfs", (path_ / "disk").c_str(), "tmpfs", MS_REMOUNT, fmt::format("size={}", bytes).c_str()) == 0;
}

void RunFolder::squeeze(std::uint64_t left) {
  struct statvfs disk {};
  if (!mounted_ || ::statvfs((path_ / "disk").c_str(), &disk) != 0) return;
  resize((disk.f_blocks - disk.f_bfree) * disk.f_frsize + left);  // refused if it has grown beyond that meanwhile
}

void RunFolder::relax() {
  if (mounted_) resize(kDiskBytes);
}

}  // namespace draftflow::chaos
