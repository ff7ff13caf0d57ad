// SPDX-License-Identifier: Apache-2.0
#include "store/reference/reference_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <ctime>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"
#include "draftflow/base/text.h"
#include "store/ref_maker.h"
#include "store/shared_dir/torch_generation.h"

namespace draftflow::store {
namespace {

std::string shown_sample(const SampleId& id, std::uint64_t generation) {
  return fmt::format("sample '{}' generation {}", printable(id.str()), generation);
}

// The file's tensor of a feature: the ref's key of it, "{sample_id}/{name}" or a raw key, of which the reference takes what
// follows the last '/'; without a key its own name.
std::optional<Tensor> find_feature(TorchZip& file, const SampleRef& ref, const std::string& name) {
  std::string_view key = name;
  for (const auto& [known, raw] : ref.feature_keys) {
    if (known == name) key = raw;
  }
  const std::string prefix = ref.sample_id.str() + "/";
  if (key.starts_with(prefix)) {
    if (auto tensor = file.read(key.substr(prefix.size()))) return tensor;
  }
  return file.read(key.substr(key.rfind('/') + 1));  // npos + 1 is 0
}

}  // namespace

bool is_reference_folder(const Folder& folder) {
  const auto names = folder.list();
  return std::any_of(names.begin(), names.end(),
                     [](const std::string& name) { return parse_reference_name(name).has_value(); });
}

std::string ReferenceStore::name_of(const SampleId& sample_id, std::uint64_t generation) const {
  if (auto name = reference_name(sample_id, generation)) return std::move(*name);
  throw NotFound(fmt::format("{} is not in {}: the reference has no file for an id that holds '/' or a newline, or is so long",
                             shown_sample(sample_id, generation), folder_.path()));
}

void ReferenceStore::check_ours(const SampleRef& ref) const {
  const std::string uri = "disagg://" + id_.str() + "/" + ref.sample_id.str();
  if (ref.feature_store_uri == uri && ref.incarnation.empty()) return;
  throw NotFound(
      fmt::format("{} is not in the reference's folder {}: {}", shown_sample(ref.sample_id, ref.generation), folder_.path(),
                  ref.incarnation.empty()
                      ? fmt::format("its URI is '{}'", printable(ref.feature_store_uri))
                      : fmt::format("it is of incarnation '{}' of a store of draftflow's", printable(ref.incarnation))));
}

UniqueFd ReferenceStore::open(const SampleId& sample_id, std::uint64_t generation) const {
  auto fd = folder_.find_file(name_of(sample_id, generation), O_RDONLY);
  if (fd) return std::move(*fd);
  throw NotFound(fmt::format("{} is not in the reference's folder {}: it was freed, superseded or never written",
                             shown_sample(sample_id, generation), folder_.path()));
}

struct ReferenceStore::Loaded {
  UniqueFd fd;
  std::string what;
  TorchZip file;
};

// A copy survives that the file is cut short meanwhile; a mapping is good because what the reference writes is published by a
// rename and never written again.
ReferenceStore::Loaded ReferenceStore::load(const SampleId& sample_id, std::uint64_t generation, bool mapped) const {
  UniqueFd fd = open(sample_id, generation);
  const std::string path = folder_.shown(name_of(sample_id, generation));
  std::string what = fmt::format("{} ({})", shown_sample(sample_id, generation), path);
  TorchZip file = open_torch_file(fd.get(), path, what, mapped, pool_);
  return {std::move(fd), std::move(what), std::move(file)};
}

TensorMap ReferenceStore::read(const SampleRef& ref, const std::vector<std::string>& names) {
  return read(ref, names, /*mapped=*/false);
}

TensorMap ReferenceStore::read(const SampleRef& ref, const std::vector<std::string>& names, bool mapped) const try {
  check_ours(ref);
  const std::vector<const FeatureSpec*> specs = specs_to_read(ref, names);
  Loaded found = load(ref.sample_id, ref.generation, mapped);
  TensorMap tensors;
  for (const FeatureSpec* spec : specs) {
    const auto tensor = find_feature(found.file, ref, spec->name);
    tensors.emplace_back(spec->name, tensor_of(*spec, tensor ? &*tensor : nullptr, found.what));
  }
  return tensors;
} catch (const Error& error) {
  if (is_failure(error)) ++errors_;
  throw;
}

Fetched ReferenceStore::get(const SampleRef& ref, const GetOptions& options) {
  if (options.zero_copy && on_network_file_system(folder_)) {
    throw InvalidArgument(
        fmt::format("zero-copy get of sample '{}': {} is on {}, where another host can cut a mapped file short: get copies",
                    printable(ref.sample_id.str()), folder_.path(), file_system_name(folder_)));
  }
  TensorMap tensors = read(ref, options.names, options.zero_copy);
  return {std::move(tensors), {ref.sample_id, ref.generation, fmt::format("{}.{}", token_prefix_, ++next_lease_)}};
}

SampleRef ReferenceStore::put(const TensorMap&, const SampleId& sample_id, const PutMetadata&, const PutFence&) {
  throw InvalidArgument(
      fmt::format("put of sample '{}' into {}: the reference runtime wrote this folder, and it is only read: "
                  "put into a store of draftflow's own",
                  printable(sample_id.str()), folder_.path()));
}

std::uint64_t ReferenceStore::greatest(const SampleId& sample_id) const {
  std::optional<std::uint64_t> found;
  for (const std::string& name : folder_.list()) {
    const auto parsed = parse_reference_name(name);
    if (!parsed || parsed->sample_id != sample_id.str() || name != name_of(sample_id, parsed->generation)) continue;
    found = std::max(found.value_or(0), parsed->generation);
  }
  if (found) return *found;
  throw NotFound(fmt::format("sample '{}' is not in the reference's folder {}", printable(sample_id.str()), folder_.path()));
}

SampleRef ReferenceStore::find(const SampleId& sample_id, std::optional<std::uint64_t> generation) {
  const std::uint64_t wanted = generation ? *generation : greatest(sample_id);
  SampleRef ref = make_ref({}, sample_id, {.run_id = RunId("unknown")}, "disagg://" + id_.str() + "/" + sample_id.str(), "");
  ref.generation = wanted;
  const Loaded found = load(sample_id, wanted, /*mapped=*/false);
  std::vector<FeatureSpec> specs;
  for (const TorchZip::Entry& entry : found.file.tensors()) {
    specs.push_back({.name = entry.name, .shape = entry.shape, .dtype = entry.dtype});
  }
  set_tensors(ref, std::move(specs), sample_id.str() + "/");
  return ref;
}

ResidentSample ReferenceStore::describe(const std::string& name, const ReferenceName& parsed) const {
  ResidentSample sample{.sample_id = SampleId(parsed.sample_id), .generation = parsed.generation, .path = folder_.shown(name)};
  if (name != name_of(sample.sample_id, sample.generation)) {
    throw Corrupt(sample.path.string() + " has zeros before its generation, a name that the reference opens never: rename it");
  }
  struct stat status {};
  if (::fstatat(folder_.fd(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) throw NotFound(sample.path.string() + " was freed meanwhile");
    throw_errno(errno, "looking at " + sample.path.string());
  }
  if (!S_ISREG(status.st_mode)) {
    throw Corrupt(sample.path.string() + " is not a regular file, and no link is followed: remove it");
  }
  sample.bytes = static_cast<std::uint64_t>(status.st_size);
  sample.age_s = static_cast<double>(std::max<std::int64_t>(0, ::time(nullptr) - status.st_mtim.tv_sec));
  return sample;
}

ResidentSample ReferenceStore::resident(const SampleRef& ref) {
  check_ours(ref);
  return describe(name_of(ref.sample_id, ref.generation), {ref.sample_id.str(), ref.generation});
}

void ReferenceStore::for_each(const std::function<bool(const ResidentSample&)>& visit,
                              const std::function<void(const std::filesystem::path&, const std::string&)>& damaged) {
  for (const std::string& name : folder_.list()) {
    check_interrupt();
    const auto parsed = parse_reference_name(name);
    if (!parsed) continue;
    try {
      if (!visit(describe(name, *parsed))) return;
    } catch (const NotFound&) {  // freed meanwhile
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kCorrupt && error.kind() != ErrorKind::kInvalidArgument) throw;
      damaged(folder_.shown(name), error.what());
    }
  }
}

StoreHealth ReferenceStore::health() {
  const std::lock_guard lock(mutex_);
  if (!counted_) {
    StoreHealth health{
        .store_id = id_.str(), .backend = "reference", .root = std::filesystem::path(folder_.path()).parent_path().string()};
    for_each(
        [&](const ResidentSample& sample) {
          ++health.resident_samples;
          health.resident_bytes += sample.bytes;
          health.oldest_age_s = std::max(health.oldest_age_s, sample.age_s);
          health.average_age_s += sample.age_s;
          return true;
        },
        [](const std::filesystem::path&, const std::string&) {});
    if (health.resident_samples > 0) health.average_age_s /= static_cast<double>(health.resident_samples);
    counted_ = health;
  }
  StoreHealth health = *counted_;
  health.free_bytes = free_bytes(folder_);
  health.errors_total = errors_.load();
  return health;
}

}  // namespace draftflow::store
