// SPDX-License-Identifier: Apache-2.0
//
// The raw limits of the store: plain files, and the layout of docs/formats/shared_dir.md made by hand with the least system
// calls that give it; names are made beforehand. A RawStore works in a store's own folder, so that both meet the same
// folders; what it puts is not on the store's account. One thread.
//
//   RawStore raw(root / "bench");
//   const RawNames names = raw_names("sample", 1);
//   raw.put(names, bytes);
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "draftflow/base/file.h"

namespace draftflow::cli {

// A new file in pieces of 1 MiB, and back. Timed as they are.
void write_raw_file(const std::filesystem::path& path, std::span<const std::byte> bytes);
void read_raw_file(const std::filesystem::path& path, std::span<std::byte> out);

struct RawNames {
  std::string temporary;     // below tmp/
  std::string folder, file;  // below samples/
  std::string lease;         // below leases/{holder}/
};
RawNames raw_names(const std::string& sample_id, std::uint64_t generation);

class RawStore {
 public:
  explicit RawStore(const std::filesystem::path& store);
  std::uint64_t size_of(const RawNames& names) const;
  void put(const RawNames& names, std::span<const std::byte> bytes);  // create, write, mkdir, rename NOREPLACE, close
  void get(const RawNames& names, std::span<std::byte> out);          // open, read, link, close
  void map_and_unmap(const RawNames& names, double& seconds);         // open, link, mmap, close; the rest is not timed
  void release(const RawNames& names);                                // unlink
  void remove(const RawNames& names);                                 // unlink, rmdir

 private:
  std::filesystem::path path_;
  UniqueFd temporaries_, samples_, leases_;
};

}  // namespace draftflow::cli
