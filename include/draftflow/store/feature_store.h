// SPDX-License-Identifier: Apache-2.0
//
// FeatureStore: owns the bytes of samples. (store, incarnation, sample, generation) names one immutable byte string for
// ever; a generation appears whole, in one atomic step, and is never reused. One interface, backends in folders below
// (memory/, shared_dir/, files/, reference/); factories at the end. All functions may be called from any thread and any
// process at once. Destroying a store ends its leases as a death would: nothing is consumed by it.
//
//   auto store = create_shared_dir_store("out/store", StoreId("features"), {});
//   SampleRef ref = store->put(tensors, id, metadata);
//   Fetched sample = store->get(ref);     // leased: the bytes stay on the books until
//   store->release(sample.handle);        // this; it frees them where the store is consume-once
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/formats/codec.h"
#include "draftflow/formats/tensor.h"
#include "draftflow/records/feature_handle.h"
#include "draftflow/records/sample_ref.h"
#include "draftflow/store/secret.h"

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

// For a writer that works under a lease, which it may lose while it writes: however long it is held up, at whatever instant,
// nothing of those who have the lease after it is retired.
struct PutFence {
  // Asked once the number of the generation is fixed, before it appears: whether the lease still holds. False: nothing appears,
  // and put is Conflict. It may throw: nothing appears either.
  std::function<bool()> still_mine;
  // Another writer had the lease before and may still be at it: the number is greater than all that were given, by any
  // process, until now, so that what the other lets appear is superseded by this.
  bool taken_over = false;
};

// Who frees. kLedgered: only remove and abort, which the ledger's sweep calls; a release just ends the lease.
// kConsumeOnce: the release of the last lease frees, and max_hold_age_ms frees what nobody took.
enum class StoreKind { kLedgered, kConsumeOnce };

// kNone: scratch. kData: bytes on disk before the ref is returned. kFull: bytes and folder entry, so that a ref whose
// commit survived a power cut has its bytes.
enum class Durability { kNone, kData, kFull };

struct GetOptions {
  std::vector<std::string> names;  // empty: all
  // Views of the stored bytes instead of copies: on local file systems and in memory only (InvalidArgument elsewhere). They
  // stay readable while a tensor over them lives, whatever happens to the lease or the sample.
  // Not for tensors that are packed by a codec or encrypted: InvalidArgument.
  bool zero_copy = false;
  // Check checksums; a zero-copy get checks a generation once and remembers. In a store with a secret always, and each time.
  bool verify = true;
};

struct Fetched {
  TensorMap tensors;  // in the ref's order
  FeatureHandle handle;
};

struct StoreHealth {
  std::string store_id, backend, root;
  std::string incarnation;  // of a shared directory, or of memory
  std::string layout;       // of a shared directory
  StoreKind kind = StoreKind::kLedgered;
  Durability durability = Durability::kNone;
  bool secret = false, encrypted = false;
  bool read_only = false;                // this process may not write there: only read, find, for_each and health work
  std::uint64_t resident_samples = 0;    // generations on the books, those kept only by leases included
  std::uint64_t resident_bytes = 0;      // their tensor bytes, and what puts in progress have reserved
  std::uint64_t max_resident_bytes = 0;  // the cap; 0: none
  std::uint64_t live_leases = 0;
  std::uint64_t release_pending = 0;  // generations whose physical free failed; gc tries again
  std::uint64_t freed_total = 0;      // generations
  std::uint64_t freed_bytes_total = 0;
  std::uint64_t errors_total = 0;  // verbs that ended in Corrupt, Unavailable or PermissionDenied, of all attaches
  Codec codec = Codec::kRaw;
  std::uint64_t codec_saved_bytes_total = 0;  // what the codec made samples smaller by, over all puts
  double oldest_age_s = 0;                    // to about a minute
  double average_age_s = 0;
  std::uint64_t free_bytes = 0;  // on the file system, for this user; in memory: the machine's
};

