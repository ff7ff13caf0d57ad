// SPDX-License-Identifier: Apache-2.0
//
// MemoryStore: the feature store in this process's memory. It owns a copy of the bytes of each put; they never change, so
// that readers and zero-copy views share them, and go with the last of both. There are no checksums: nobody outside this
// process can change them. The mutex is held for bookkeeping only, never while bytes are copied or freed, and never while
// the caller's functions run; those may call the store. One generation is in one State at a time:
//
//   put -> kCurrent -> kRetired (leased) -> kFreeing -> gone, or kPending until gc tries the free again
//
// A forked child has a copy of everything, and gives generations and tokens of its own from then on. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "draftflow/formats/buffer_pool.h"
#include "draftflow/store/feature_store.h"

namespace draftflow::store {

// The mem:// URI, with the sample id quoted as Python's urllib.parse.quote(id, safe="") does.
std::string memory_uri(const StoreId& store_id, const SampleId& sample_id, std::uint64_t generation);

class MemoryStore : public FeatureStore {
 public:
  MemoryStore(const StoreId& id, const MemoryOptions& options);

  SampleRef put(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata,
                const PutFence& fence) override;
  Fetched get(const SampleRef& ref, const GetOptions& options) override;
  TensorMap read(const SampleRef& ref, const std::vector<std::string>& names) override;
  void release(const FeatureHandle& handle) override;
  bool remove(const SampleRef& ref) override;
  std::uint64_t abort(const SampleId& sample_id) override;
  GcReport gc() override;
  StoreHealth health() override;
  StoreKind kind() const override { return options_.kind; }
  void for_each(const std::function<bool(const ResidentSample&)>& visit,
                const std::function<void(const std::filesystem::path&, const std::string&)>& damaged) override;
  SampleRef find(const SampleId& sample_id, std::optional<std::uint64_t> generation) override;

 private:
  enum class State { kCurrent, kRetired, kFreeing, kPending };
  struct Entry {
    const SampleId sample_id;
    const std::uint64_t generation;
    const std::uint64_t bytes;
    const std::int64_t put_ms;  // since the store was made
    TensorMap tensors;          // filled by put before anyone sees the entry

    State state = State::kCurrent;  // this and the rest: guarded by mutex_
    std::uint64_t leases = 0;
    bool consumed = false;  // by a release
    bool forced = false;    // retired for its age
  };
  using Shared = std::shared_ptr<Entry>;
  using ByGeneration = std::map<std::uint64_t, Shared>;  // and so by age
  class Reservation;

  std::int64_t clock_ms() const;
  std::int64_t now_ms() const { return clock_ms() - made_ms_; }
  std::string describe(const SampleId& sample_id, std::uint64_t generation) const;
  std::string why_foreign(const SampleRef& ref) const;  // empty if the ref is of this store
  void check_ours(const SampleRef& ref) const;          // NotFound if it is not
  [[noreturn]] void throw_not_found(const SampleId& sample_id, std::uint64_t generation) const;
  const Tensor& stored(const Entry& entry, const FeatureSpec& spec) const;  // Corrupt unless it is as the spec says
  Tensor copy(const Tensor& tensor);
  TensorMap copy(const Entry& entry, const std::vector<const FeatureSpec*>& specs);

  // With mutex_ held.
  void leave_the_parent();
  Shared current(const SampleId& sample_id, std::uint64_t generation) const;  // or null
  std::uint64_t resident_bytes() const { return resident_bytes_ + reserved_bytes_; }
  // True: it is kFreeing now, and the caller must free it when it has let go of the mutex.
  bool supersede(Entry& entry);
  bool retire(Entry& entry);  // of kCurrent
  bool end_lease(Entry& entry, bool consume);

  // Without it.
  void publish(const Shared& entry, Reservation& reservation);
  void end_lease(const FeatureHandle& handle, bool consume);
  std::vector<Shared> take_what_gc_frees(std::int64_t now);  // all are kFreeing
  bool free(const Shared& entry);                            // of kFreeing; false: it is kPending now

  const StoreId id_;
  const MemoryOptions options_;
  const std::string incarnation_;
  const std::int64_t made_ms_;
  BufferPool pool_;  // synchronises itself

  std::mutex mutex_;      // guards all below
  ByGeneration books_;    // all but those that are pending
  ByGeneration pending_;  // their free failed, or is being tried again
  std::unordered_map<SampleId, Shared> current_;
  std::unordered_map<std::string, Shared> leases_;  // by token
  std::uint64_t last_generation_ = 0;
  std::int64_t last_put_ms_ = 0;
  std::uint64_t next_lease_ = 0;
  std::uint64_t forks_ = 0;   // of the process, when the prefix was made
  std::string token_prefix_;  // of this store in this process
  std::uint64_t reserved_bytes_ = 0, resident_bytes_ = 0;
  std::int64_t sum_of_put_ms_ = 0;
  std::uint64_t freed_ = 0, freed_bytes_ = 0;
};

}  // namespace draftflow::store
