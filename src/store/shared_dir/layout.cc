// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/layout.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"
#include "store/shared_dir/store_file.h"
#include "store/shared_dir/torch_generation.h"

namespace draftflow::store {
namespace {

void make_mark(const Folder& folder, const std::string& name, bool durable) {
  folder.open_file(name, O_WRONLY | O_CREAT);
  if (durable) folder.sync();
}

// Whether the file says that it is what its name says. What cannot be read for now throws.
bool is_genuine(const Folder& folder, const SamplePlace& place, const NamedGeneration& generation,
                const std::string& incarnation) {
  const std::string path = folder.shown(generation.name);
  try {
    const auto fd = folder.find_file(generation.name, O_RDONLY);
    struct stat status {};
    if (!fd) return false;
    if (::fstat(fd->get(), &status) != 0) throw_errno(errno, "fstat of " + path);
    if (!S_ISREG(status.st_mode)) return false;
    const Identity said = read_identity(fd->get(), path);
    return said.generation == generation.number && said.incarnation == incarnation &&
           sample_place(SampleId(said.sample_id)).folder == place.folder;
  } catch (const Corrupt&) {
    return false;
  } catch (const InvalidArgument&) {
    return false;
  }
}

std::optional<SampleId> valid_id(const std::string& text) {
  try {
    return SampleId(text);
  } catch (const InvalidArgument&) {
    return std::nullopt;
  }
}

// The lease is still one of the file's names; the inode is locked where that can be.
void consume(const Layout& layout, int fd, const SamplePlace& place, std::uint64_t generation, const LeaseEnd& end,
             const Books& books) {
  const auto folder = layout.find_sample(place);
  if (!folder) return;
  const auto name = end.name ? end.name : find_name(fd, folder->path(), place, generation, books);
  const std::string mark = mark_name(place, generation);
  if (!name || !folder->holds(*name, fd)) return;  // removed or superseded: the last lease ends it anyway
  const bool others = link_count(fd, folder->shown(*name)) > books.own_names() + 1;
  if (others) {
    if (end.consume) make_mark(*folder, mark, end.durable);
    return;
  }
  if (!end.consume && !folder->size_of(mark)) return;
  drop_generation_locked(*folder, place, {generation, *name}, fd, books);
  try {
    layout.forget_if_empty(place);
  } catch (const Error&) {  // gc removes empty folders
  }
}

}  // namespace

Folder required_folder(const Folder& store, const char* name) {
  auto found = store.find(name);
  if (!found) {
    throw Corrupt(
        fmt::format("{} has a {} but no folder '{}': if a copy left empty folders out, make it (mkdir) with the rights of "
                    "the folder above; else put it back from a copy",
                    store.path(), kStoreFileName, name));
  }
  return std::move(*found);
}

Layout::Layout(Folder store) : store_(std::move(store)), samples_(required_folder(store_, kSamplesFolder)) {}

std::optional<Folder> Layout::find_sample(const SamplePlace& place) const {
  return samples_.find_below(place.fan_out + "/" + place.folder);
}

Folder Layout::make_sample(const SamplePlace& place) const {
  constexpr int kTries = 100;  // each failure means that a remove took the folder away when it was empty
  for (int i = 0; i < kTries; ++i) {
    const Folder fan_out = samples_.find_or_make(place.fan_out);
    fan_out.make(place.folder);
    if (auto found = fan_out.find(place.folder)) return std::move(*found);
  }
  throw Unavailable(fmt::format("the folder of {} was removed each of {} times that it was made: retry", place.folder, kTries));
}

void Layout::forget_if_empty(const SamplePlace& place) const {
  if (const auto fan_out = samples_.find(place.fan_out)) fan_out->remove_if_empty(place.folder);
}

void Layout::for_each_fan_out(const std::function<void(const Folder&, const std::string& name)>& visit) const {
  for (const std::string& name : samples_.list()) {
    if (!is_fan_out_name(name)) continue;
    if (const auto fan_out = samples_.find(name)) visit(*fan_out, name);
  }
}

void Layout::for_each_sample(const Folder& fan_out, const std::string& name,
                             const std::function<void(const SamplePlace&)>& visit) {
  for (const std::string& folder : fan_out.list()) {
    check_interrupt();
    if (const auto place = parse_sample_folder(name, folder)) visit(*place);
  }
}

const NamedGeneration* SampleListing::find(std::uint64_t generation) const {
  const auto found = std::find_if(generations.begin(), generations.end(),
                                  [&](const NamedGeneration& known) { return known.number == generation; });
  return found == generations.end() ? nullptr : &*found;
}

SampleListing list_sample(const Folder& folder, const SamplePlace& place) {
  SampleListing listing;
  for (const std::string& name : folder.list()) {
    if (const auto generation = parse_generation_name(place, name)) {
      listing.generations.push_back({*generation, name});
    } else if (const auto mark = parse_mark_name(place, name)) {
      listing.marks.push_back(*mark);
    } else if (const auto reference = parse_reference_name(name)) {
      const auto id = valid_id(reference->sample_id);
      if (id && sample_place(*id).folder == place.folder) listing.generations.push_back({reference->generation, name});
    }
  }
  std::sort(listing.generations.begin(), listing.generations.end(),
            [](const NamedGeneration& a, const NamedGeneration& b) { return a.number < b.number; });
  return listing;
}

std::uint64_t find_current(const Folder& folder, const SamplePlace& place, const SampleListing& listing,
                           const std::string& incarnation) {
  for (auto at = listing.generations.rbegin(); at != listing.generations.rend(); ++at) {
    if (is_genuine(folder, place, *at, incarnation)) return at->number;
  }
  return 0;
}

std::optional<std::string> find_name(int fd, const std::string& path, const SamplePlace& place, std::uint64_t generation,
                                     const Books& books) {
  if (books.flat == nullptr) return generation_name(place, generation);
  const auto facts = find_torch_facts(fd, path);
  return facts ? reference_name(SampleId(facts->identity.sample_id), generation) : std::nullopt;
}

Retired retire_superseded(const Folder& folder, const SamplePlace& place, const SampleListing& listing, std::uint64_t current,
                          const Books& books) {
  Retired retired;
  for (const NamedGeneration& generation : listing.generations) {
    if (generation.number >= current) break;
    const Dropped dropped = drop_generation(folder, place, generation, books);
    retired.generations += dropped.was_there ? 1 : 0;
    retired.bytes += dropped.was_last ? dropped.bytes : 0;
  }
  return retired;
}

void forget_mark(const Folder& folder, const SamplePlace& place, std::uint64_t generation) {
  try {
    folder.unlink(mark_name(place, generation));
  } catch (const Error&) {  // gc clears a mark whose generation is gone
  }
}

Dropped drop_generation(const Folder& folder, const SamplePlace& place, const NamedGeneration& generation, const Books& books) {
  const UniqueFd fd(::openat(folder.fd(), generation.name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) {  // absent, planted, or not to be read
    const bool was_flat = books.flat != nullptr && books.flat->take_away(generation.name);
    return {.was_there = folder.unlink(generation.name) || was_flat};  // and never on the account, or so until gc recounts
  }
  const InodeLock lock(fd.get(), InodeLock::Mode::kExclusive, books.local, folder.shown(generation.name));
  return drop_generation_locked(folder, place, generation, fd.get(), books);
}

Dropped drop_generation_locked(const Folder& folder, const SamplePlace& place, const NamedGeneration& generation, int fd,
                               const Books& books) {
  const bool was_flat = books.flat != nullptr && books.flat->take_away(generation.name, fd);
  Dropped dropped;
  try {
    dropped = drop_name_locked(folder, generation.name, fd, place.fan_out_index(), books);
  } catch (...) {
    try {
      if (was_flat) books.flat->give(generation.name, fd, folder.shown(generation.name));
    } catch (const Error&) {  // the first error is the one to tell
    }
    throw;
  }
  if (books.marks) forget_mark(folder, place, generation.number);
  return dropped;
}

Dropped end_lease_link(const Layout& layout, const Folder& links, const std::string& link, const SamplePlace& place,
                       std::uint64_t generation, const LeaseEnd& end, const Books& books) {
  const auto fd = links.find_file(link, O_RDONLY);
  if (!fd) return {};
  const InodeLock lock(fd->get(), InodeLock::Mode::kExclusive, books.local, links.shown(link));
  if (end.consume_once) consume(layout, fd->get(), place, generation, end, books);
  return drop_name_locked(links, link, fd->get(), place.fan_out_index(), books);
}

}  // namespace draftflow::store
