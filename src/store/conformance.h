// SPDX-License-Identifier: Apache-2.0
//
// For this room's tests only: the backends that store bytes, and the fixture of the suites that run over each of them. A
// test attaches as often as it likes: every attach of one name sees the same store, until the test ends.
//
//   class Verbs : public Conformance {};
//   TEST_P(Verbs, PutThenRead) { attach()->put(...); }
//   DRAFTFLOW_INSTANTIATE_CONFORMANCE(Verbs);
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "draftflow/store/feature_store.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow {

struct StoreOptionsForTests {
  StoreKind kind = StoreKind::kLedgered;
  std::uint64_t max_resident_bytes = 0;
  std::int64_t max_hold_age_ms = 0;
  bool retain_on_release = false;
};

struct Backend {
  const char* name;
  std::function<std::unique_ptr<FeatureStore>(const std::filesystem::path& root, const StoreId& id,
                                              const StoreOptionsForTests& options)>
      attach;
  const char* uri;        // of sample `id` in store "features"; {} stands for the generation
  const char* note = "";  // what of the suites means less here, and where it is tested instead
  bool views = true;      // zero-copy gets
  std::function<void(const std::filesystem::path& root)> end = {};  // a test is over: lets go of what attach kept for it
  const char* id = "s/1";
  bool any_id = true;  // else only those that the reference runtime can name
};

inline void PrintTo(const Backend& backend, std::ostream* out) {
  *out << backend.name << (*backend.note == '\0' ? "" : ": ") << backend.note;
}

class Conformance : public ::testing::TestWithParam<Backend> {
 protected:
  ~Conformance() override {
    if (GetParam().end) GetParam().end(folder_.path());
  }
  std::unique_ptr<FeatureStore> attach(const std::string& id = "features", const StoreOptionsForTests& options = {}) {
    return GetParam().attach(folder_.path(), StoreId(id), options);
  }

  testing_support::TempFolder folder_;
};

// What a shared directory may be made with beside.
struct SharedDirKind {
  Durability durability = Durability::kNone;
  Codec codec = Codec::kRaw;
  const char* secret = nullptr;
  bool encrypt = false;
  StoreLayout layout = StoreLayout::kDraftflow;
};

inline Backend shared_dir_backend(const char* name, const SharedDirKind& kind) {
  const auto attach = [kind](const std::filesystem::path& root, const StoreId& id, const StoreOptionsForTests& options) {
    return create_shared_dir_store(
        root, id,
        {.kind = options.kind,
         .durability = kind.durability,
         .max_resident_bytes = options.max_resident_bytes,
         .max_hold_age_ms = options.max_hold_age_ms,
         .codec = kind.codec,
         .layout = kind.layout,
         .secret = kind.secret == nullptr ? nullptr : std::make_shared<Secret>(Secret::from_bytes(kind.secret)),
         .encrypt = kind.encrypt,
         .retain_on_release = options.retain_on_release});
  };
  Backend backend{name, attach, "disagg://features/s/1"};
  backend.views = kind.codec == Codec::kRaw && !kind.encrypt;
  if (kind.layout == StoreLayout::kSpecforge) {
    backend.id = "s:1";
    backend.any_id = false;
    backend.uri = "disagg://features/s:1";
  }
  return backend;
}

// A store in memory has one owner and cannot be attached to again: the test's attaches share one, which lives until the
// test ends. Each keeps its own retain_on_release only as the first attach of the name asked for it.
class SharedMemoryStore : public FeatureStore {
 public:
  explicit SharedMemoryStore(std::shared_ptr<FeatureStore> store) : store_(std::move(store)) {}
  SampleRef put(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata,
                const PutFence& fence) override {
    return store_->put(tensors, sample_id, metadata, fence);
  }
  Fetched get(const SampleRef& ref, const GetOptions& options) override { return store_->get(ref, options); }
  TensorMap read(const SampleRef& ref, const std::vector<std::string>& names) override { return store_->read(ref, names); }
  void release(const FeatureHandle& handle) override { store_->release(handle); }
  bool remove(const SampleRef& ref) override { return store_->remove(ref); }
  std::uint64_t abort(const SampleId& sample_id) override { return store_->abort(sample_id); }
  GcReport gc() override { return store_->gc(); }
  StoreHealth health() override { return store_->health(); }
  StoreKind kind() const override { return store_->kind(); }
  void for_each(const std::function<bool(const ResidentSample&)>& visit,
                const std::function<void(const std::filesystem::path&, const std::string&)>& damaged) override {
    store_->for_each(visit, damaged);
  }
  SampleRef find(const SampleId& sample_id, std::optional<std::uint64_t> generation) override {
    return store_->find(sample_id, generation);
  }

 private:
  std::shared_ptr<FeatureStore> store_;
};

inline Backend memory_backend() {
  using Stores = std::map<StoreId, std::shared_ptr<FeatureStore>>;
  const auto roots = std::make_shared<std::map<std::filesystem::path, Stores>>();
  const auto attach = [roots](const std::filesystem::path& root, const StoreId& id, const StoreOptionsForTests& options) {
    std::shared_ptr<FeatureStore>& store = (*roots)[root][id];
    if (store == nullptr) {
      store = create_memory_store(id, {.kind = options.kind,
                                       .max_resident_bytes = options.max_resident_bytes,
                                       .max_hold_age_ms = options.max_hold_age_ms,
                                       .retain_on_release = options.retain_on_release});
    }
    return std::make_unique<SharedMemoryStore>(store);
  };
  return {"memory",
          attach,
          "mem://features/s%2F1?generation={}",
          "attaches of one test share one store: what its end does to leases, refs and views is in memory_store_test.cc",
          true,
          [roots](const std::filesystem::path& root) { roots->erase(root); }};
}

inline std::vector<Backend> conformance_backends() {
  return {shared_dir_backend("shared_dir", {}),
          shared_dir_backend("shared_dir_durable", {.durability = Durability::kFull}),
          shared_dir_backend("shared_dir_zstd", {.codec = Codec::kZstd}),
          shared_dir_backend("shared_dir_specforge", {.layout = StoreLayout::kSpecforge}),
          shared_dir_backend("shared_dir_sealed", {.secret = "the conformance suite's secret"}),
          shared_dir_backend("shared_dir_encrypted", {.codec = Codec::kZstd, .secret = "another secret", .encrypt = true}),
          memory_backend()};
}

#define DRAFTFLOW_INSTANTIATE_CONFORMANCE(suite)                                         \
  INSTANTIATE_TEST_SUITE_P(Backends, suite, ::testing::ValuesIn(conformance_backends()), \
                           [](const auto& backend) { return std::string(backend.param.name); })

}  // namespace draftflow
