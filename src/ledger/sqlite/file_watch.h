// SPDX-License-Identifier: Apache-2.0
//
// FileWatch: tells when a SQLite database or its write-ahead log is written to, by inotify on its folder: there a log that is
// not made yet, or is removed and made again, needs no watch of its own. Where there is no inotify (too many instances, a file
// system without, a folder that went) it says so. The descriptor is closed by exec; a forked child must not use it, as little
// as the database. One object belongs to one thread. Private to this room.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>

#include "draftflow/base/file.h"

namespace draftflow::sqlite {

class FileWatch {
 public:
  explicit FileWatch(const std::filesystem::path& database);

  bool works() const { return fd_.get() >= 0; }
  bool take();                                 // whether anything was written since the last call
  void sleep(std::chrono::milliseconds most);  // or until something is written

 private:
  bool is_of_database(std::string_view name) const;

  std::string name_;  // of the file, in its folder
  UniqueFd fd_;
};

}  // namespace draftflow::sqlite