struct GcReport {
  std::uint64_t temporaries_removed = 0;  // files of writers that died
  std::uint64_t generations_removed = 0;  // superseded, consumed or past max_hold_age
  std::uint64_t force_freed = 0;          // of them, those past max_hold_age
  std::uint64_t bytes_removed = 0;        // of temporaries and of generations that are gone for good
  std::uint64_t leases_dropped = 0;       // of holders that died
  std::uint64_t release_pending = 0;      // physical frees that failed again
};

// One generation on the books, as a walk finds it.
struct ResidentSample {
  SampleId sample_id;
  std::uint64_t generation = 0;
  std::uint64_t bytes = 0;   // tensor bytes, as they are stored
  std::uint64_t leases = 0;  // live or not yet cleaned up
  double age_s = 0;
  std::filesystem::path path;  // empty where there is no file
};

class FeatureStore {
 public:
  virtual ~FeatureStore() = default;

  // At least one tensor. The new generation is greater than every earlier one of the sample, which stop being gettable
  // when put returns. On failure nothing became visible and nothing is left behind. Exhausted: the budget, the disk or the
  // free-space floor; nothing was written. A retry makes a new generation.
  virtual SampleRef put(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata,
                        const PutFence& fence = {}) = 0;

  // Exactly the ref's generation, under a lease that other processes see. NotFound: freed, superseded, never written,
  // another incarnation or store, or a name that the ref lacks. Corrupt: bytes, dtype or shape differ. No lease is left
  // after a failure.
  virtual Fetched get(const SampleRef& ref, const GetOptions& options = {}) = 0;

  // get for those who need no lease: copies the bytes and leaves no trace; never consumes.
  virtual TensorMap read(const SampleRef& ref, const std::vector<std::string>& names = {}) = 0;

  // Ends the lease; in a consume-once store that is consumption, unless this attach retains. Idempotent: an unknown,
  // foreign or already released handle does nothing.
  virtual void release(const FeatureHandle& handle) = 0;

  // That generation is at once not gettable; bytes that are leased go with the last lease. Idempotent; an unknown ref is
  // fine. True if it was there.
  virtual bool remove(const SampleRef& ref) = 0;

  // The same for every generation of the sample; says how many there were. For the owner of the sample alone: after a lost
  // ledger lease use remove.
  virtual std::uint64_t abort(const SampleId& sample_id) = 0;

  // Retires what the store's kind allows, drops the leases of dead holders, clears orphaned temporary files, tries failed
  // frees again, recounts. Touches no live lease. From any process, at any time.
  virtual GcReport gc() = 0;

  // Scalars, at a cost that does not depend on the number of samples.
  virtual StoreHealth health() = 0;

  virtual StoreKind kind() const = 0;

  // Every generation that can be got, in no order; costs time in proportion to them. Stops when `visit` returns false. A
  // file that cannot be understood is given to `damaged` with what is wrong.
  virtual void for_each(const std::function<bool(const ResidentSample&)>& visit,
                        const std::function<void(const std::filesystem::path&, const std::string&)>& damaged) = 0;

  // A ref to a generation on the books, its specs told by the stored bytes: for people and tools that hold no ref. Without
  // a generation the current one. NotFound.
  virtual SampleRef find(const SampleId& sample_id, std::optional<std::uint64_t> generation = {}) = 0;

  // What for_each tells of the ref's sample and generation. NotFound. A backend that does not say otherwise walks.
  virtual ResidentSample resident(const SampleRef& ref);
};

// The tensor bytes that a sample of these specs takes, from metadata alone.
std::uint64_t estimate_bytes(const std::vector<FeatureSpec>& specs);

// How generations lie in the folder. kSpecforge: each also as {sample id}.g{generation}.ckpt, a zip of torch.save, right below
// the store's folder, where the reference runtime finds, reads and frees it (docs/formats/reference.md).
enum class StoreLayout { kDraftflow, kSpecforge };

