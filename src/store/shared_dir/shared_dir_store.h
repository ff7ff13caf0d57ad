// SPDX-License-Identifier: Apache-2.0
//
// SharedDirStore: the feature store in a folder that processes share (docs/formats/shared_dir.md). There is no server and no
// lock around bytes: a generation appears by one exclusive rename and goes by one unlink. All members are constant after
// construction but for the generation numbers, which synchronise themselves; thread-safe, and usable after a fork.
#pragma once

#include <string>
#include <vector>

#include "draftflow/store/feature_store.h"
#include "store/shared_dir/folder.h"
#include "store/shared_dir/generation_file.h"
#include "store/shared_dir/generations.h"
#include "store/shared_dir/names.h"
#include "store/shared_dir/store_file.h"
#include "store/shared_dir/temporary.h"

namespace draftflow::store {

class SharedDirStore : public FeatureStore {
 public:
  SharedDirStore(Folder folder, const StoreId& id, const StoreFile& file, const SharedDirOptions& options);

  SampleRef put(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata) override;
  TensorMap get(const SampleRef& ref, const std::vector<std::string>& names) override;
  bool remove(const SampleRef& ref) override;
  GcReport gc() override;
  StoreHealth health() override;

 private:
  Identity identity_of(const SampleId& sample_id, std::uint64_t generation) const;
  std::string uri_of(const SampleId& sample_id) const;
  std::string why_foreign(const SampleRef& ref) const;  // empty if the ref is of this store
  std::optional<Folder> find_sample_folder(const SamplePlace& place) const;
  std::uint64_t greatest_present(const SamplePlace& place) const;
  void check_free_space(const SampleId& sample_id, std::uint64_t bytes) const;
  void write(const TensorMap& tensors, const SamplePlace& place, const Identity& identity);
  void publish(Temporary& temporary, const SamplePlace& place, std::uint64_t generation);
  void forget_empty_folder(const SamplePlace& place) const;

  Folder folder_, temporaries_, samples_, epochs_;
  StoreId id_;
  std::string incarnation_;
  SharedDirOptions options_;
  Generations generations_;
};

}  // namespace draftflow::store
