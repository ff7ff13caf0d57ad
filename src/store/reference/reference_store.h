// SPDX-License-Identifier: Apache-2.0
//
// ReferenceStore: a folder that the reference runtime's shared-directory store wrote, {sample_id}.g{generation}.ckpt side by
// side (docs/formats/reference.md), read as it is. Read-only: the files are the user's, so nothing is ever deleted, and a
// lease has nothing to keep. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "draftflow/base/random.h"
#include "draftflow/formats/buffer_pool.h"
#include "draftflow/store/feature_store.h"
#include "store/ref_maker.h"
#include "store/shared_dir/folder.h"
#include "store/shared_dir/names.h"

namespace draftflow::store {

// Whether a folder without store.json is one: it holds a file with such a name.
bool is_reference_folder(const Folder& folder);

class ReferenceStore : public FeatureStore {
 public:
  ReferenceStore(Folder folder, const StoreId& id) : folder_(std::move(folder)), id_(id) {}

  SampleRef put(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata,
                const PutFence& fence) override;
  Fetched get(const SampleRef& ref, const GetOptions& options) override;
  TensorMap read(const SampleRef& ref, const std::vector<std::string>& names) override;
  void release(const FeatureHandle&) override {}
  bool remove(const SampleRef&) override { return false; }
  std::uint64_t abort(const SampleId&) override { return 0; }
  GcReport gc() override { return {}; }
  StoreHealth health() override;  // counts once, at the first call
  StoreKind kind() const override { return StoreKind::kLedgered; }
  void for_each(const std::function<bool(const ResidentSample&)>& visit,
                const std::function<void(const std::filesystem::path&, const std::string&)>& damaged) override;
  SampleRef find(const SampleId& sample_id, std::optional<std::uint64_t> generation) override;
  ResidentSample resident(const SampleRef& ref) override;

 private:
  std::string name_of(const SampleId& sample_id, std::uint64_t generation) const;
  std::uint64_t greatest(const SampleId& sample_id) const;
  void check_ours(const SampleRef& ref) const;
  UniqueFd open(const SampleId& sample_id, std::uint64_t generation) const;
  struct Loaded;
  Loaded load(const SampleId& sample_id, std::uint64_t generation, bool mapped) const;
  TensorMap read(const SampleRef& ref, const std::vector<std::string>& names, bool mapped) const;
  ResidentSample describe(const std::string& name, const ReferenceName& parsed) const;

  const Folder folder_;
  const StoreId id_;
  mutable BufferPool pool_{kMaxIdleBytes};
  const std::string token_prefix_ = random_hex128();  // so that no other store or process gives the same token
  std::atomic<std::uint64_t> next_lease_{0};
  mutable std::atomic<std::uint64_t> errors_{0};
  std::mutex mutex_;
  std::optional<StoreHealth> counted_;  // guarded by mutex_
};

}  // namespace draftflow::store
