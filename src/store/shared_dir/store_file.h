// SPDX-License-Identifier: Apache-2.0
//
// store.json: which store a folder is (docs/formats/shared_dir.md). Made exactly once, whoever races; never changed
// afterwards: the policy of a store with a secret, which rotation changes, lies beside it (policies.h). Plain values; the
// functions are thread-safe.
#pragma once

#include <optional>
#include <string>

#include "draftflow/base/ids.h"
#include "draftflow/store/feature_store.h"
#include "store/shared_dir/folder.h"

namespace draftflow::store {

constexpr int kSharedDirVersion = 2;
constexpr const char* kStoreFileName = "store.json";
constexpr const char* kTemporaryFolder = "tmp";
constexpr const char* kSamplesFolder = "samples";
constexpr const char* kEpochsFolder = "epochs";
constexpr const char* kLeasesFolder = "leases";
constexpr const char* kAccountsFolder = "accounts";
constexpr const char* kAccessFolder = "access";  // of a store with a secret only

struct StoreFile {
  std::string incarnation;  // 32 hex digits
  StoreKind kind = StoreKind::kLedgered;
  Durability durability = Durability::kNone;
  std::uint64_t max_resident_bytes = 0;  // 0: no cap
  std::int64_t max_hold_age_ms = 0;      // 0: for ever
  Codec codec = Codec::kRaw;
  StoreLayout layout = StoreLayout::kDraftflow;
  bool needs_secret = false;  // there must be a policy
};

// Nothing if the folder holds no store. InvalidArgument for another format version or another id, naming both; Corrupt for
// a file that is damaged.
std::optional<StoreFile> find_store_file(const Folder& folder, const StoreId& id);

// Corrupt if the folder, which has no store.json, was a store: it holds samples or markers of epochs, which a store gets later.
void check_never_a_store(const Folder& folder, const StoreId& id);

// Makes the store's folders and its file, or reads what is there. InvalidArgument if the folder holds something else.
StoreFile make_store_file(const Folder& folder, const StoreId& id, const SharedDirOptions& options);

// InvalidArgument, naming both, if the options ask for another store than the file describes. `all`: also where the options
// are at their defaults (a store that is there already is made again).
void check_same_store(const StoreFile& file, const SharedDirOptions& options, bool all, const std::string& path);

const char* kind_name(StoreKind kind);               // "ledgered", "consume_once"
const char* durability_name(Durability durability);  // "none", "data", "full"
const char* layout_name(StoreLayout layout);         // "draftflow", "specforge"

}  // namespace draftflow::store
