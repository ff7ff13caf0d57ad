// SPDX-License-Identifier: Apache-2.0
//
// Layout: where things are below a store's folder, and the steps on one sample that put, release and gc have in common.
// Constant after construction; thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "store/shared_dir/folder.h"
#include "store/shared_dir/links.h"
#include "store/shared_dir/names.h"

namespace draftflow::store {

// One of the store's own folders; Corrupt if it is missing.
Folder required_folder(const Folder& store, const char* name);

class Layout {
 public:
  explicit Layout(Folder store);

  const Folder& store() const { return store_; }
  const Folder& samples() const { return samples_; }

  std::optional<Folder> find_sample(const SamplePlace& place) const;
  Folder make_sample(const SamplePlace& place) const;  // or opens it, if it is there after all
  void forget_if_empty(const SamplePlace& place) const;

  // All fan-out folders or, in one of them, all sample folders. Names that are not of the layout are passed over.
  void for_each_fan_out(const std::function<void(const Folder&, const std::string& name)>& visit) const;
  static void for_each_sample(const Folder& fan_out, const std::string& name,
                              const std::function<void(const SamplePlace&)>& visit);

 private:
  Folder store_, samples_;
};

// One generation in a sample's folder.
struct NamedGeneration {
  std::uint64_t number = 0;
  std::string name;  // of its file, in the folder
};

// What a listing of a sample's folder says.
struct SampleListing {
  std::vector<NamedGeneration> generations;  // sorted
  std::vector<std::uint64_t> marks;          // generations that a consuming release has marked

  const NamedGeneration* find(std::uint64_t generation) const;  // nullptr if it is not there
};
SampleListing list_sample(const Folder& folder, const SamplePlace& place);

// The greatest generation whose file says that it is this store's, sample's and generation's: anybody may have put another
// under such a name. Reads a header or more. 0 if there is none.
std::uint64_t find_current(const Folder& folder, const SamplePlace& place, const SampleListing& listing,
                           const std::string& incarnation);

// What the generation's file, open as `fd`, is called in its sample's folder. Where the name holds the sample's id, the file's
// note is asked; nothing if that is damaged.
std::optional<std::string> find_name(int fd, const std::string& path, const SamplePlace& place, std::uint64_t generation,
                                     const Books& books);

struct Retired {
  std::uint64_t generations = 0, bytes = 0;  // names taken away; bytes that went with the last name
};

// Takes the names of all generations below `current` away, the oldest first. Two puts that overlap both do
// it, so that one generation stays.
Retired retire_superseded(const Folder& folder, const SamplePlace& place, const SampleListing& listing, std::uint64_t current,
                          const Books& books);

// Takes away the mark of a generation that is gone, or leaves it to gc.
void forget_mark(const Folder& folder, const SamplePlace& place, std::uint64_t generation);

// Its names and then its mark. What cannot be dropped stays as it was; what is no regular file is unlinked without more ado.
Dropped drop_generation(const Folder& folder, const SamplePlace& place, const NamedGeneration& generation, const Books& books);

// The same for a file that is open as `fd` and, where local, locked exclusively by the caller.
Dropped drop_generation_locked(const Folder& folder, const SamplePlace& place, const NamedGeneration& generation, int fd,
                               const Books& books);

// Ends a lease: takes its link away and, where `consume_once`, frees the generation if that was the last lease and somebody
// has consumed it: this lease's holder (`consume`), or another by the mark it left. `durable`: the mark is synced.
// `name`: what the generation is called in its sample's folder, where the caller knows it; else the file is asked.
struct LeaseEnd {
  bool consume_once = false, consume = false, durable = false;
  std::optional<std::string> name = {};
};
Dropped end_lease_link(const Layout& layout, const Folder& links, const std::string& link, const SamplePlace& place,
                       std::uint64_t generation, const LeaseEnd& end, const Books& books);

}  // namespace draftflow::store
