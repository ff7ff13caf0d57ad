// SPDX-License-Identifier: Apache-2.0
//
// SharedDirStore: the feature store in a folder that processes share (docs/formats/shared_dir.md). There is no server and no
// lock around bytes: a generation appears by one exclusive rename, a lease is one more name of its file, and the bytes go
// with the last name. Making and opening one is in attach.cc, gc in collector.h. Thread-safe, and usable after a fork: a child
// makes its own numbers and leases.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/formats/buffer_pool.h"
#include "draftflow/store/feature_store.h"
#include "store/shared_dir/account.h"
#include "store/shared_dir/folder.h"
#include "store/shared_dir/generation_file.h"
#include "store/shared_dir/generations.h"
#include "store/shared_dir/group_sync.h"
#include "store/shared_dir/holder.h"
#include "store/shared_dir/layout.h"
#include "store/shared_dir/store_file.h"
#include "store/shared_dir/temporary.h"

namespace draftflow::store {

class SharedDirStore : public FeatureStore {
 public:
  // `keys`: of a store with a secret.
  SharedDirStore(Folder folder, const StoreId& id, const StoreFile& file, const SharedDirOptions& options,
                 std::optional<Keys> keys);
  ~SharedDirStore() override;

  SampleRef put(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata,
                const PutFence& fence) override;
  Fetched get(const SampleRef& ref, const GetOptions& options) override;
  TensorMap read(const SampleRef& ref, const std::vector<std::string>& names) override;
  void release(const FeatureHandle& handle) override;
  bool remove(const SampleRef& ref) override;
  std::uint64_t abort(const SampleId& sample_id) override;
  GcReport gc() override;
  StoreHealth health() override;
  StoreKind kind() const override { return file_.kind; }
  void for_each(const std::function<bool(const ResidentSample&)>& visit,
                const std::function<void(const std::filesystem::path&, const std::string&)>& damaged) override;
  SampleRef find(const SampleId& sample_id, std::optional<std::uint64_t> generation) override;
  ResidentSample resident(const SampleRef& ref) override;

 private:
  struct Lease {
    std::shared_ptr<Holder> holder;
    std::string link;
    SamplePlace place;
    std::string sample_id;
    std::uint64_t generation = 0;
  };
  struct Opened {
    UniqueFd fd;
    std::string path;
    SamplePlace place;
    Identity identity;
  };

  Identity identity_of(const SampleId& sample_id, std::uint64_t generation) const;
  std::string uri_of(const SampleId& sample_id) const;
  std::string why_foreign(const SampleRef& ref) const;  // empty if the ref is of this store
  [[noreturn]] void throw_not_found(const Identity& identity) const;
  std::string name_of(const SampleId& sample_id, const SamplePlace& place, std::uint64_t generation) const;
  void check_reference_can_name(const TensorMap& tensors, const SampleId& sample_id) const;
  Opened open(const SampleRef& ref) const;
  bool is_named(const Opened& opened) const;
  TensorMap load(Opened opened, const std::vector<const FeatureSpec*>& specs, const GetOptions& options);
  std::vector<StoredTensor> stored_tensors(Opened opened);
  void check_writable(const char* verb, const SampleId* sample_id = nullptr) const;  // PermissionDenied: it may only read
  static std::uint64_t greatest_in(const std::optional<Folder>& folder, const SamplePlace& place);  // by name; 0: none
  std::uint64_t current_in(const std::optional<Folder>& folder, const SamplePlace& place) const;    // by the files; 0: none
  std::uint64_t next_generation(const std::optional<Folder>& folder, const SamplePlace& place, bool newest);
  std::int64_t now_seconds() const;  // on the clock that the files' times are of
  std::shared_ptr<Holder> holder();
  void check_free_space(const SampleId& sample_id, std::uint64_t bytes) const;
  void reserve(Holder& holder, const SampleId& sample_id, std::uint64_t bytes) const;
  const Keys* keys() const { return keys_ ? &*keys_ : nullptr; }
  PackedSample pack_sample(const TensorMap& tensors, const SampleId& sample_id) const;
  // `folder`: the sample's, where it was there when the put began.
  void write(const PackedSample& sample, const SamplePlace& place, std::optional<Folder> folder, const Identity& identity,
             Reservation& reservation, const PutFence& fence);
  void publish(Temporary& temporary, const SamplePlace& place, std::optional<Folder> folder, const NamedGeneration& generation,
               Reservation& reservation);
  void publish_in_sample(Temporary& temporary, const SamplePlace& place, std::optional<Folder> folder,
                         const NamedGeneration& generation, Reservation& reservation);
  Published publish_on_account(Temporary& temporary, const Folder& folder, const SamplePlace& place, const std::string& name,
                               Reservation& reservation);
  void count_if_failed(const Error& error);
  Lease take_lease(const Opened& opened);
  void end_lease(const Lease& lease, bool consume);
  TensorMap map_checked(const GenerationReader& reader, const std::vector<const FeatureSpec*>& specs, std::uint64_t generation,
                        bool verify);

  Layout layout_;
  Folder temporaries_, epochs_, leases_;
  StoreId id_;
  StoreFile file_;
  SharedDirOptions options_;
  std::optional<Keys> keys_;
  const std::string read_only_;  // why this process may not write here; empty: it may
  Account account_;
  FlatNames flat_;
  Books books_;
  Generations generations_;
  BufferPool pool_;
  GroupSync syncs_;
  std::atomic<bool> mode_checked_{false};  // of what this process writes

  std::mutex mutex_;
  std::shared_ptr<Holder> holder_;                 // guarded by mutex_; none before the first lease or put
  std::unordered_map<std::uint64_t, Lease> live_;  // guarded by mutex_; by the number in the handle's token
  std::uint64_t next_lease_ = 0;                   // guarded by mutex_
  std::unordered_set<std::uint64_t> verified_;     // guarded by mutex_; generations whose bytes a mapping was checked against
};

}  // namespace draftflow::store
