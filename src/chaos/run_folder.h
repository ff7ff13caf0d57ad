// SPDX-License-Identifier: Apache-2.0
//
// RunFolder: where a chaos run lives, and a disk that gets full. As root the folder's disk/ is a file system in memory, mounted
// where only this process and its children see it, so that it goes with them whatever happens; else it is an ordinary folder,
// and cannot be squeezed. Removed with the object; what a killed run left is removed by the next one. Used by one thread.
#pragma once

#include <filesystem>

#include "draftflow/base/file.h"

namespace draftflow::chaos {

class RunFolder {
 public:
  RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;
  ~RunFolder();

  const std::filesystem::path& path() const { return path_; }
  bool can_squeeze() const { return mounted_; }
  void squeeze(std::uint64_t left);  // until relax(), the disk has about so many bytes free
  void relax();

 private:
  bool resize(std::uint64_t bytes) const;

  std::filesystem::path path_;
  UniqueFd lock_;  // held while the folder is used
  bool mounted_ = false;
};

}  // namespace draftflow::chaos
