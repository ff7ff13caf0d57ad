// SPDX-License-Identifier: Apache-2.0
//
// RemoteFs: a file system with the habits of NFS and sshfs, for tests only. A child process of its own passes all through to
// a backing folder by FUSE; the destructor unmounts and reaps it, and it unmounts by itself if the test dies. Two of them
// over one backing folder are two hosts; a change made in the backing folder itself is one by the server. One owner, one
// thread: call set() while no call is under way. Where FUSE is missing mounted() is false, and why_not() says why.
//
//   RemoteFs host(temp.path() / "disk");
//   if (!host.mounted()) GTEST_SKIP() << host.why_not();
//   host.set({.link_count_is_one = true});
//   ... host.path() ...
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "testing/temp_folder.h"

namespace draftflow::store_testing {

struct RemoteModel {
  // Link counts, sizes and times may be so old. The server is not told who asks in earnest: the cache is the kernel's own,
  // which answers stat and fstat from it until the time is over and asks the server for statx with AT_STATX_FORCE_SYNC. What
  // this host itself does (link, unlink, write) is seen by it at once, as on NFS. A look-up brings new attributes, too: for
  // those of a path to stay old, its name must be in the cache as long.
  std::uint32_t attribute_cache_ms = 0;
  std::uint32_t name_cache_ms = 0;          // so long a name that another host removed still leads to its file
  std::uint32_t missing_name_cache_ms = 0;  // so long a name that another host made is not there
  // A removed file can be linked anew by whoever still has it in the cache (with name_cache_ms), as by NFS's file handles
  // where the server keeps it. Kept files lie beside the backing folder, in {backing}.removed.
  bool link_by_handle = false;
  bool stale_when_removed = false;   // ESTALE for a file or folder without a name, open or not
  bool silly_rename = false;         // an open file that this host removes becomes .nfs{...} beside it until it is closed
  bool no_rename_noreplace = false;  // EINVAL
  // Each link, rename, unlink, mkdir and rmdir that succeeds was asked twice, and the second answer counts: EEXIST or ENOENT.
  bool replies_lost = false;
  bool link_count_is_one = false;  // of every file, as on sshfs
  std::int32_t clock_ahead_s = 0;  // the server's clock, by ours
  std::uint64_t fail_at = 0;       // the number of the request that fails, from 1 at set(); 0: none
  int fail_error = 5;              // EIO
};

class RemoteFs {
 public:
  explicit RemoteFs(const std::filesystem::path& backing);  // made if absent
  RemoteFs(const RemoteFs&) = delete;
  RemoteFs& operator=(const RemoteFs&) = delete;
  ~RemoteFs();

  bool mounted() const { return why_not_.empty(); }
  const std::string& why_not() const { return why_not_; }
  const std::filesystem::path& path() const { return mount_point_.path(); }
  pid_t server() const { return server_; }

  void set(const RemoteModel& model);  // numbers requests anew
  std::uint64_t requests() const;      // since set(); forget and release do not count

 private:
  struct Shared;
  void start(const std::filesystem::path& backing);

  testing_support::TempFolder mount_point_;
  std::string why_not_;
  Shared* shared_ = nullptr;
  pid_t server_ = -1;
};

}  // namespace draftflow::store_testing
