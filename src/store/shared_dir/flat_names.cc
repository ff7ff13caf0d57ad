// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/flat_names.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"
#include "draftflow/base/random.h"
#include "store/shared_dir/names.h"
#include "store/shared_dir/temporary.h"
#include "store/shared_dir/torch_generation.h"

namespace draftflow::store {
namespace {

// Of a regular file; anything else that somebody planted there is not ours. Errors of the disk are thrown.
UniqueFd open_regular(const Folder& folder, const std::string& name) {
  UniqueFd fd(::openat(folder.fd(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd && errno != ENOENT && errno != ELOOP && errno != ENXIO && errno != EACCES) {
    throw_errno(errno, "opening " + folder.shown(name));
  }
  struct stat status {};
  if (fd && ::fstat(fd.get(), &status) != 0) throw_errno(errno, "fstat of " + folder.shown(name));
  return fd && S_ISREG(status.st_mode) ? std::move(fd) : UniqueFd();
}

bool is_called(const std::string& name, const Identity& identity) {
  const auto parsed = parse_reference_name(name);
  return parsed && parsed->sample_id == identity.sample_id && parsed->generation == identity.generation;
}

}  // namespace

void FlatNames::give(const std::string& name, int fd, const std::string& path) const {
  if (link_file(fd, path, folder_, name, "publishing")) return;
  throw Unavailable(fmt::format("{} was removed while it was written: retry", path));
}

bool FlatNames::is_ours(const std::string& name) const {
  const UniqueFd fd = open_regular(folder_, name);
  const auto facts = fd ? find_torch_facts(fd.get(), folder_.shown(name)) : std::nullopt;
  return facts && facts->identity.incarnation == incarnation_ && is_called(name, facts->identity);
}

bool FlatNames::take_away(const std::string& name, int fd) const {
  if (!(fd >= 0 && folder_.holds(name, fd)) && !is_ours(name)) return false;
  folder_.unlink(name);  // what it says is in doubt where a reply can be lost
  return true;
}

bool FlatNames::is_missing(const std::string& name) const {
  struct stat status {};
  if (::fstatat(folder_.fd(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) return false;
  if (errno != ENOENT) throw_errno(errno, "looking at " + folder_.shown(name));
  return true;
}

void FlatNames::join(const std::string& name, int fd, const std::string& path, const Folder& temporaries) const {
  if (folder_.holds(name, fd) || !is_ours(name)) return;
  const std::string temporary = random_hex128() + ".tmp";
  if (!link_file(fd, path, temporaries, temporary, "joining the names of")) return;
  if (::renameat(temporaries.fd(), temporary.c_str(), folder_.fd(), name.c_str()) != 0) {
    const int error = errno;
    temporaries.unlink(temporary);
    throw_errno(error, "renaming to " + folder_.shown(name));
  }
}

void FlatNames::for_each_single(const std::function<void(const Single&)>& visit) const {
  for (const std::string& name : folder_.list()) {
    check_interrupt();
    if (!parse_reference_name(name)) continue;
    const std::string path = folder_.shown(name);
    const UniqueFd fd = open_regular(folder_, name);
    if (!fd || link_count(fd.get(), path) != 1) continue;
    const auto facts = find_torch_facts(fd.get(), path);
    if (!facts || facts->identity.incarnation != incarnation_ || !is_called(name, facts->identity)) continue;
    visit(
        {name, facts->identity.sample_id, facts->identity.generation, file_size(fd.get(), path), modified_ms(fd.get(), path)});
  }
}

}  // namespace draftflow::store
