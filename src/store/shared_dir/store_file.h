// SPDX-License-Identifier: Apache-2.0
//
// store.json: which store a folder is (docs/formats/shared_dir.md). Made exactly once, whoever races; never changed
// afterwards. Plain values; the functions are thread-safe.
#pragma once

#include <optional>
#include <string>

#include "draftflow/base/ids.h"
#include "store/shared_dir/folder.h"

namespace draftflow::store {

constexpr int kSharedDirVersion = 1;
constexpr const char* kStoreFileName = "store.json";
constexpr const char* kTemporaryFolder = "tmp";
constexpr const char* kSamplesFolder = "samples";
constexpr const char* kEpochsFolder = "epochs";

struct StoreFile {
  std::string incarnation;  // 32 hex digits
};

// Nothing if the folder holds no store. InvalidArgument for another format version or another id, naming both; Corrupt for
// a file that is damaged.
std::optional<StoreFile> find_store_file(const Folder& folder, const StoreId& id);

// Makes the store's folders and its file, or reads what is there. InvalidArgument if the folder holds something else.
StoreFile make_store_file(const Folder& folder, const StoreId& id);

}  // namespace draftflow::store
