// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/collector.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <set>
#include <unordered_set>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/base/text.h"
#include "store/shared_dir/generation_file.h"
#include "store/shared_dir/holder.h"
#include "store/shared_dir/temporary.h"
#include "store/shared_dir/torch_generation.h"

namespace draftflow::store {
namespace {

class Collector {
 public:
  explicit Collector(const Collection& collection)
      : c_(collection),
        now_(collection.books.local ? ::time(nullptr) : server_time_ms(collection.temporaries) / 1000),
        births_(kAgeBuckets, 0) {}

  GcReport run() {
    const Cleared cleared = clear_orphans(c_.temporaries);
    report_.temporaries_removed = cleared.files;
    report_.bytes_removed = cleared.bytes;
    if (c_.books.flat != nullptr) clear_flat_orphans();
    for (const DeadHolder& dead : find_dead_holders(c_.leases, c_.temporaries, c_.silent_ms)) end_leases_of(dead);
    c_.layout.for_each_fan_out([&](const Folder& fan_out, const std::string& name) { visit_fan_out(fan_out, name); });
    drop_freed();
    if (c_.books.local) recount_holders(c_.leases, c_.account, now_);
    c_.account.settle_births(births_, now_ - 2 * kAgeBucketSeconds);
    return report_;
  }

 private:
  bool consume_once() const { return c_.file.kind == StoreKind::kConsumeOnce; }

  void end_leases_of(const DeadHolder& dead) {
    if (const auto links = c_.leases.find(dead.name)) {
      for (const std::string& name : links->list()) {
        const auto lease = parse_lease_name(name);
        if (!lease) {
          links->unlink(name);
          continue;
        }
        const Dropped dropped = end_lease_link(c_.layout, *links, name, lease->place, lease->generation,
                                               {.consume_once = consume_once()}, c_.books);
        report_.leases_dropped += dropped.was_there ? 1 : 0;
        report_.bytes_removed += dropped.was_last ? dropped.bytes : 0;
      }
    }
    bury(c_.leases, dead, c_.account);
  }

  // Counts one fan-out folder while it stands still, or tries again: what changes it is counted by itself.
  void visit_fan_out(const Folder& fan_out, const std::string& name) {
    constexpr int kTries = 3;
    const std::size_t index = SamplePlace{name, "", ""}.fan_out_index();
    for (int i = 0; i < kTries; ++i) {
      const auto begun = c_.account.begin_count(index, now_);
      counted_ = {};
      whole_ = true;
      seen_.assign(kAgeBuckets, 0);
      Layout::for_each_sample(fan_out, name, [&](const SamplePlace& place) { visit_sample(fan_out, place); });
      count_nameless(name);
      if (begun && whole_ && c_.account.settle(index, *begun, counted_)) break;
    }
    for (std::size_t i = 0; i < kAgeBuckets; ++i) births_[i] += seen_[i];
  }

  void visit_sample(const Folder& fan_out, const SamplePlace& place) {
    const auto folder = fan_out.find(place.folder);
    if (!folder) return;
    const SampleListing listing = list_sample(*folder, place);
    if (c_.books.flat != nullptr) note_freed(place, listing);
    const bool one = listing.generations.size() == 1;  // which supersedes nothing, whatever it is
    const std::uint64_t current =
        one ? listing.generations[0].number : find_current(*folder, place, listing, c_.file.incarnation);
    const Retired retired = retire_superseded(*folder, place, listing, current, c_.books);
    report_.generations_removed += retired.generations;
    report_.bytes_removed += retired.bytes;
    for (const std::uint64_t marked : listing.marks) {
      if (listing.find(marked) == nullptr) forget_mark(*folder, place, marked);
    }
    if (const NamedGeneration* found = listing.find(current)) visit_current(*folder, place, *found, listing.marks);
    fan_out.remove_if_empty(place.folder);
  }

  // The reference's consumer frees by taking the flat name away; ours follows, at the end. A fresh listing decides: a remote
  // file system may remember that a name was missing from before it was given.
  void note_freed(const SamplePlace& place, const SampleListing& listing) {
    for (const NamedGeneration& generation : listing.generations) {
      if (c_.books.flat->is_missing(generation.name)) freed_.emplace_back(place, generation);
    }
  }

  void drop_freed() {
    if (freed_.empty()) return;
    const std::vector<std::string> names = c_.books.flat->folder().list();
    const std::unordered_set<std::string_view> there(names.begin(), names.end());
    for (const auto& [place, generation] : freed_) {
      const auto folder = there.contains(generation.name) ? std::nullopt : c_.layout.find_sample(place);
      const auto fd = folder ? folder->find_file(generation.name, O_RDONLY) : std::nullopt;
      if (!fd) continue;
      const InodeLock lock(fd->get(), InodeLock::Mode::kExclusive, c_.books.local, folder->shown(generation.name));
      if (!c_.books.flat->is_missing(generation.name)) continue;  // a drop that failed has put it back
      const Dropped dropped = drop_generation_locked(*folder, place, generation, fd->get(), c_.books);
      report_.generations_removed += dropped.was_there ? 1 : 0;
      report_.bytes_removed += dropped.was_last ? dropped.bytes : 0;
      c_.layout.forget_if_empty(place);
    }
  }

