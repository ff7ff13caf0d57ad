// SPDX-License-Identifier: Apache-2.0
//
// Temporary: a file being written in a store's tmp/ folder. Holds a lock while it lives, so that gc, in whatever process,
// can tell it from one whose writer died. Unlinked when destroyed, unless published. One owner, one thread.
//
//   Temporary file(folder);
//   write_all(file.fd(), bytes, file.path());
//   if (file.publish(destination, "name") == Published::kDone) ...
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "store/shared_dir/folder.h"

namespace draftflow::store {

class Temporary {
 public:
  explicit Temporary(const Folder& folder);  // `folder` outlives this
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  ~Temporary();

  int fd() const { return fd_.get(); }
  const std::string& name() const { return name_; }
  std::string path() const { return folder_.shown(name_); }

  std::int64_t modified_seconds() const;

  // PermissionDenied if the folder is writable to its group and the file, by this process's umask, is not: the kernel links a
  // file only for users who may write it (fs.protected_hardlinks), so that others could not lease what is published.
  void check_mode() const;

  void sync();         // bytes on disk
  void check_close();  // throws what close(2) would report late, keeping the file and its lock
  Published publish(const Folder& to, const std::string& name);

 private:
  const Folder& folder_;
  std::string name_;
  UniqueFd fd_;
  bool published_ = false;
};

// A small file, down on disk with its name when it returns kDone: for what is written once and must be whole.
Published publish_text(const Folder& temporaries, const Folder& to, const std::string& name, std::string_view text);

// When the file was last written, by the file system's own clock, with attributes fetched afresh.
std::int64_t modified_ms(int fd, const std::string& path);

// What time the file system's server thinks it is, told by a fresh file.
std::int64_t server_time_ms(const Folder& folder);

struct Cleared {
  std::uint64_t files = 0, bytes = 0;
};

// On a network file system, where a lock of another host may not be seen: what has been untouched for as long, by the server's
// own clock, is nobody's.
constexpr std::int64_t kNetworkOrphanMs = 600'000;

// Removes the temporaries whose writers died.
Cleared clear_orphans(const Folder& folder);

}  // namespace draftflow::store
