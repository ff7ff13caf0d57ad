// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/shared_dir_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <ctime>
#include <system_error>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"
#include "draftflow/base/text.h"
#include "store/ref_maker.h"
#include "store/shared_dir/collector.h"
#include "store/shared_dir/policies.h"
#include "store/shared_dir/torch_generation.h"

namespace draftflow::store {
namespace {

constexpr std::size_t kMaxRemembered = 65536;  // generations that need no second check

// Why nothing can be made in the folder, by the file system's word; empty if it can.
std::string why_read_only(const Folder& folder) {
  if (::faccessat(folder.fd(), ".", W_OK | X_OK, AT_EACCESS) == 0) return "";
  const int error = errno;
  if (error != EACCES && error != EPERM && error != EROFS) throw_errno(error, "looking at the rights of " + folder.path());
  return fmt::format("{}: {}", folder.path(), std::generic_category().message(error));
}

}  // namespace

SharedDirStore::SharedDirStore(Folder folder, const StoreId& id, const StoreFile& file, const SharedDirOptions& options,
                               std::optional<Keys> keys)
    : layout_(std::move(folder)),
      temporaries_(required_folder(layout_.store(), kTemporaryFolder)),
      epochs_(required_folder(layout_.store(), kEpochsFolder)),
      leases_(required_folder(layout_.store(), kLeasesFolder)),
      id_(id),
      file_(file),
      options_(options),
      keys_(std::move(keys)),
      read_only_(why_read_only(temporaries_)),
      account_(required_folder(layout_.store(), kAccountsFolder), temporaries_, !read_only_.empty()),
      flat_(layout_.store(), file.incarnation),
      books_{account_, !on_network_file_system(layout_.store()), file.kind == StoreKind::kConsumeOnce,
             file.layout == StoreLayout::kSpecforge ? &flat_ : nullptr},
      generations_(epochs_),
      pool_(kMaxIdleBytes) {
  options_.durability = std::max(options_.durability, file_.durability);
  options_.secret.reset();  // the keys are what is needed from here on
  if (read_only_.empty()) check_links(temporaries_);
}

SharedDirStore::~SharedDirStore() {
  const InterruptScope undisturbed([] {});
  for (const auto& [number, lease] : live_) {
    try {
      if (!lease.holder->inherited()) end_lease(lease, /*consume=*/false);
    } catch (const Error&) {  // gc ends it when the holder is gone
    }
  }
}

Identity SharedDirStore::identity_of(const SampleId& sample_id, std::uint64_t generation) const {
  return {id_.str(), file_.incarnation, sample_id.str(), generation};
}

std::string SharedDirStore::uri_of(const SampleId& sample_id) const {
  return "disagg://" + id_.str() + "/" + sample_id.str();
}

std::string SharedDirStore::why_foreign(const SampleRef& ref) const {
  if (ref.feature_store_uri != uri_of(ref.sample_id)) return fmt::format("its URI is '{}'", printable(ref.feature_store_uri));
  if (ref.incarnation == file_.incarnation) return "";
  return fmt::format("it is of incarnation '{}', but the store here is incarnation '{}': the store was deleted and made again",
                     printable(ref.incarnation), file_.incarnation);
}

void SharedDirStore::check_writable(const char* verb, const SampleId* sample_id) const {
  if (read_only_.empty()) return;
  const std::string what = sample_id == nullptr ? "" : fmt::format(" of sample '{}'", printable(sample_id->str()));
  throw PermissionDenied(fmt::format(
      "{}{}: store '{}' at {} can only be read by this process ({}): ask for the right to write there, or read without "
      "a lease",
      verb, what, printable(id_.str()), layout_.store().path(), read_only_));
}

void SharedDirStore::throw_not_found(const Identity& identity) const {
  throw NotFound(fmt::format("{} is not at {}: it was freed, superseded or never written; ask the ledger for a current ref",
                             describe(identity), layout_.store().path()));
}

std::uint64_t SharedDirStore::greatest_in(const std::optional<Folder>& folder, const SamplePlace& place) {
  if (!folder) return 0;
  const SampleListing listing = list_sample(*folder, place);
  return listing.generations.empty() ? 0 : listing.generations.back().number;
}

std::uint64_t SharedDirStore::current_in(const std::optional<Folder>& folder, const SamplePlace& place) const {
  if (!folder) return 0;
  return find_current(*folder, place, list_sample(*folder, place), file_.incarnation);
}

std::uint64_t SharedDirStore::next_generation(const std::optional<Folder>& folder, const SamplePlace& place, bool newest) {
  try {
    return generations_.next(greatest_in(folder, place), newest);
  } catch (const Corrupt&) {  // a number that no writer ever got: somebody gave a file such a name
    return generations_.next(current_in(folder, place), newest);
  }
}

void SharedDirStore::check_free_space(const SampleId& sample_id, std::uint64_t bytes) const {
  const std::uint64_t free = free_bytes(layout_.store()), floor = options_.free_space_floor_bytes;
  if (free >= bytes && free - bytes >= floor) return;
  throw Exhausted(
      fmt::format("put of sample '{}' asks for {} bytes, but store '{}' at {} has {} bytes free and keeps a floor of "
                  "{}: free samples or space, then retry",
                  printable(sample_id.str()), bytes, printable(id_.str()), layout_.store().path(), free, floor));
}

void SharedDirStore::reserve(Holder& holder, const SampleId& sample_id, std::uint64_t bytes) const {
  if (account_.is_private()) {
    throw Exhausted(
        fmt::format("put of sample '{}' of {} bytes: the disk of store '{}' at {} was too full to attach for writing: "
                    "free samples or space, then attach again",
                    printable(sample_id.str()), bytes, printable(id_.str()), layout_.store().path()));
  }
  if (holder.reserve(bytes, file_.max_resident_bytes)) return;
  throw Exhausted(
      fmt::format("put of sample '{}' asks for {} bytes, but store '{}' at {} may hold {} and has {} resident: free "
                  "samples, then retry",
                  printable(sample_id.str()), bytes, printable(id_.str()), layout_.store().path(), file_.max_resident_bytes,
                  account_.resident_bytes()));
}

SampleRef SharedDirStore::put(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata,
                              const PutFence& fence) try {
  check_put(tensors, sample_id, metadata);
  check_writable("put", &sample_id);
  if (books_.flat != nullptr) check_reference_can_name(tensors, sample_id);
  const PackedSample sample = pack_sample(tensors, sample_id);
  const std::uint64_t bytes = bytes_of(sample.parts);
  const SamplePlace place = sample_place(sample_id);
  SampleRef ref = make_ref(tensors, sample_id, metadata, uri_of(sample_id), sample_id.str() + "/");
  ref.incarnation = file_.incarnation;
  add_codecs(ref, sample.packed);
  try {
    check_free_space(sample_id, bytes);
    const std::shared_ptr<Holder> mine = holder();
    reserve(*mine, sample_id, bytes);
    Reservation reservation(*mine, bytes);
    std::optional<Folder> folder = layout_.find_sample(place);
    ref.generation = next_generation(folder, place, fence.taken_over);
    write(sample, place, std::move(folder), identity_of(sample_id, ref.generation), reservation, fence);
    if (bytes < ref.estimated_bytes) account_.count_codec_saved(ref.estimated_bytes - bytes);
  } catch (const Exhausted& error) {
    if (std::string_view(error.what()).starts_with("put of sample")) throw;
    throw Exhausted(
        fmt::format("put of sample '{}' of {} bytes into store '{}' with {} bytes free (floor {}): {}; nothing was "
                    "kept: free samples or space, then retry",
                    printable(sample_id.str()), bytes, printable(id_.str()), free_bytes(layout_.store()),
                    options_.free_space_floor_bytes, error.what()));
  } catch (const NotFound& error) {
    throw NotFound(fmt::format("put of sample '{}': store '{}' at {} was deleted while attached; attach again ({})",
                               printable(sample_id.str()), printable(id_.str()), layout_.store().path(), error.what()));
  }
  return ref;
} catch (const Error& error) {
  count_if_failed(error);
  throw;
}

PackedSample SharedDirStore::pack_sample(const TensorMap& tensors, const SampleId& sample_id) const {
  try {
    PackedSample sample = pack(file_.codec, tensors);
    if (books_.flat != nullptr) sample.torch_pickle = make_torch_pickle(sample.parts);
    return sample;
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(
        fmt::format("put of sample '{}' into store '{}': {}", printable(sample_id.str()), printable(id_.str()), error.what()));
  }
}

void SharedDirStore::write(const PackedSample& sample, const SamplePlace& place, std::optional<Folder> folder,
                           const Identity& identity, Reservation& reservation, const PutFence& fence) {
  Temporary temporary(temporaries_);
  if (!mode_checked_) temporary.check_mode();
  mode_checked_ = true;
  if (books_.flat != nullptr) {
    write_torch_generation(temporary.fd(), temporary.path(), identity, sample);
  } else {
    write_generation(temporary.fd(), temporary.path(), identity, sample, keys());
  }
  if (options_.durability != Durability::kNone) temporary.sync();
  if (!books_.local) temporary.check_close();
  ask(fence, SampleId(identity.sample_id));
  const NamedGeneration generation{identity.generation, name_of(SampleId(identity.sample_id), place, identity.generation)};
  try {
    publish(temporary, place, std::move(folder), generation, reservation);
  } catch (...) {
    try {
      layout_.forget_if_empty(place);
    } catch (const Error&) {  // the first error is the one to tell; gc removes empty folders
    }
    throw;
  }
}

Published SharedDirStore::publish_on_account(Temporary& temporary, const Folder& folder, const SamplePlace& place,
                                             const std::string& name, Reservation& reservation) {
  const std::int64_t birth_seconds = temporary.modified_seconds();
  const Account::Change change(account_, place.fan_out_index());
  // The bytes pass from what is reserved to what is resident: counted twice for a moment, never not at all.
  account_.add(place.fan_out_index(), reservation.bytes(), birth_seconds);
  reservation.end();
  const auto take_back = [&] {
    reservation.begin_again();
    account_.subtract(place.fan_out_index(), reservation.bytes(), birth_seconds);
  };
  try {
    const Published published = temporary.publish(folder, name);
    if (published != Published::kDone) take_back();
    return published;
  } catch (...) {
    take_back();
    throw;
  }
}

void SharedDirStore::publish(Temporary& temporary, const SamplePlace& place, std::optional<Folder> folder,
                             const NamedGeneration& generation, Reservation& reservation) {
  if (books_.flat == nullptr) return publish_in_sample(temporary, place, std::move(folder), generation, reservation);
  books_.flat->give(generation.name, temporary.fd(), temporary.path());
  try {
    publish_in_sample(temporary, place, std::move(folder), generation, reservation);
  } catch (...) {
    try {
      books_.flat->take_away(generation.name, temporary.fd());
    } catch (const Error&) {  // the first error is the one to tell; gc takes it away
    }
    throw;
  }
}

void SharedDirStore::publish_in_sample(Temporary& temporary, const SamplePlace& place, std::optional<Folder> folder,
                                       const NamedGeneration& generation, Reservation& reservation) {
  constexpr int kTries = 100;  // each failure means that a remove took the folder away when it was empty
  const std::string& name = generation.name;
  for (int i = 0; i < kTries; ++i) {
    if (!folder) folder = layout_.make_sample(place);
    const Published published = publish_on_account(temporary, *folder, place, name, reservation);
    if (published == Published::kFolderGone) {
      folder.reset();
      continue;
    }
    if (published == Published::kExists) {
      throw Corrupt(fmt::format("{} is there already, but its generation was never given before: draftflow did not make it",
                                folder->shown(name)));
    }
    try {
      if (options_.durability == Durability::kFull) {
        const Folder fan_out = layout_.samples().find_or_make(place.fan_out);
        std::vector<const Folder*> folders{&*folder, &fan_out, &layout_.samples()};
        if (books_.flat != nullptr) folders.push_back(&books_.flat->folder());
        syncs_.sync(folders);
      }
      const SampleListing listing = list_sample(*folder, place);
      const bool ours = !listing.generations.empty() && listing.generations.back().number == generation.number;
      const std::uint64_t current = ours ? generation.number : find_current(*folder, place, listing, file_.incarnation);
      retire_superseded(*folder, place, listing, current, books_);
    } catch (...) {
      const InterruptScope undisturbed([] {});  // what called us away may do so again
      drop_generation(*folder, place, generation, books_);
      throw;
    }
    return;
  }
  throw Unavailable(fmt::format("the folder of {} was removed {} times while it was published: retry", name, kTries));
}

SharedDirStore::Opened SharedDirStore::open(const SampleRef& ref) const {
  const Identity identity = identity_of(ref.sample_id, ref.generation);
  if (const std::string why = why_foreign(ref); !why.empty()) {
    throw NotFound(fmt::format("{} is not here: {}", describe(identity), why));
  }
  const SamplePlace place = sample_place(ref.sample_id);
  std::string name = name_of(ref.sample_id, place, ref.generation);
  if (books_.flat == nullptr) name = place.fan_out + "/" + place.folder + "/" + name;
  const Folder& top = books_.flat == nullptr ? layout_.samples() : books_.flat->folder();
  auto fd = top.find_file_below(name, O_RDONLY);
  if (!fd) throw_not_found(identity);
  return {std::move(*fd), top.shown(name), place, identity};
}

// Only its own name is asked for in a store of layout specforge, too: whoever holds a ref to an id that cannot be named there
// did not get it from a put.
std::string SharedDirStore::name_of(const SampleId& sample_id, const SamplePlace& place, std::uint64_t generation) const {
  if (books_.flat == nullptr) return generation_name(place, generation);
  if (auto name = reference_name(sample_id, generation)) return std::move(*name);
  throw_not_found(identity_of(sample_id, generation));
}

void SharedDirStore::check_reference_can_name(const TensorMap& tensors, const SampleId& sample_id) const {
  const auto refuse = [&](const std::string& problem) {
    throw InvalidArgument(fmt::format("put of sample '{}' into store '{}' of layout specforge: {}: choose another",
                                      printable(sample_id.str()), printable(id_.str()), problem));
  };
  if (!reference_name(sample_id, kMaxGeneration)) {
    refuse("the reference runtime has no file name for an id that holds '/' or a newline, or is so long");
  }
  for (const auto& [name, tensor] : tensors) {
    if (name.find('/') != std::string::npos) {
      refuse(fmt::format("the reference runtime does not find a tensor whose name holds '/', as '{}'", printable(name)));
    }
  }
}

TensorMap SharedDirStore::load(Opened opened, const std::vector<const FeatureSpec*>& specs, const GetOptions& options) {
  TensorMap tensors;
  if (books_.flat != nullptr) {
    TorchGeneration file(opened.fd.get(), opened.path, opened.identity, options.zero_copy, pool_);
    for (const FeatureSpec* spec : specs) tensors.emplace_back(spec->name, file.read(*spec));
    return tensors;
  }
  const std::uint64_t generation = opened.identity.generation;
  const GenerationReader reader(std::move(opened.fd), opened.path, opened.identity, keys());
  if (options.zero_copy) return map_checked(reader, specs, generation, options.verify);
  for (const FeatureSpec* spec : specs) tensors.emplace_back(spec->name, reader.read(*spec, pool_, options.verify));
  return tensors;
}

TensorMap SharedDirStore::read(const SampleRef& ref, const std::vector<std::string>& names) try {
  const std::vector<const FeatureSpec*> specs = own_specs_to_read(ref, names);
  return load(open(ref), specs, {});
} catch (const Error& error) {
  count_if_failed(error);
  throw;
}

Fetched SharedDirStore::get(const SampleRef& ref, const GetOptions& options) try {
  const std::vector<const FeatureSpec*> specs = own_specs_to_read(ref, options.names);
  if (options.zero_copy && !books_.local) {
    throw InvalidArgument(fmt::format(
        "zero-copy get of sample '{}': store '{}' at {} is on {}, where another host can cut a mapped "
        "file short: get copies",
        printable(ref.sample_id.str()), printable(id_.str()), layout_.store().path(), file_system_name(layout_.store())));
  }
  check_writable("leased get", &ref.sample_id);
  Opened opened = open(ref);
  const Lease lease = take_lease(opened);
  Fetched fetched{{}, {ref.sample_id, ref.generation, ""}};
  try {
    fetched.tensors = load(std::move(opened), specs, options);
  } catch (...) {
    const InterruptScope undisturbed([] {});
    try {
      end_lease(lease, /*consume=*/false);
    } catch (const Error&) {  // the first error is the one to tell; gc ends the lease when this process is gone
    }
    throw;
  }
  const std::lock_guard lock(mutex_);
  const std::uint64_t number = ++next_lease_;
  fetched.handle.lease_token = fmt::format("{}.{}", lease.holder->name(), number);
  live_.emplace(number, lease);
  return fetched;
} catch (const Error& error) {
  count_if_failed(error);
  throw;
}

TensorMap SharedDirStore::map_checked(const GenerationReader& reader, const std::vector<const FeatureSpec*>& specs,
                                      std::uint64_t generation, bool verify) {
  bool known = false;
  if (verify) {
    const std::lock_guard lock(mutex_);
    known = verified_.contains(generation);
  }
  TensorMap tensors = reader.map(specs, verify && !known);
  if (verify && !known && !reader.sealed() && specs.size() == reader.tensors().size()) {
    const std::lock_guard lock(mutex_);
    if (verified_.size() >= kMaxRemembered) verified_.clear();
    verified_.insert(generation);
  }
  return tensors;
}

bool SharedDirStore::remove(const SampleRef& ref) try {
  if (!why_foreign(ref).empty()) return false;
  check_writable("remove", &ref.sample_id);
  const SamplePlace place = sample_place(ref.sample_id);
  const auto folder = layout_.find_sample(place);
  if (books_.flat != nullptr && !reference_name(ref.sample_id, ref.generation)) return false;
  const NamedGeneration generation{ref.generation, name_of(ref.sample_id, place, ref.generation)};
  if (!folder) return books_.flat != nullptr && books_.flat->take_away(generation.name);
  if (!drop_generation(*folder, place, generation, books_).was_there) return false;
  layout_.forget_if_empty(place);
  return true;
} catch (const Error& error) {
  count_if_failed(error);
  throw;
}

std::uint64_t SharedDirStore::abort(const SampleId& sample_id) try {
  check_writable("abort", &sample_id);
  const SamplePlace place = sample_place(sample_id);
  const auto folder = layout_.find_sample(place);
  if (!folder) return 0;
  const SampleListing listing = list_sample(*folder, place);
  std::uint64_t aborted = 0;
  for (const NamedGeneration& generation : listing.generations) {
    aborted += drop_generation(*folder, place, generation, books_).was_there ? 1 : 0;
  }
  for (const std::uint64_t generation : listing.marks) forget_mark(*folder, place, generation);
  layout_.forget_if_empty(place);
  return aborted;
} catch (const Error& error) {
  count_if_failed(error);
  throw;
}

GcReport SharedDirStore::gc() try {
  check_writable("gc");
  const auto silent_ms = books_.local ? std::nullopt : std::optional(options_.lease_ms);
  const GcReport report = collect({layout_, temporaries_, leases_, account_, books_, file_, silent_ms});
  prune_epochs(epochs_);
  if (file_.needs_secret) Policies(required_folder(layout_.store(), kAccessFolder), file_.incarnation).collect();
  return report;
} catch (const Error& error) {
  count_if_failed(error);
  throw;
}

void SharedDirStore::count_if_failed(const Error& error) {
  if (is_failure(error)) account_.count_error();
}

StoreHealth SharedDirStore::health() {
  const auto whole = [](std::int64_t value) { return static_cast<std::uint64_t>(std::max<std::int64_t>(value, 0)); };
  const AccountTotals totals = account_.totals();
  StoreHealth health{.store_id = id_.str(), .backend = "shared_dir"};
  health.root = std::filesystem::path(layout_.store().path()).parent_path().string();
  health.incarnation = file_.incarnation;
  health.layout = layout_name(file_.layout);
  health.kind = file_.kind;
  health.durability = file_.durability;
  health.secret = file_.needs_secret;
  health.encrypted = keys_ && keys_->encrypted;
  health.read_only = !read_only_.empty();
  health.resident_samples = whole(totals.samples);
  health.resident_bytes = whole(totals.bytes + totals.reserved);
  health.max_resident_bytes = file_.max_resident_bytes;
  health.live_leases = whole(totals.leases);
  health.freed_total = whole(totals.freed);
  health.freed_bytes_total = whole(totals.freed_bytes);
  health.codec = file_.codec;
  health.errors_total = whole(totals.errors);
  health.codec_saved_bytes_total = whole(totals.codec_saved_bytes);
  const std::int64_t now = ::time(nullptr);
  if (totals.samples > 0) {
    health.average_age_s = std::max(
        0.0, static_cast<double>(now) - static_cast<double>(totals.birth_seconds) / static_cast<double>(totals.samples));
    health.oldest_age_s = std::max(health.average_age_s, oldest_age(totals, now));
  }
  health.free_bytes = free_bytes(layout_.store());
  return health;
}

void SharedDirStore::for_each(const std::function<bool(const ResidentSample&)>& visit,
                              const std::function<void(const std::filesystem::path&, const std::string&)>& damaged) {
  walk(layout_, books_, now_seconds(), visit, [&](const std::string& path, const std::string& what) {
    account_.count_error();
    damaged(path, what);
  });
}

std::int64_t SharedDirStore::now_seconds() const {
  return books_.local || !read_only_.empty() ? ::time(nullptr) : server_time_ms(temporaries_) / 1000;
}

ResidentSample SharedDirStore::resident(const SampleRef& ref) {
  const Opened opened = open(ref);
  return describe_file(opened.fd.get(), opened.path, opened.place, ref.generation, now_seconds(), books_.own_names());
}

SampleRef SharedDirStore::find(const SampleId& sample_id, std::optional<std::uint64_t> generation) try {
  const SamplePlace place = sample_place(sample_id);
  const auto folder = generation ? std::nullopt : layout_.find_sample(place);
  const std::uint64_t current = current_in(folder, place);
  const std::uint64_t wanted = generation    ? *generation
                               : current > 0 ? current
                                             : greatest_in(folder, place);  // damaged, as whoever reads it is told
  SampleRef ref{.sample_id = sample_id, .run_id = RunId("unknown")};
  ref.feature_store_uri = uri_of(sample_id);
  ref.generation = wanted;
  ref.incarnation = file_.incarnation;
  const std::vector<StoredTensor> tensors = stored_tensors(open(ref));
  std::vector<FeatureSpec> specs;
  for (const StoredTensor& tensor : tensors)
    specs.push_back({.name = tensor.name, .shape = tensor.shape, .dtype = tensor.dtype});
  set_tensors(ref, std::move(specs), sample_id.str() + "/");
  add_codecs(ref, tensors);
  return ref;
} catch (const Error& error) {
  count_if_failed(error);
  throw;
}

std::vector<StoredTensor> SharedDirStore::stored_tensors(Opened opened) {
  if (books_.flat == nullptr) return GenerationReader(std::move(opened.fd), opened.path, opened.identity, keys()).tensors();
  return TorchGeneration(opened.fd.get(), opened.path, opened.identity, /*mapped=*/false, pool_).tensors();
}

}  // namespace draftflow::store