struct SharedDirOptions {
  // Of the store: written when it is made. Attaching to a store made otherwise is InvalidArgument, naming both, but for
  // `durability`, which an attach may raise.
  StoreKind kind = StoreKind::kLedgered;
  Durability durability = Durability::kNone;
  std::uint64_t max_resident_bytes = 0;  // 0: no cap
  std::int64_t max_hold_age_ms = 0;      // consume-once stores only; 0: for ever
  Codec codec = Codec::kRaw;             // what put packs tensors with, where it makes them smaller (formats/codec.h)
  // kSpecforge takes ids and tensor names that the reference can name (InvalidArgument), and no codec or secret.
  StoreLayout layout = StoreLayout::kDraftflow;
  // Makes a store that opens only with this; a store made so asks every attach for it: PermissionDenied for none and for a
  // wrong one. Its files are authenticated and, with `encrypt`, encrypted.
  std::shared_ptr<const Secret> secret;
  bool encrypt = false;

  // Of this attach.
  // put fails with Exhausted, before writing, if the file system would have fewer free bytes than this afterwards.
  std::uint64_t free_space_floor_bytes = 64ULL << 20;
  bool retain_on_release = false;  // releases of this attach never count as consumption
  std::int64_t lease_ms = 60'000;  // on network file systems: a holder silent for longer is dead
};

// Makes the store in the folder `root`/`id`, or attaches to the one already there (idempotent, also when processes race).
std::unique_ptr<FeatureStore> create_shared_dir_store(const std::filesystem::path& root, const StoreId& id,
                                                      const SharedDirOptions& options);

// Attaches to an existing store, whose own options hold: those of the argument that are of the store count only where they
// differ from the defaults. A folder without store.json that the reference runtime wrote is opened as it is and only read: put
// is InvalidArgument, nothing is ever deleted, its refs have no incarnation (docs/formats/reference.md). NotFound if there is
// none; InvalidArgument for another format version, naming both.
std::unique_ptr<FeatureStore> open_shared_dir_store(const std::filesystem::path& root, const StoreId& id,
                                                    const SharedDirOptions& options);

// Changes the secret of a store that has one: the new one opens it as soon as this returns, the old one no longer. Files and
// attaches stay as they are; who opened the store before may have kept its keys (docs/formats/access.md). PermissionDenied for
// a wrong old secret; InvalidArgument for a store without one; Conflict if another rotation came first.
void rotate_shared_dir_secret(const std::filesystem::path& root, const StoreId& id, const Secret& old_secret,
                              const Secret& new_secret);

struct MemoryOptions {
  StoreKind kind = StoreKind::kLedgered;
  std::uint64_t max_resident_bytes = 0;  // 0: no cap
  std::int64_t max_hold_age_ms = 0;      // consume-once stores only; 0: for ever
  bool retain_on_release = false;
  // Called before the bytes of a generation go; false, or an exception, means that the free failed: it stays on the books, not
  // gettable, and gc tries again. For backends over this one whose bytes lie elsewhere. Called without a lock held, so that it
  // may call the store; not by the destructor.
  std::function<bool(const SampleId&, std::uint64_t generation)> try_physical_free;
  std::function<std::int64_t()> clock_ms;  // none: a steady clock
};

// In this process's memory, mem://{id}/...; generations start at random, so that a ref of an earlier store of this name
// never finds other bytes.
std::unique_ptr<FeatureStore> create_memory_store(const StoreId& id, const MemoryOptions& options);

// Read-only, for refs whose URI is file://{absolute path}: get reads the user's own feature file in place; put is
// InvalidArgument; remove and abort never delete. A changed file (dtype or shape) is Corrupt.
std::unique_ptr<FeatureStore> open_files_store();

// The ref of a feature file in place: the raw keys as feature keys, generation 1, incarnation "" and a file:// URI.
SampleRef make_file_ref(const std::filesystem::path& file, const TensorMap& tensors, const SampleId& id,
                        const PutMetadata& metadata);

}  // namespace draftflow
