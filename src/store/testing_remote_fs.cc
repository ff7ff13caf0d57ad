// SPDX-License-Identifier: Apache-2.0
#include "store/testing_remote_fs.h"

#ifndef DRAFTFLOW_HAVE_FUSE3

namespace draftflow::store_testing {

RemoteFs::RemoteFs(const std::filesystem::path&) : why_not_("libfuse3 was not found when this was built (make deps)") {}
RemoteFs::~RemoteFs() = default;
void RemoteFs::set(const RemoteModel&) {}
std::uint64_t RemoteFs::requests() const {
  return 0;
}

}  // namespace draftflow::store_testing

#else

#define FUSE_USE_VERSION 312
#include <dirent.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <unordered_map>
#include <utility>
#include <vector>

#include "draftflow/base/file.h"

namespace draftflow::store_testing {

struct RemoteFs::Shared {
  RemoteModel model;
  std::atomic<std::uint64_t> requests{0};
};

namespace {

constexpr std::size_t kMaxRead = 1 << 20;

struct Inode {
  UniqueFd fd;  // O_PATH: the handle, whatever becomes of the name
  std::pair<dev_t, ino_t> key;
  std::uint64_t lookups = 0;
  int opens = 0;
  fuse_ino_t silly_folder = 0;
  std::string silly_name;  // not empty: to unlink at the last close
};

struct Entry {
  std::string name;
  ino_t ino;
  unsigned char type;
};
using Listing = std::vector<Entry>;

std::string proc_path(int fd) {
  return "/proc/self/fd/" + std::to_string(fd);
}

class Server {
 public:
  Server(UniqueFd root, UniqueFd removed, const RemoteModel& model, std::atomic<std::uint64_t>& requests)
      : model_(model), requests_(requests), removed_(std::move(removed)) {
    struct stat status {};
    ::fstat(root.get(), &status);
    inodes_[FUSE_ROOT_ID] = {std::move(root), {status.st_dev, status.st_ino}, 1};
    by_key_[{status.st_dev, status.st_ino}] = FUSE_ROOT_ID;
  }

  const RemoteModel& model() const { return model_; }
  Inode& inode(fuse_ino_t ino) { return inodes_.at(ino); }
  int fd(fuse_ino_t ino) { return inode(ino).fd.get(); }
  double attribute_seconds() const { return model_.attribute_cache_ms / 1000.0; }

  // False: the request was answered with the planned error, or with ESTALE.
  bool enter(fuse_req_t request, fuse_ino_t ino) {
    const std::uint64_t number = requests_.fetch_add(1) + 1;
    int error = number == model_.fail_at ? model_.fail_error : 0;
    struct stat status {};
    if (error == 0 && model_.stale_when_removed && ::fstat(fd(ino), &status) == 0 && links_of(status) == 0) error = ESTALE;
    if (error != 0) fuse_reply_err(request, error);
    return error == 0;
  }

  int status_of(fuse_ino_t ino, struct stat& status) {
    if (::fstat(fd(ino), &status) != 0) return errno;
    status.st_nlink = model_.link_count_is_one && !S_ISDIR(status.st_mode) ? 1 : links_of(status);
    for (timespec* time : {&status.st_atim, &status.st_mtim, &status.st_ctim}) time->tv_sec += model_.clock_ahead_s;
    return 0;
  }

