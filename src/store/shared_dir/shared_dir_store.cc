// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/shared_dir_store.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "store/ref_maker.h"

namespace draftflow::store {
namespace {

std::vector<std::uint64_t> generations_in(const Folder& folder, const SamplePlace& place) {
  std::vector<std::uint64_t> generations;
  for (const std::string& name : folder.list()) {
    if (const auto generation = parse_generation_name(place, name)) generations.push_back(*generation);
  }
  std::sort(generations.begin(), generations.end());
  return generations;
}

std::uint64_t tensor_bytes_at(const Folder& folder, const std::string& name) {
  const auto size = folder.size_of(name);
  if (!size) return 0;
  const UniqueFd fd(::openat(folder.fd(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  return fd ? tensor_bytes_of_file(fd.get(), *size) : *size;
}

// Unlinks all generations but the greatest, the oldest first. Two puts that overlap both do it, so one generation stays.
GcReport retire_superseded(const Folder& folder, const SamplePlace& place, bool count_bytes) {
  GcReport report;
  const std::vector<std::uint64_t> generations = generations_in(folder, place);
  for (std::size_t i = 0; i + 1 < generations.size(); ++i) {
    const std::string name = generation_name(place, generations[i]);
    const std::uint64_t bytes = count_bytes ? tensor_bytes_at(folder, name) : 0;
    if (!folder.unlink(name)) continue;
    ++report.generations_removed;
    report.bytes_removed += bytes;
  }
  return report;
}

void for_each_sample_folder(const Folder& samples,
                            const std::function<void(const Folder& fan_out, const SamplePlace&)>& visit) {
  for (const std::string& name : samples.list()) {
    if (!is_fan_out_name(name)) continue;
    const auto fan_out = samples.find(name);
    if (!fan_out) continue;
    for (const std::string& folder : fan_out->list()) {
      if (const auto place = parse_sample_folder(name, folder)) visit(*fan_out, *place);
    }
  }
}

Folder required_folder(const Folder& store, const char* name) {
  auto found = store.find(name);
  if (!found) throw Corrupt(fmt::format("{} has a {} but no folder '{}'", store.path().string(), kStoreFileName, name));
  return std::move(*found);
}

}  // namespace

SharedDirStore::SharedDirStore(Folder folder, const StoreId& id, const StoreFile& file, const SharedDirOptions& options)
    : folder_(std::move(folder)),
      temporaries_(required_folder(folder_, kTemporaryFolder)),
      samples_(required_folder(folder_, kSamplesFolder)),
      epochs_(required_folder(folder_, kEpochsFolder)),
      id_(id),
      incarnation_(file.incarnation),
      options_(options),
      generations_(epochs_) {}

Identity SharedDirStore::identity_of(const SampleId& sample_id, std::uint64_t generation) const {
  return {id_.str(), incarnation_, sample_id.str(), generation};
}

std::string SharedDirStore::uri_of(const SampleId& sample_id) const {
  return "disagg://" + id_.str() + "/" + sample_id.str();
}

std::string SharedDirStore::why_foreign(const SampleRef& ref) const {
  if (ref.feature_store_uri != uri_of(ref.sample_id)) return fmt::format("its URI is '{}'", printable(ref.feature_store_uri));
  if (ref.incarnation == incarnation_) return "";
  return fmt::format("it is of incarnation '{}', but the store here is incarnation '{}': the store was deleted and made again",
                     printable(ref.incarnation), incarnation_);
}

std::optional<Folder> SharedDirStore::find_sample_folder(const SamplePlace& place) const {
  const auto fan_out = samples_.find(place.fan_out);
  return fan_out ? fan_out->find(place.folder) : std::nullopt;
}

std::uint64_t SharedDirStore::greatest_present(const SamplePlace& place) const {
  const auto folder = find_sample_folder(place);
  if (!folder) return 0;
  const std::vector<std::uint64_t> generations = generations_in(*folder, place);
  return generations.empty() ? 0 : generations.back();
}

void SharedDirStore::check_free_space(const SampleId& sample_id, std::uint64_t bytes) const {
  const std::uint64_t free = free_bytes(folder_), floor = options_.free_space_floor_bytes;
  if (free >= bytes && free - bytes >= floor) return;
  throw Exhausted(
      fmt::format("put of sample '{}' asks for {} bytes, but store '{}' at {} has {} bytes free and keeps a floor of "
                  "{}: free samples or space, then retry",
                  printable(sample_id.str()), bytes, printable(id_.str()), folder_.path().string(), free, floor));
}

SampleRef SharedDirStore::put(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata) {
  check_put(tensors, sample_id, metadata);
  const std::uint64_t bytes = bytes_of(tensors);
  check_free_space(sample_id, bytes);
  const SamplePlace place = sample_place(sample_id);
  SampleRef ref = make_ref(tensors, sample_id, metadata, uri_of(sample_id), sample_id.str() + "/");
  try {
    ref.generation = generations_.next(greatest_present(place));
    ref.incarnation = incarnation_;
    write(tensors, place, identity_of(sample_id, ref.generation));
  } catch (const Exhausted& error) {
    throw Exhausted(
        fmt::format("put of sample '{}' of {} bytes into store '{}' with {} bytes free (floor {}): {}; nothing was "
                    "kept: free samples or space, then retry",
                    printable(sample_id.str()), bytes, printable(id_.str()), free_bytes(folder_),
                    options_.free_space_floor_bytes, error.what()));
  } catch (const NotFound& error) {
    throw NotFound(fmt::format("put of sample '{}': store '{}' at {} was deleted while attached; attach again ({})",
                               printable(sample_id.str()), printable(id_.str()), folder_.path().string(), error.what()));
  }
  return ref;
}

void SharedDirStore::write(const TensorMap& tensors, const SamplePlace& place, const Identity& identity) {
  Temporary temporary(temporaries_);
  write_generation(temporary.fd(), temporary.path(), identity, tensors);
  if (options_.durable) temporary.sync();
  temporary.check_close();
  try {
    publish(temporary, place, identity.generation);
  } catch (...) {
    try {
      forget_empty_folder(place);
    } catch (const Error&) {  // the first error is the one to tell; gc removes empty folders
    }
    throw;
  }
}

void SharedDirStore::publish(Temporary& temporary, const SamplePlace& place, std::uint64_t generation) {
  constexpr int kTries = 100;  // each failure means that a remove took the folder away when it was empty
  const std::string name = generation_name(place, generation);
  for (int i = 0; i < kTries; ++i) {
    const Folder fan_out = samples_.find_or_make(place.fan_out);
    const Folder folder = fan_out.find_or_make(place.folder);
    const Published published = temporary.publish(folder, name);
    if (published == Published::kFolderGone) continue;
    if (published == Published::kExists) {
      throw Corrupt(fmt::format("{} is there already, but its generation was never given before: draftflow did not make it",
                                folder.shown(name).string()));
    }
    try {
      if (options_.durable) {
        folder.sync();
        fan_out.sync();
        samples_.sync();
      }
      retire_superseded(folder, place, /*count_bytes=*/false);
    } catch (...) {
      folder.unlink(name);
      throw;
    }
    return;
  }
  throw Unavailable(fmt::format("the folder of {} was removed {} times while it was published: retry", name, kTries));
}

TensorMap SharedDirStore::get(const SampleRef& ref, const std::vector<std::string>& names) {
  const std::string what = describe(identity_of(ref.sample_id, ref.generation));
  if (const std::string why = why_foreign(ref); !why.empty()) {
    throw NotFound(fmt::format("{} is not here: {}", what, why));
  }
  const std::vector<const FeatureSpec*> specs = specs_to_read(ref, names);
  const SamplePlace place = sample_place(ref.sample_id);
  const std::string name = generation_name(place, ref.generation);
  const auto folder = find_sample_folder(place);
  auto fd = folder ? folder->find_file(name, O_RDONLY) : std::nullopt;
  if (!fd) {
    throw NotFound(fmt::format("{} is not at {}: it was freed, superseded or never written; ask the ledger for a current ref",
                               what, folder_.path().string()));
  }
  const GenerationReader reader(std::move(*fd), folder->shown(name), identity_of(ref.sample_id, ref.generation));
  TensorMap tensors;
  for (const FeatureSpec* spec : specs) tensors.emplace_back(spec->name, reader.read(*spec));
  return tensors;
}

bool SharedDirStore::remove(const SampleRef& ref) {
  if (!why_foreign(ref).empty()) return false;
  const SamplePlace place = sample_place(ref.sample_id);
  const auto folder = find_sample_folder(place);
  if (!folder || !folder->unlink(generation_name(place, ref.generation))) return false;
  forget_empty_folder(place);
  return true;
}

void SharedDirStore::forget_empty_folder(const SamplePlace& place) const {
  if (const auto fan_out = samples_.find(place.fan_out)) fan_out->remove_if_empty(place.folder);
}

GcReport SharedDirStore::gc() {
  GcReport report;
  const Cleared cleared = clear_orphans(temporaries_);
  report.temporaries_removed = cleared.files;
  report.bytes_removed = cleared.bytes;
  for_each_sample_folder(samples_, [&](const Folder& fan_out, const SamplePlace& place) {
    const auto folder = fan_out.find(place.folder);
    if (!folder) return;
    const GcReport retired = retire_superseded(*folder, place, /*count_bytes=*/true);
    report.generations_removed += retired.generations_removed;
    report.bytes_removed += retired.bytes_removed;
    fan_out.remove_if_empty(place.folder);
  });
  prune_epochs(epochs_);
  return report;
}

StoreHealth SharedDirStore::health() {
  StoreHealth health{.store_id = id_.str(), .backend = "shared_dir", .root = folder_.path().parent_path().string()};
  for_each_sample_folder(samples_, [&](const Folder& fan_out, const SamplePlace& place) {
    const auto folder = fan_out.find(place.folder);
    if (!folder) return;
    for (const std::uint64_t generation : generations_in(*folder, place)) {
      ++health.resident_samples;
      health.resident_bytes += tensor_bytes_at(*folder, generation_name(place, generation));
    }
  });
  health.free_bytes = free_bytes(folder_);
  return health;
}

}  // namespace draftflow::store

namespace draftflow {

std::unique_ptr<FeatureStore> create_shared_dir_store(const std::filesystem::path& root, const StoreId& id,
                                                      const SharedDirOptions& options) {
  make_folders(root);
  store::Folder folder = store::Folder::open(root).find_or_make(store::store_folder_name(id));
  const store::StoreFile file = store::make_store_file(folder, id);
  store::Folder::open(root).sync();
  return std::make_unique<store::SharedDirStore>(std::move(folder), id, file, options);
}

std::unique_ptr<FeatureStore> open_shared_dir_store(const std::filesystem::path& root, const StoreId& id,
                                                    const SharedDirOptions& options) {
  const std::filesystem::path path = root / store::store_folder_name(id);
  std::error_code ignored;
  const bool there = std::filesystem::is_directory(path, ignored);
  auto folder = there ? store::Folder::open(root).find(store::store_folder_name(id)) : std::nullopt;
  const auto file = folder ? store::find_store_file(*folder, id) : std::nullopt;
  if (!file) {
    throw NotFound(fmt::format("there is no store '{}' at {} (no {} there): check the path, or create the store first",
                               printable(id.str()), path.string(), store::kStoreFileName));
  }
  return std::make_unique<store::SharedDirStore>(std::move(*folder), id, *file, options);
}

}  // namespace draftflow
