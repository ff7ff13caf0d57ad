// SPDX-License-Identifier: Apache-2.0
//
// Folder: an open folder and the steps taken relative to it, so that a symbolic link planted below is never followed and a
// folder deleted and made again is never mistaken for the one that was opened. Errors name the path. Thread-safe: the
// descriptor is constant after construction.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/base/file.h"

namespace draftflow::store {

class Folder {
 public:
  // Follows links: the path is the user's own.
  static Folder open(const std::string& path);

  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }
  std::string shown(const std::string& name) const { return path_ + "/" + name; }

  std::optional<Folder> find(const std::string& name) const;  // nothing if absent; Corrupt if it is no folder
  bool make(const std::string& name) const;                   // 0770 less umask; true if made now
  Folder find_or_make(const std::string& name) const;
  UniqueFd open_file(const std::string& name, int flags) const;                 // 0660 less umask; never follows a link
  std::optional<UniqueFd> find_file(const std::string& name, int flags) const;  // nothing if absent; Corrupt for a link
  // The text of a small file that `what` describes; nothing if absent, Corrupt over max_bytes.
  std::optional<std::string> find_text(const std::string& name, std::uint64_t max_bytes, const char* what) const;
  // find_file for "folder/folder/name"; no link is followed on the way either.
  std::optional<UniqueFd> find_file_below(const std::string& path, int flags) const;
  std::optional<Folder> find_below(const std::string& path) const;
  bool holds(const std::string& name, int fd) const;                    // the name is one of this file's, by the server's word
  std::optional<std::uint64_t> size_of(const std::string& name) const;  // nothing if absent, or no regular file
  std::vector<std::string> list() const;                                // any order, without . and ..
  bool unlink(const std::string& name) const;                           // true if it was there
  bool remove_if_empty(const std::string& name) const;                  // a folder; false if not empty or absent
  void sync() const;

 private:
  std::optional<UniqueFd> open_below(const std::string& path, int flags, bool& unsupported) const;
  Folder(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  UniqueFd fd_;
  std::string path_;
};

// Gives the file open as `fd` its final name in one step that fails if the name exists.
enum class Published { kDone, kExists, kFolderGone };
Published publish(const Folder& from, const std::string& temporary, int fd, const Folder& to, const std::string& name);

// The same by link(2) and unlink(2), where a rename cannot refuse to replace (NFS, some FUSE).
Published publish_by_link(const Folder& from, const std::string& temporary, int fd, const Folder& to, const std::string& name);

// Locks and clocks of other hosts cannot be relied on there.
bool on_network_file_system(const Folder& folder);
std::string file_system_name(const Folder& folder);  // "ext4", "fuse.sshfs"; "" if the kernel does not say

// The number of names that an open file has, fetched afresh.
std::uint64_t link_count(int fd, const std::string& path);

// A further name in `to` for the file open as `fd`. False if the file has no name any more. EMLINK is Unavailable; EPERM is
// PermissionDenied with what the kernel's protection of hard links asks for; `what` is said to have failed. Corrupt if another
// file has the name.
bool link_file(int fd, const std::string& path, const Folder& to, const std::string& name, const char* what);

std::uint64_t free_bytes(const Folder& folder);

}  // namespace draftflow::store