  // Finds a name and counts a look-up of it; 0 or an errno.
  int look_up(fuse_ino_t folder, const char* name, fuse_entry_param& entry) {
    UniqueFd found(::openat(fd(folder), name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
    if (!found) return errno;
    struct stat status {};
    if (::fstat(found.get(), &status) != 0) return errno;
    const std::pair key{status.st_dev, status.st_ino};
    const auto [known, is_new] = by_key_.try_emplace(key, next_);
    if (is_new) inodes_[next_++] = {std::move(found), key};
    ++inode(known->second).lookups;
    entry.ino = known->second;
    entry.attr_timeout = attribute_seconds();
    entry.entry_timeout = model_.name_cache_ms / 1000.0;
    return status_of(entry.ino, entry.attr);
  }

  void forget(fuse_ino_t ino, std::uint64_t lookups) {
    const auto found = inodes_.find(ino);
    if (found == inodes_.end() || ino == FUSE_ROOT_ID) return;
    found->second.lookups -= std::min(lookups, found->second.lookups);
    if (found->second.lookups > 0) return;
    by_key_.erase(found->second.key);
    inodes_.erase(found);
  }

  int unlink(fuse_ino_t folder, const char* name) {
    struct stat status {};
    if (::fstatat(fd(folder), name, &status, AT_SYMLINK_NOFOLLOW) != 0) return errno;
    const auto known = by_key_.find({status.st_dev, status.st_ino});
    if (model_.silly_rename && known != by_key_.end() && inode(known->second).opens > 0 && status.st_nlink == 1) {
      Inode& file = inode(known->second);
      file.silly_folder = folder;
      file.silly_name = ".nfs" + std::to_string(status.st_ino);
      return ::renameat(fd(folder), name, fd(folder), file.silly_name.c_str()) == 0 ? 0 : errno;
    }
    if (model_.link_by_handle) {
      ::linkat(fd(folder), name, removed_.get(), kept_name(status).c_str(), 0);  // it may be kept already
    }
    return ::unlinkat(fd(folder), name, 0) == 0 ? 0 : errno;
  }

  std::uint64_t keep(Listing listing) {
    listings_[++last_listing_] = std::move(listing);
    return last_listing_;
  }
  const Listing& listing(std::uint64_t number) const { return listings_.at(number); }
  void drop(std::uint64_t number) { listings_.erase(number); }

  void opened(fuse_ino_t ino) { ++inode(ino).opens; }
  void closed(fuse_ino_t ino) {
    Inode& file = inode(ino);
    if (--file.opens > 0 || file.silly_name.empty()) return;
    const auto folder = inodes_.find(file.silly_folder);
    if (folder != inodes_.end()) ::unlinkat(folder->second.fd.get(), file.silly_name.c_str(), 0);
    file.silly_name.clear();
  }

 private:
  static std::string kept_name(const struct stat& status) { return std::to_string(status.st_ino); }

  nlink_t links_of(const struct stat& status) const {
    struct stat kept {};
    const bool is_kept = status.st_nlink > 0 && ::fstatat(removed_.get(), kept_name(status).c_str(), &kept, 0) == 0 &&
                         kept.st_ino == status.st_ino;
    return status.st_nlink - (is_kept ? 1 : 0);
  }

  const RemoteModel& model_;
  std::atomic<std::uint64_t>& requests_;
  UniqueFd removed_;
  std::unordered_map<fuse_ino_t, Inode> inodes_;
  std::map<std::pair<dev_t, ino_t>, fuse_ino_t> by_key_;
  std::unordered_map<std::uint64_t, Listing> listings_;
  std::uint64_t last_listing_ = 0;
  fuse_ino_t next_ = FUSE_ROOT_ID + 1;
};

Server& server_of(fuse_req_t request) {
  return *static_cast<Server*>(fuse_req_userdata(request));
}

void reply_status(fuse_req_t request, int result) {
  fuse_reply_err(request, result == 0 ? 0 : errno);
}

// After a change that worked: its own answer, or that of the same request asked again.
int answer(Server& server, int error, int error_when_asked_again) {
  return error == 0 && server.model().replies_lost ? error_when_asked_again : error;
}

void reply_entry(fuse_req_t request, fuse_ino_t folder, const char* name) {
  fuse_entry_param entry{};
  const int error = server_of(request).look_up(folder, name, entry);
  if (error != 0) {
    fuse_reply_err(request, error);
  } else {
    fuse_reply_entry(request, &entry);
  }
}

void on_init(void*, fuse_conn_info* connection) {
  // A listing says names only, and locks stay within this host, as where the server keeps none.
  connection->want &= ~(FUSE_CAP_READDIRPLUS | FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_FLOCK_LOCKS | FUSE_CAP_POSIX_LOCKS);
}

void on_lookup(fuse_req_t request, fuse_ino_t folder, const char* name) {
  Server& server = server_of(request);
  if (!server.enter(request, folder)) return;
  fuse_entry_param entry{};
  const int error = server.look_up(folder, name, entry);
  if (error == ENOENT && server.model().missing_name_cache_ms > 0) {
    entry.ino = 0;
    entry.entry_timeout = server.model().missing_name_cache_ms / 1000.0;
    fuse_reply_entry(request, &entry);
  } else if (error != 0) {
    fuse_reply_err(request, error);
  } else {
    fuse_reply_entry(request, &entry);
  }
}

void on_forget(fuse_req_t request, fuse_ino_t ino, std::uint64_t lookups) {
  server_of(request).forget(ino, lookups);
  fuse_reply_none(request);
}

void on_forget_multi(fuse_req_t request, std::size_t count, fuse_forget_data* all) {
  for (std::size_t i = 0; i < count; ++i) server_of(request).forget(all[i].ino, all[i].nlookup);
  fuse_reply_none(request);
}

void on_getattr(fuse_req_t request, fuse_ino_t ino, fuse_file_info*) {
  Server& server = server_of(request);
  if (!server.enter(request, ino)) return;
  struct stat status {};
  if (const int error = server.status_of(ino, status); error != 0) {
    fuse_reply_err(request, error);
  } else {
    fuse_reply_attr(request, &status, server.attribute_seconds());
  }
}

int change(Server& server, fuse_ino_t ino, const struct stat& wanted, int what) {
  const std::string path = proc_path(server.fd(ino));
  if ((what & FUSE_SET_ATTR_MODE) != 0 && ::chmod(path.c_str(), wanted.st_mode) != 0) return errno;
  if ((what & FUSE_SET_ATTR_SIZE) != 0 && ::truncate(path.c_str(), wanted.st_size) != 0) return errno;
  if ((what & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) != 0) {
    const uid_t user = (what & FUSE_SET_ATTR_UID) != 0 ? wanted.st_uid : static_cast<uid_t>(-1);
    const gid_t group = (what & FUSE_SET_ATTR_GID) != 0 ? wanted.st_gid : static_cast<gid_t>(-1);
    if (::chown(path.c_str(), user, group) != 0) return errno;
  }
  if ((what & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME)) != 0) {
    const auto time = [&](int set, int now, timespec given) {
      if ((what & now) != 0) return timespec{0, UTIME_NOW};
      if ((what & set) == 0) return timespec{0, UTIME_OMIT};
      given.tv_sec -= server.model().clock_ahead_s;
      return given;
    };
    const timespec times[] = {time(FUSE_SET_ATTR_ATIME, FUSE_SET_ATTR_ATIME_NOW, wanted.st_atim),
                              time(FUSE_SET_ATTR_MTIME, FUSE_SET_ATTR_MTIME_NOW, wanted.st_mtim)};
    if (::utimensat(AT_FDCWD, path.c_str(), times, 0) != 0) return errno;
  }
  return 0;
}

void on_setattr(fuse_req_t request, fuse_ino_t ino, struct stat* wanted, int what, fuse_file_info*) {
  Server& server = server_of(request);
  if (!server.enter(request, ino)) return;
  struct stat status {};
  int error = change(server, ino, *wanted, what);
  if (error == 0) error = server.status_of(ino, status);
  if (error != 0) {
    fuse_reply_err(request, error);
  } else {
    fuse_reply_attr(request, &status, server.attribute_seconds());
  }
}

void on_mkdir(fuse_req_t request, fuse_ino_t folder, const char* name, mode_t mode) {
  Server& server = server_of(request);
  if (!server.enter(request, folder)) return;
  const int error = answer(server, ::mkdirat(server.fd(folder), name, mode) == 0 ? 0 : errno, EEXIST);
  error != 0 ? static_cast<void>(fuse_reply_err(request, error)) : reply_entry(request, folder, name);
}

void on_unlink(fuse_req_t request, fuse_ino_t folder, const char* name) {
  Server& server = server_of(request);
  if (server.enter(request, folder)) fuse_reply_err(request, answer(server, server.unlink(folder, name), ENOENT));
}

void on_rmdir(fuse_req_t request, fuse_ino_t folder, const char* name) {
  Server& server = server_of(request);
  if (!server.enter(request, folder)) return;
  const int error = ::unlinkat(server.fd(folder), name, AT_REMOVEDIR) == 0 ? 0 : errno;
  fuse_reply_err(request, answer(server, error, ENOENT));
}

void on_rename(fuse_req_t request, fuse_ino_t from, const char* name, fuse_ino_t to, const char* new_name, unsigned flags) {
  Server& server = server_of(request);
  if (!server.enter(request, from)) return;
  if (flags != 0 && server.model().no_rename_noreplace) {
    fuse_reply_err(request, EINVAL);
    return;
  }
  const int error = ::renameat2(server.fd(from), name, server.fd(to), new_name, flags) == 0 ? 0 : errno;
  fuse_reply_err(request, answer(server, error, ENOENT));
}

void on_link(fuse_req_t request, fuse_ino_t ino, fuse_ino_t to, const char* name) {
  Server& server = server_of(request);
  if (!server.enter(request, ino)) return;
  const std::string handle = proc_path(server.fd(ino));
  const int done = ::linkat(AT_FDCWD, handle.c_str(), server.fd(to), name, AT_SYMLINK_FOLLOW);
  const int error = answer(server, done == 0 ? 0 : errno, EEXIST);
  error != 0 ? static_cast<void>(fuse_reply_err(request, error)) : reply_entry(request, to, name);
}

void on_symlink(fuse_req_t request, const char* target, fuse_ino_t folder, const char* name) {
  Server& server = server_of(request);
  if (!server.enter(request, folder)) return;
  if (::symlinkat(target, server.fd(folder), name) != 0) {
    fuse_reply_err(request, errno);
  } else {
    reply_entry(request, folder, name);
  }
}

void on_readlink(fuse_req_t request, fuse_ino_t ino) {
  Server& server = server_of(request);
  if (!server.enter(request, ino)) return;
  char target[PATH_MAX + 1] = {};
  const ssize_t length = ::readlinkat(server.fd(ino), "", target, PATH_MAX);
  length < 0 ? fuse_reply_err(request, errno) : fuse_reply_readlink(request, target);
}

void on_create(fuse_req_t request, fuse_ino_t folder, const char* name, mode_t mode, fuse_file_info* info) {
  Server& server = server_of(request);
  if (!server.enter(request, folder)) return;
  UniqueFd fd(::openat(server.fd(folder), name, (info->flags | O_CREAT | O_CLOEXEC) & ~O_NOFOLLOW, mode));
  fuse_entry_param entry{};
  const int error = fd ? server.look_up(folder, name, entry) : errno;
  if (error != 0) {
    fuse_reply_err(request, error);
    return;
  }
  server.opened(entry.ino);
  info->fh = static_cast<std::uint64_t>(fd.release());
  fuse_reply_create(request, &entry, info);
}

void on_open(fuse_req_t request, fuse_ino_t ino, fuse_file_info* info) {
  Server& server = server_of(request);
  if (!server.enter(request, ino)) return;
  const int fd = ::open(proc_path(server.fd(ino)).c_str(), (info->flags | O_CLOEXEC) & ~(O_NOFOLLOW | O_CREAT | O_EXCL));
  if (fd < 0) {
    fuse_reply_err(request, errno);
    return;
  }
  server.opened(ino);
  info->fh = static_cast<std::uint64_t>(fd);
  fuse_reply_open(request, info);
}

void on_release(fuse_req_t request, fuse_ino_t ino, fuse_file_info* info) {
  server_of(request).closed(ino);
  reply_status(request, ::close(static_cast<int>(info->fh)));
}

void on_read(fuse_req_t request, fuse_ino_t ino, std::size_t size, off_t offset, fuse_file_info* info) {
  if (!server_of(request).enter(request, ino)) return;
  std::vector<char> buffer(std::min(size, kMaxRead));
  const ssize_t got = ::pread(static_cast<int>(info->fh), buffer.data(), buffer.size(), offset);
  got < 0 ? fuse_reply_err(request, errno) : fuse_reply_buf(request, buffer.data(), static_cast<std::size_t>(got));
}

void on_write(fuse_req_t request, fuse_ino_t ino, const char* data, std::size_t size, off_t offset, fuse_file_info* info) {
  if (!server_of(request).enter(request, ino)) return;
  const ssize_t wrote = ::pwrite(static_cast<int>(info->fh), data, size, offset);
  wrote < 0 ? fuse_reply_err(request, errno) : fuse_reply_write(request, static_cast<std::size_t>(wrote));
}

// The reply to close: nothing to do, but a place to fail.
void on_flush(fuse_req_t request, fuse_ino_t ino, fuse_file_info*) {
  if (server_of(request).enter(request, ino)) fuse_reply_err(request, 0);
}

void on_fsync(fuse_req_t request, fuse_ino_t ino, int, fuse_file_info* info) {
  if (server_of(request).enter(request, ino)) reply_status(request, ::fsync(static_cast<int>(info->fh)));
}

void on_fsyncdir(fuse_req_t request, fuse_ino_t ino, int, fuse_file_info*) {
  if (server_of(request).enter(request, ino)) fuse_reply_err(request, 0);
}

void on_opendir(fuse_req_t request, fuse_ino_t ino, fuse_file_info* info) {
  Server& server = server_of(request);
  if (!server.enter(request, ino)) return;
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(proc_path(server.fd(ino)).c_str()), ::closedir);
  if (folder == nullptr) {
    fuse_reply_err(request, errno);
    return;
  }
  Listing listing;
  while (const dirent* entry = ::readdir(folder.get())) {
    listing.push_back({entry->d_name, entry->d_ino, entry->d_type});
  }
  info->fh = server.keep(std::move(listing));
  fuse_reply_open(request, info);
}

void on_readdir(fuse_req_t request, fuse_ino_t ino, std::size_t size, off_t offset, fuse_file_info* info) {
  Server& server = server_of(request);
  if (!server.enter(request, ino)) return;
  const Listing& listing = server.listing(info->fh);
  std::vector<char> buffer(std::min(size, kMaxRead));
  std::size_t used = 0;
  for (auto i = static_cast<std::size_t>(offset); i < listing.size(); ++i) {
    const Entry& entry = listing[i];
    struct stat status {};
    status.st_ino = entry.ino;
    status.st_mode = static_cast<mode_t>(DTTOIF(entry.type));
    const std::size_t needed = fuse_add_direntry(request, buffer.data() + used, buffer.size() - used, entry.name.c_str(),
                                                 &status, static_cast<off_t>(i + 1));
    if (used + needed > buffer.size()) break;
    used += needed;
  }
  fuse_reply_buf(request, buffer.data(), used);
}

void on_releasedir(fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
  server_of(request).drop(info->fh);
  fuse_reply_err(request, 0);
}

void on_statfs(fuse_req_t request, fuse_ino_t ino) {
  Server& server = server_of(request);
  if (!server.enter(request, ino)) return;
  struct statvfs status {};
  if (::fstatvfs(server.fd(ino), &status) != 0) {
    fuse_reply_err(request, errno);
  } else {
    fuse_reply_statfs(request, &status);
  }
}

fuse_lowlevel_ops make_ops() {
  fuse_lowlevel_ops ops{};
  ops.init = on_init;
  ops.lookup = on_lookup;
  ops.forget = on_forget;
  ops.forget_multi = on_forget_multi;
  ops.getattr = on_getattr;
  ops.setattr = on_setattr;
  ops.mkdir = on_mkdir;
  ops.unlink = on_unlink;
  ops.rmdir = on_rmdir;
  ops.rename = on_rename;
  ops.link = on_link;
  ops.symlink = on_symlink;
  ops.readlink = on_readlink;
  ops.create = on_create;
  ops.open = on_open;
  ops.release = on_release;
  ops.read = on_read;
  ops.write = on_write;
  ops.flush = on_flush;
  ops.fsync = on_fsync;
  ops.fsyncdir = on_fsyncdir;
  ops.opendir = on_opendir;
  ops.readdir = on_readdir;
  ops.releasedir = on_releasedir;
  ops.statfs = on_statfs;
  return ops;
}

// The child: says "+" through `tell` once the file system is there, or why not, and serves until it is unmounted.
void serve(const std::filesystem::path& backing, const std::filesystem::path& mount_point, Server& server, int tell,
           pid_t parent) {
  const auto give_up = [&](const std::string& why) { static_cast<void>(::write(tell, why.data(), why.size()) + 1); };
  char name[] = "draftflow-test", option[] = "-o", options[] = "fsname=draftflow-test";
  char* arguments[] = {name, option, options, nullptr};
  fuse_args given = FUSE_ARGS_INIT(3, arguments);
  const fuse_lowlevel_ops ops = make_ops();
  fuse_session* session = fuse_session_new(&given, &ops, sizeof ops, &server);
  if (session == nullptr) return give_up("libfuse refuses to serve " + backing.string());
  fuse_set_signal_handlers(session);
  if (fuse_session_mount(session, mount_point.c_str()) != 0) {
    return give_up("FUSE cannot mount at " + mount_point.string() + ": " + std::strerror(errno));
  }
  give_up("+");
  ::close(tell);
  fuse_session_loop(session);
  if (::getppid() != parent) fuse_session_unmount(session);  // else the test does it, lazily
  fuse_session_destroy(session);
}

// The test's own files, the mounts of other hosts among them, must not stay open here.
int close_all_but(int kept) {
  constexpr int kPlace = 3;
  if (kept != kPlace) ::dup2(kept, kPlace);
  ::close_range(kPlace + 1, ~0U, 0);
  return kPlace;
}

void unmount(const std::filesystem::path& path) {
  if (::umount2(path.c_str(), MNT_DETACH) == 0 || errno != EPERM) return;
  const pid_t child = ::fork();
  if (child == 0) {
    ::execlp("fusermount3", "fusermount3", "-u", "-z", path.c_str(), nullptr);
    ::_exit(127);
  }
  ::waitpid(child, nullptr, 0);
}

}  // namespace

RemoteFs::RemoteFs(const std::filesystem::path& backing) {
  std::filesystem::create_directories(backing);
  std::filesystem::create_directories(backing.string() + ".removed");
  if (::access("/dev/fuse", R_OK | W_OK) != 0) {
    why_not_ = std::string("/dev/fuse: ") + std::strerror(errno);
    return;
  }
  void* memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    why_not_ = std::string("mmap: ") + std::strerror(errno);
    return;
  }
  shared_ = new (memory) Shared;
  start(backing);
}

