// SPDX-License-Identifier: Apache-2.0
//
// Making a store in a shared directory and opening one: who may, and what is there.
#include <fcntl.h>
#include <fmt/format.h>

#include <optional>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "store/reference/reference_store.h"
#include "store/shared_dir/policies.h"
#include "store/shared_dir/shared_dir_store.h"

namespace draftflow {
namespace {

void check_options(const SharedDirOptions& options) {
  if (options.max_hold_age_ms < 0 || options.lease_ms < 1) {
    throw InvalidArgument(fmt::format("max_hold_age_ms is {} and lease_ms {}: 0 or more and 1 or more are allowed",
                                      options.max_hold_age_ms, options.lease_ms));
  }
  if (options.encrypt && options.secret == nullptr) {
    throw InvalidArgument("a store can be encrypted only with a secret: give it one, from a file or the environment");
  }
  if (options.layout == StoreLayout::kSpecforge && (options.codec != Codec::kRaw || options.secret != nullptr)) {
    throw InvalidArgument(
        fmt::format("a store of layout specforge cannot have a {}: the reference runtime, which reads its files, knows none; "
                    "leave one of the two out",
                    options.secret != nullptr ? "secret" : "codec"));
  }
  if (options.max_hold_age_ms > 0 && options.kind == StoreKind::kLedgered) {
    throw InvalidArgument(
        fmt::format("max_hold_age_ms is {}, but the store is ledgered, where only the ledger frees: make it "
                    "consume_once or leave the age out",
                    options.max_hold_age_ms));
  }
}

// Whether the first generation found in a fan-out folder is sealed; nothing without one. What somebody planted there, such
// as a link, must not keep anybody from attaching, nor what cannot be read.
std::optional<bool> holds_sealed(const store::Folder& samples, const std::string& name) {
  std::optional<bool> sealed;
  const auto look = [&](const store::Folder& fan_out, const store::SamplePlace& place) {
    const auto folder = sealed ? std::nullopt : fan_out.find(place.folder);
    if (!folder) return;
    for (const store::NamedGeneration& generation : store::list_sample(*folder, place).generations) {
      const auto fd = folder->find_file(generation.name, O_RDONLY);
      if (fd) sealed = store::is_sealed_file(fd->get(), folder->shown(generation.name));
    }
  };
  try {
    const auto fan_out = store::is_fan_out_name(name) ? samples.find(name) : std::nullopt;
    if (!fan_out) return std::nullopt;
    store::Layout::for_each_sample(*fan_out, name, [&](const store::SamplePlace& place) {
      try {
        look(*fan_out, place);
      } catch (const Corrupt&) {
      } catch (const PermissionDenied&) {
      }
    });
  } catch (const Corrupt&) {
  } catch (const PermissionDenied&) {
  }
  return sealed;
}

// A store whose files are sealed and which has no policy was robbed of it, so that bytes would go in and out in the clear.
void check_unsealed(const store::Folder& folder, const StoreId& id) {
  const store::Folder samples = store::required_folder(folder, store::kSamplesFolder);
  for (const std::string& name : samples.list()) {
    const std::optional<bool> sealed = holds_sealed(samples, name);
    if (!sealed) continue;
    if (!*sealed) return;  // one is enough: a store's files are all of a kind
    throw Corrupt(
        fmt::format("store '{}' at {} holds sealed files (in {}), but has no access policy: somebody took it away; put "
                    "store.json and the folder '{}' back from a copy",
                    printable(id.str()), folder.path(), samples.shown(name), store::kAccessFolder));
  }
}

// The keys, where the store has a policy, for who presents its secret.
std::optional<store::Keys> open_keys(const store::Folder& folder, const StoreId& id, const store::StoreFile& file,
                                     const Secret* secret) {
  auto access = folder.find(store::kAccessFolder);
  const auto found = access ? store::Policies(std::move(*access), file.incarnation).find() : std::nullopt;
  if (found.has_value() != file.needs_secret) {
    throw Corrupt(fmt::format("{}: {}: put both back from a copy", folder.shown(store::kStoreFileName),
                              found ? "it says that the store has no secret, but the folder 'access' holds its policy"
                                    : "it says that the store has a secret, but the folder 'access' holds no policy"));
  }
  return store::open_access({id.str(), file.incarnation}, found ? std::optional(found->policy) : std::nullopt, secret);
}

std::unique_ptr<FeatureStore> attach(store::Folder folder, const StoreId& id, const store::StoreFile& file,
                                     const SharedDirOptions& options, bool all) {
  const std::string path = folder.path();
  std::optional<store::Keys> keys = open_keys(folder, id, file, options.secret.get());
  store::check_same_store(file, options, all, path);
  const bool encrypted = keys && keys->encrypted;
  if (encrypted != options.encrypt && (all || options.encrypt)) {
    throw InvalidArgument(fmt::format("the store at {} was made {} encryption: leave 'encrypt' {} or make a new store", path,
                                      encrypted ? "with" : "without", encrypted ? "on" : "out"));
  }
  if (!keys) check_unsealed(folder, id);
  return std::make_unique<store::SharedDirStore>(std::move(folder), id, file, options, std::move(keys));
}

// Of a root that the system would read up to its first U+0000, or a folder that is only a link to one.
void check_path(const std::filesystem::path& root, const StoreId& id) {
  if (root.native().find('\0') != std::string::npos) {
    throw InvalidArgument(fmt::format("the store's root '{}' holds U+0000, which no path can", printable(root.native())));
  }
  const std::string path = root / store::store_folder_name(id);
  std::error_code error;
  if (const std::filesystem::path target = std::filesystem::read_symlink(path, error); !error) {
    throw InvalidArgument(fmt::format(
        "{} is a symbolic link to {}: a store's own folder cannot be one, as no link below its root is followed; open the "
        "folder that it leads to, or make a folder above it the link",
        path, printable(target.string())));
  }
}

// The folder that a store of this name has or would have; nothing if there is none.
std::optional<store::Folder> find_folder(const std::filesystem::path& root, const StoreId& id) {
  check_path(root, id);
  const std::string path = root / store::store_folder_name(id);
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (error && status.type() != std::filesystem::file_type::not_found) {
    throw_errno(error.value(), "looking at the folder " + path);
  }
  if (!std::filesystem::is_directory(status)) return std::nullopt;
  return store::Folder::open(root).find(store::store_folder_name(id));
}

// Of a folder without store.json: whether the reference runtime wrote it.
bool is_references(const store::Folder& folder, const StoreId& id) {
  return std::filesystem::path(folder.path()).filename() == id.str() && store::is_reference_folder(folder);
}

[[noreturn]] void throw_no_store(const std::filesystem::path& root, const StoreId& id) {
  throw NotFound(fmt::format("there is no store '{}' at {} (no {} there): check the path, or create the store first",
                             printable(id.str()), (root / store::store_folder_name(id)).string(), store::kStoreFileName));
}

}  // namespace

std::unique_ptr<FeatureStore> create_shared_dir_store(const std::filesystem::path& root, const StoreId& id,
                                                      const SharedDirOptions& options) {
  check_options(options);
  if (options.layout == StoreLayout::kSpecforge && store::store_folder_name(id) != id.str()) {
    throw InvalidArgument(
        fmt::format("a store of layout specforge cannot be called '{}': its folder has to have the store's own name, for the "
                    "reference runtime to find; use at most 100 of A-Z a-z 0-9 . _ -",
                    printable(id.str())));
  }
  check_path(root, id);
  make_folders(root);
  store::Folder folder = store::Folder::open(root).find_or_make(store::store_folder_name(id));
  if (!store::find_store_file(folder, id)) store::check_never_a_store(folder, id);
  if (!store::find_store_file(folder, id) && is_references(folder, id)) {
    throw InvalidArgument(
        fmt::format("{} is a folder that the reference runtime wrote, and is only read: opening it works as it is; to put, "
                    "create a store under another name",
                    folder.path()));
  }
  const store::StoreFile file = store::make_store_file(folder, id, options);
  store::Folder::open(root).sync();
  return attach(std::move(folder), id, file, options, /*all=*/true);
}

std::unique_ptr<FeatureStore> open_shared_dir_store(const std::filesystem::path& root, const StoreId& id,
                                                    const SharedDirOptions& options) {
  std::optional<store::Folder> folder = find_folder(root, id);
  if (!folder) throw_no_store(root, id);
  if (const auto file = store::find_store_file(*folder, id)) {
    return attach(std::move(*folder), id, *file, options, /*all=*/false);
  }
  store::check_never_a_store(*folder, id);
  if (!is_references(*folder, id)) throw_no_store(root, id);
  if (options.secret != nullptr) {
    throw InvalidArgument(
        fmt::format("{} is a folder of the reference runtime, which has no secret: leave it out", folder->path()));
  }
  return std::make_unique<store::ReferenceStore>(std::move(*folder), id);
}

void rotate_shared_dir_secret(const std::filesystem::path& root, const StoreId& id, const Secret& old_secret,
                              const Secret& new_secret) {
  const std::optional<store::Folder> folder = find_folder(root, id);
  const auto file = folder ? store::find_store_file(*folder, id) : std::nullopt;
  if (folder && !file) store::check_never_a_store(*folder, id);
  if (!file) throw_no_store(root, id);
  if (!file->needs_secret) {
    throw InvalidArgument(fmt::format("store '{}' at {} has no secret to change: make a new store with one",
                                      printable(id.str()), folder->path()));
  }
  const store::Policies policies(store::required_folder(*folder, store::kAccessFolder), file->incarnation);
  const auto current = policies.find();
  if (!current) {
    throw Corrupt(fmt::format("{} holds no access policy of store '{}': put it back from a copy",
                              folder->shown(store::kAccessFolder), printable(id.str())));
  }
  const store::AccessPolicy next = store::rotate({id.str(), file->incarnation}, current->policy, old_secret, new_secret);
  policies.publish(store::required_folder(*folder, store::kTemporaryFolder), next, current->number + 1);
  policies.remove_below(current->number + 1);
}

}  // namespace draftflow
