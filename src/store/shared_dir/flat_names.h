// SPDX-License-Identifier: Apache-2.0
//
// The further names of a store of layout specforge: {sample id}.g{generation}.ckpt right below the store's folder, where the
// reference's consumer finds, reads and frees a generation (docs/formats/reference.md). Such a name is given before the
// generation's own and taken away before it, so that a generation without one was freed. Others keep files there, too: only a
// file of this store, under the name that is its own, is ever taken away. Constant after construction; thread-safe.
#pragma once

#include <functional>
#include <string>

#include "store/shared_dir/folder.h"

namespace draftflow::store {

class FlatNames {
 public:
  // `folder`, the store's, outlives this.
  FlatNames(const Folder& folder, std::string incarnation) : folder_(folder), incarnation_(std::move(incarnation)) {}

  const Folder& folder() const { return folder_; }

  // Corrupt if another file has the name; Unavailable if the file open as `fd` has lost its last one.
  void give(const std::string& name, int fd, const std::string& path) const;

  // True if the name was there and the file one of this store's: the one open as `fd`, or one whose note says so.
  bool take_away(const std::string& name, int fd = -1) const;

  // Nothing at all has the name. A remote file system may remember that from before it was given: ask `folder().list()`.
  bool is_missing(const std::string& name) const;

  // Makes the name, which is another file's of the same note (a copied store), one of the file open as `fd` again.
  void join(const std::string& name, int fd, const std::string& path, const Folder& temporaries) const;

  // Visits the names of this store's files that have no other name: what a put that died left, or of a copied store.
  struct Single {
    std::string name, sample_id;
    std::uint64_t generation = 0, file_bytes = 0;
    std::int64_t modified_ms = 0;
  };
  void for_each_single(const std::function<void(const Single&)>& visit) const;

 private:
  bool is_ours(const std::string& name) const;

  const Folder& folder_;
  const std::string incarnation_;
};

}  // namespace draftflow::store