void RemoteFs::start(const std::filesystem::path& backing) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    why_not_ = std::string("pipe: ") + std::strerror(errno);
    return;
  }
  const pid_t parent = ::getpid();
  server_ = ::fork();
  if (server_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != parent) ::_exit(1);
    const int tell = close_all_but(ends[1]);
    constexpr int kFlags = O_PATH | O_DIRECTORY | O_CLOEXEC;
    Server server(UniqueFd(::open(backing.c_str(), kFlags)), UniqueFd(::open((backing.string() + ".removed").c_str(), kFlags)),
                  shared_->model, shared_->requests);
    serve(backing, path(), server, tell, parent);
    ::_exit(0);
  }
  ::close(ends[1]);
  char said[512];
  const ssize_t length = ::read(ends[0], said, sizeof said);
  ::close(ends[0]);
  why_not_ = length <= 0 ? "the server of the FUSE file system died" : std::string(said, static_cast<std::size_t>(length));
  if (why_not_ == "+") why_not_.clear();
}

RemoteFs::~RemoteFs() {
  if (mounted()) unmount(path());
  if (server_ > 0) {
    // It ends when it is unmounted; with files of the test still open, when it is told to; at last, when it must.
    constexpr int kPolls = 1000, kPollMicroseconds = 5000;
    pid_t ended = 0;
    for (int i = 0; i < kPolls && (ended = ::waitpid(server_, nullptr, WNOHANG)) == 0; ++i) {
      if (i == kPolls / 10) ::kill(server_, SIGTERM);
      ::usleep(kPollMicroseconds);
    }
    if (ended == 0) {
      ::kill(server_, SIGKILL);
      ::waitpid(server_, nullptr, 0);
    }
  }
  if (shared_ != nullptr) ::munmap(shared_, sizeof(Shared));
}

void RemoteFs::set(const RemoteModel& model) {
  if (shared_ == nullptr) return;
  shared_->model = model;
  shared_->requests = 0;
}

std::uint64_t RemoteFs::requests() const {
  return shared_ == nullptr ? 0 : shared_->requests.load();
}

}  // namespace draftflow::store_testing

#endif