  // What a put left that died between its two names, once its temporary is gone.
  void clear_flat_orphans() {
    c_.books.flat->for_each_single([&](const FlatNames::Single& single) {
      if (!c_.books.local && now_ - single.modified_ms / 1000 < kNetworkOrphanMs / 1000) return;
      const SamplePlace place = sample_place(SampleId(single.sample_id));
      const auto folder = c_.layout.find_sample(place);
      if (folder && list_sample(*folder, place).find(single.generation) != nullptr) return;  // a copied store's
      if (!c_.books.flat->take_away(single.name)) return;
      ++report_.temporaries_removed;
      report_.bytes_removed += single.file_bytes;
    });
  }

  void visit_current(const Folder& folder, const SamplePlace& place, const NamedGeneration& generation,
                     const std::vector<std::uint64_t>& marks) {
    const std::string& name = generation.name;
    const UniqueFd fd(::openat(folder.fd(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    struct stat status {};
    if (!fd || ::fstat(fd.get(), &status) != 0) {
      // What cannot be looked at is there all the same; a link was planted and never counted.
      whole_ = whole_ && (errno == ENOENT || errno == ELOOP);
      return;
    }
    if (!S_ISREG(status.st_mode)) return;
    const bool marked = std::find(marks.begin(), marks.end(), generation.number) != marks.end();
    const bool old =
        consume_once() && c_.file.max_hold_age_ms > 0 && (now_ - status.st_mtim.tv_sec) * 1000 > c_.file.max_hold_age_ms;
    if (c_.books.flat != nullptr && status.st_nlink == 1) {
      c_.books.flat->join(name, fd.get(), folder.shown(name), c_.temporaries);
    }
    if (consume_once() && (marked || old) && free_unleased(folder, place, generation, fd.get(), !marked)) return;
    count(weigh(fd.get(), folder.shown(name)));
  }

  bool free_unleased(const Folder& folder, const SamplePlace& place, const NamedGeneration& generation, int fd, bool by_force) {
    const std::string path = folder.shown(generation.name);
    const InodeLock lock(fd, InodeLock::Mode::kExclusive, c_.books.local, path);
    if (link_count(fd, path) > c_.books.own_names()) return false;
    const Dropped dropped = drop_generation_locked(folder, place, generation, fd, c_.books);
    report_.generations_removed += dropped.was_there ? 1 : 0;
    report_.force_freed += dropped.was_there && by_force ? 1 : 0;
    report_.bytes_removed += dropped.was_last ? dropped.bytes : 0;
    return true;
  }

  void count(const Weight& weight) {
    ++counted_.samples;
    counted_.bytes += static_cast<std::int64_t>(weight.bytes);
    counted_.birth_seconds += weight.birth_seconds;
    ++seen_[static_cast<std::uint64_t>(weight.birth_seconds / kAgeBucketSeconds) % kAgeBuckets];
  }

  // Generations that only leases keep: their name is gone, and each inode counts once.
  void count_nameless(const std::string& fan_out) {
    std::set<std::uint64_t> inodes;
    for (const std::string& holder : c_.leases.list()) {
      if (!is_holder_name(holder)) continue;
      const auto links = c_.leases.find(holder);
      if (!links) continue;
      for (const std::string& name : links->list()) {
        const auto lease = parse_lease_name(name);
        if (!lease || lease->place.fan_out != fan_out) continue;
        const auto fd = links->find_file(name, O_RDONLY);
        struct stat status {};
        if (!fd) continue;  // released meanwhile
        if (::fstat(fd->get(), &status) != 0) throw_errno(errno, "fstat of " + links->shown(name));
        const auto own = find_name(fd->get(), links->shown(name), lease->place, lease->generation, c_.books);
        const auto folder = own ? c_.layout.find_sample(lease->place) : std::nullopt;
        if (folder && folder->holds(*own, fd->get())) continue;
        if (inodes.insert(status.st_ino).second) count(weigh(fd->get(), links->shown(name)));
      }
    }
  }

  const Collection& c_;
  const std::int64_t now_;
  std::vector<std::int64_t> births_, seen_;
  FanOutCount counted_;
  bool whole_ = true;  // nothing was left out of it
  std::vector<std::pair<SamplePlace, NamedGeneration>> freed_;
  GcReport report_;
};

}  // namespace

ResidentSample describe_file(int fd, const std::string& path, const SamplePlace& place, std::uint64_t generation,
                             std::int64_t now_seconds, std::uint64_t own_names) {
  const SampleId id(read_identity(fd, path).sample_id);
  const SamplePlace said = sample_place(id);
  if (said.fan_out != place.fan_out || said.folder != place.folder) {
    throw Corrupt(fmt::format("{}: the file says it is sample '{}', whose files lie in {}/{}: it is another one's file", path,
                              printable(id.str()), said.fan_out, said.folder));
  }
  const Weight weight = weigh(fd, path);
  ResidentSample sample{.sample_id = id, .generation = generation, .bytes = weight.bytes, .path = path};
  sample.leases = std::max(link_count(fd, path), own_names) - own_names;
  sample.age_s = static_cast<double>(std::max<std::int64_t>(0, now_seconds - weight.birth_seconds));
  return sample;
}

GcReport collect(const Collection& collection) {
  return Collector(collection).run();
}

void walk(const Layout& layout, const Books& books, std::int64_t now_seconds,
          const std::function<bool(const ResidentSample&)>& visit,
          const std::function<void(const std::filesystem::path&, const std::string&)>& damaged) {
  bool go_on = true;
  const auto is_told = [](const Error& error) {  // rather than the end of the walk
    return error.kind() == ErrorKind::kCorrupt || error.kind() == ErrorKind::kInvalidArgument ||
           error.kind() == ErrorKind::kPermissionDenied;
  };
  const auto find_told = [&](const Folder& above, const std::string& name) -> std::optional<Folder> {
    try {
      return above.find(name);
    } catch (const Error& error) {
      if (!is_told(error)) throw;
      damaged(above.shown(name), error.what());
      return std::nullopt;
    }
  };
  for (const std::string& fan_out_name : layout.samples().list()) {
    const auto fan_out = go_on && is_fan_out_name(fan_out_name) ? find_told(layout.samples(), fan_out_name) : std::nullopt;
    if (!fan_out) continue;
    Layout::for_each_sample(*fan_out, fan_out_name, [&](const SamplePlace& place) {
      const auto folder = go_on ? find_told(*fan_out, place.folder) : std::nullopt;
      if (!folder) return;
      for (const auto& [generation, name] : list_sample(*folder, place).generations) {
        const Folder& where = books.flat == nullptr ? *folder : books.flat->folder();
        try {
          const auto fd = go_on ? where.find_file(name, O_RDONLY) : std::nullopt;
          if (!fd) continue;
          go_on = visit(describe_file(fd->get(), where.shown(name), place, generation, now_seconds, books.own_names()));
        } catch (const NotFound&) {  // freed meanwhile
        } catch (const Error& error) {
          if (!is_told(error)) throw;
          damaged(where.shown(name), error.what());
        }
      }
    });
  }
}

double oldest_age(const AccountTotals& totals, std::int64_t now_seconds) {
  const std::int64_t newest = now_seconds / kAgeBucketSeconds;
  for (std::int64_t bucket = newest - static_cast<std::int64_t>(kAgeBuckets) + 1; bucket <= newest; ++bucket) {
    if (totals.born[static_cast<std::uint64_t>(bucket) % kAgeBuckets] > 0) {
      return static_cast<double>(now_seconds - bucket * kAgeBucketSeconds);
    }
  }
  return 0;
}

void check_links(const Folder& temporaries) {
  const std::string second = random_hex128() + ".tmp";
  const auto refuse = [&](const std::string& found) {
    throw InvalidArgument(
        fmt::format("{} is on {}, where {}: leases are hard links, so a store cannot work there; use a local "
                    "file system or NFS",
                    temporaries.path(), file_system_name(temporaries), found));
  };
  try {
    const Temporary probe(temporaries);
    if (::linkat(temporaries.fd(), probe.name().c_str(), temporaries.fd(), second.c_str(), 0) != 0) {
      const int error = errno;
      if (error == EPERM || error == EOPNOTSUPP || error == ENOSYS || error == EXDEV) refuse("a file cannot get a second name");
      // A lost reply makes one's own success look like EEXIST.
      if (error != EEXIST || !temporaries.holds(second, probe.fd())) {
        throw_errno(error, "trying a hard link in " + temporaries.path());
      }
    }
    const std::uint64_t count = link_count(probe.fd(), probe.path());
    temporaries.unlink(second);
    temporaries.unlink(probe.name());  // its destructor tries again, but could not tell
    if (count != 2) refuse(fmt::format("a file with two names says it has {}", count));
  } catch (const Error& error) {
    ::unlinkat(temporaries.fd(), second.c_str(), 0);
    if (error.kind() != ErrorKind::kExhausted) throw;  // a full disk must not keep anybody from freeing
  }
}

}  // namespace draftflow::store
