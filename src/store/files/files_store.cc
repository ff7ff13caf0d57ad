// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <atomic>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/store/feature_store.h"
#include "store/ref_maker.h"

namespace draftflow {
namespace {

constexpr std::string_view kScheme = "file://";

std::filesystem::path path_of(const SampleRef& ref) {
  const std::string& uri = ref.feature_store_uri;
  if (!uri.starts_with(kScheme) || uri.size() == kScheme.size() || uri[kScheme.size()] != '/') {
    throw NotFound(fmt::format("sample '{}' is not a file in place: its URI is '{}', not file:// and an absolute path",
                               printable(ref.sample_id.str()), printable(uri)));
  }
  return uri.substr(kScheme.size());
}

std::string_view raw_key(const SampleRef& ref, const std::string& name) {
  for (const auto& [known, key] : ref.feature_keys) {
    if (known == name) return key;
  }
  throw Corrupt(fmt::format("the ref of sample '{}' has a spec but no feature key for '{}'", printable(ref.sample_id.str()),
                            printable(name)));
}

// Without state but for a count, so that any thread may call anything.
class FilesStore : public FeatureStore {
 public:
  SampleRef put(const TensorMap&, const SampleId& sample_id, const PutMetadata&, const PutFence&) override {
    throw InvalidArgument(fmt::format("put of sample '{}': files in place are read-only; put into a shared-directory store",
                                      printable(sample_id.str())));
  }

  TensorMap read(const SampleRef& ref, const std::vector<std::string>& names) override try {
    const std::filesystem::path path = path_of(ref);
    const std::vector<const FeatureSpec*> specs = store::specs_to_read(ref, names);
    std::vector<std::string> keys;
    for (const FeatureSpec* spec : specs) keys.emplace_back(raw_key(ref, spec->name));
    const std::string what = fmt::format("sample '{}' ({})", printable(ref.sample_id.str()), path.string());
    const TensorMap found = load(path, keys, what);
    TensorMap tensors;
    for (std::size_t i = 0; i < specs.size(); ++i) {
      const Tensor* tensor = find_tensor(found, keys[i]);
      if (tensor == nullptr) {
        throw Corrupt(fmt::format("{}: the file has no tensor '{}', which the ref names: it was changed since", what,
                                  printable(keys[i])));
      }
      store::check_against_spec(*specs[i], tensor->dtype, tensor->shape, what);
      tensors.emplace_back(specs[i]->name, *tensor);
    }
    return tensors;
  } catch (const Error& error) {
    if (store::is_failure(error)) ++errors_;
    throw;
  }

  // Nobody frees a user's file, so that a lease has nothing to keep.
  Fetched get(const SampleRef& ref, const GetOptions& options) override {
    if (options.zero_copy) {
      throw InvalidArgument(fmt::format("zero-copy get of sample '{}': a user's file may be changed in place: get copies",
                                        printable(ref.sample_id.str())));
    }
    return {read(ref, options.names), {ref.sample_id, ref.generation, "file"}};
  }

  void release(const FeatureHandle&) override {}
  bool remove(const SampleRef&) override { return false; }
  std::uint64_t abort(const SampleId&) override { return 0; }
  GcReport gc() override { return {}; }
  StoreKind kind() const override { return StoreKind::kLedgered; }
  void for_each(const std::function<bool(const ResidentSample&)>&,
                const std::function<void(const std::filesystem::path&, const std::string&)>&) override {}

  SampleRef find(const SampleId& sample_id, std::optional<std::uint64_t>) override {
    throw NotFound(fmt::format("files in place have no index: sample '{}' is found by its ref alone; ingest its folder",
                               printable(sample_id.str())));
  }
  StoreHealth health() override { return {.backend = "files", .errors_total = errors_.load()}; }

 private:
  static TensorMap load(const std::filesystem::path& path, std::vector<std::string> keys, const std::string& what) {
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) {
      throw NotFound(fmt::format("{}: the file is gone; ingest its folder again", what));
    }
    if (path.extension() != ".safetensors") return read_feature_file(path).tensors;
    try {
      return read_safetensors(path, std::move(keys));
    } catch (const NotFound& error) {  // a file that lost a tensor is not a sample that was freed
      throw Corrupt(fmt::format("{}: {}: the file was changed since", what, error.what()));
    }
  }

  std::atomic<std::uint64_t> errors_{0};
};

}  // namespace

std::unique_ptr<FeatureStore> open_files_store() {
  return std::make_unique<FilesStore>();
}

SampleRef make_file_ref(const std::filesystem::path& file, const TensorMap& tensors, const SampleId& id,
                        const PutMetadata& metadata) {
  store::check_put(tensors, id, metadata);
  const std::string path = std::filesystem::absolute(file).string();
  const std::size_t bad = find_invalid_utf8(path);
  if (bad != std::string::npos) {
    throw InvalidArgument(fmt::format(
        "the path '{}' is not UTF-8 at byte {}: a ref is JSON and cannot hold it; rename the file", printable(path), bad));
  }
  SampleRef ref = store::make_ref(tensors, id, metadata, std::string(kScheme) + path, "");
  ref.generation = 1;
  return ref;
}

}  // namespace draftflow
