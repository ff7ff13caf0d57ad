// SPDX-License-Identifier: Apache-2.0
//
// FeatureStore: owns the bytes of samples. (store, incarnation, sample, generation) names one immutable byte string for
// ever; a generation appears whole, in one atomic step, and is never reused. One interface, backends in folders below
// (shared_dir/, files/); factories at the end. All functions may be called from any thread and any process at once.
//
//   auto store = create_shared_dir_store("out/store", StoreId("features"), {});
//   SampleRef ref = store->put(tensors, id, metadata);
//   Fetched sample = store->get(ref, {});
//   store->remove(ref);
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/formats/tensor.h"
#include "draftflow/records/sample_ref.h"

namespace draftflow {

// What put writes into the ref beside the tensors' own facts.
struct PutMetadata {
  RunId run_id;
  std::optional<std::string> source_task_id;
  std::string strategy = "eagle3";
  std::string target_model_version = "unknown";
  std::string tokenizer_version = "unknown";
  std::optional<std::string> draft_weight_version;
  std::int64_t num_tokens = 0;
  JsonMembers metadata;  // goes into the ref's metadata
};

struct StoreHealth {
  std::string store_id, backend, root;
  std::uint64_t resident_samples = 0;  // generations on the books
  std::uint64_t resident_bytes = 0;    // their tensor bytes
  std::uint64_t free_bytes = 0;        // on the file system, for this user
};

struct GcReport {
  std::uint64_t temporaries_removed = 0;
  std::uint64_t generations_removed = 0;
  std::uint64_t bytes_removed = 0;
};

class FeatureStore {
 public:
  virtual ~FeatureStore() = default;

  // At least one tensor. The new generation is greater than every earlier one of the sample, which stop being gettable
  // when put returns. On failure nothing became visible and nothing is left behind. Exhausted: the disk or the free-space
  // floor; nothing was written. A retry makes a new generation.
  virtual SampleRef put(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata) = 0;

  // Exactly the ref's generation, copied into memory of the caller's; only the named tensors (empty: all) are read.
  // They come in the ref's order. NotFound: freed, superseded, never written, another incarnation or store, or a name that
  // the ref lacks. Corrupt: bytes, dtype or shape differ.
  virtual TensorMap get(const SampleRef& ref, const std::vector<std::string>& names = {}) = 0;

  // That generation is at once not gettable. Idempotent; an unknown ref is fine. True if it was there.
  virtual bool remove(const SampleRef& ref) = 0;

  // Clears the temporaries of writers that died and retires superseded generations. Touches nothing a reader holds.
  virtual GcReport gc() = 0;

  // The shared directory walks its samples for this and for gc: ask now and then, not per sample. Backpressure reads the
  // ledger's figure instead.
  virtual StoreHealth health() = 0;
};

struct SharedDirOptions {
  // sync file bytes and folder entry before put returns: a ref whose commit survived a power cut has its bytes.
  bool durable = false;
  // put fails with Exhausted, before writing, if the file system would have fewer free bytes than this afterwards.
  std::uint64_t free_space_floor_bytes = 64ULL << 20;
};

// Makes the store in the folder `root`/`id`, or attaches to the one already there (idempotent, also when processes race).
std::unique_ptr<FeatureStore> create_shared_dir_store(const std::filesystem::path& root, const StoreId& id,
                                                      const SharedDirOptions& options);

// Attaches to an existing store. NotFound if there is none; InvalidArgument for another format version, naming both.
std::unique_ptr<FeatureStore> open_shared_dir_store(const std::filesystem::path& root, const StoreId& id,
                                                    const SharedDirOptions& options);

// Read-only, for refs whose URI is file://{absolute path}: get reads the user's own feature file in place; put is
// InvalidArgument; remove never deletes and returns false. A changed file (dtype or shape) is Corrupt.
std::unique_ptr<FeatureStore> open_files_store();

// The ref of a feature file in place: the raw keys as feature keys, generation 1, incarnation "" and a file:// URI.
SampleRef make_file_ref(const std::filesystem::path& file, const TensorMap& tensors, const SampleId& id,
                        const PutMetadata& metadata);

}  // namespace draftflow
