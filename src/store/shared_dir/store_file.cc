// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/store_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/base/text.h"
#include "store/shared_dir/policies.h"
#include "store/shared_dir/temporary.h"

namespace draftflow::store {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "draftflow.shared_dir";
constexpr std::uint64_t kMaxStoreFileBytes = 64 << 10;
constexpr std::string_view kOwnNames[] = {kTemporaryFolder, kSamplesFolder,  kEpochsFolder,
                                          kLeasesFolder,    kAccountsFolder, kAccessFolder};
constexpr std::string_view kNeedsAccess = "access", kNeedsCodec = "codec", kNeedsLayout = "layout";  // in 'required'
constexpr std::string_view kKinds[] = {"ledgered", "consume_once"};
constexpr std::string_view kDurabilities[] = {"none", "data", "full"};
constexpr std::string_view kLayouts[] = {"draftflow", "specforge"};
constexpr std::string_view kCodecs[] = {"raw", "fp8_e4m3", "int8", "zstd"};  // in the order of Codec

bool is_incarnation(const std::string& text) {
  return text.size() == 32 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

void read_required(const Json& value, const std::string& path, StoreFile& file) {
  const Json required = value.value("required", Json::array());
  if (!required.is_array()) throw Corrupt(path + ": 'required' is not a list");
  for (const Json& feature : required) {
    if (feature == kNeedsAccess) {
      file.needs_secret = true;
    } else if (feature != kNeedsCodec && feature != kNeedsLayout) {
      throw InvalidArgument(fmt::format("{} requires {}, which this program does not know: a newer draftflow made the store",
                                        path, printable(feature.dump(), 80)));
    }
  }
}

std::size_t read_choice(const Json& value, const char* field, std::span<const std::string_view> known,
                        const std::string& path) {
  if (!value.contains(field) || !value[field].is_string()) throw Corrupt(fmt::format("{} has no string '{}'", path, field));
  const auto found = value[field].get<std::string>();
  const auto at = std::find(known.begin(), known.end(), found);
  if (at == known.end()) {
    throw Corrupt(
        fmt::format("{}: '{}' is '{}': one of {} was expected", path, field, printable(found, 80), fmt::join(known, ", ")));
  }
  return static_cast<std::size_t>(at - known.begin());
}

std::uint64_t read_amount(const Json& value, const char* field, const std::string& path) {
  constexpr std::uint64_t kMost = 1ULL << 53;
  if (!value.contains(field) || !value[field].is_number_unsigned() || value[field].get<std::uint64_t>() > kMost) {
    throw Corrupt(fmt::format("{}: '{}' is not a number of 0 to {}", path, field, kMost));
  }
  return value[field].get<std::uint64_t>();
}

StoreFile parse(const std::string& text, const std::string& path, const StoreId& id) {
  const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object() || !value.contains("format") || value["format"] != kFormat) {
    throw Corrupt(fmt::format("{} is not the file of a draftflow store (its 'format' is not '{}')", path, kFormat));
  }
  if (!value.contains("format_version") || !value["format_version"].is_number_integer()) {
    throw Corrupt(path + " has no integer 'format_version'");
  }
  if (value["format_version"] != kSharedDirVersion) {
    throw InvalidArgument(fmt::format("{} has format version {}: this program knows {}; use the draftflow that made the store",
                                      path, value["format_version"].dump(), kSharedDirVersion));
  }
  StoreFile file;
  read_required(value, path, file);
  for (const char* field : {"store_id", "incarnation"}) {
    if (!value.contains(field) || !value[field].is_string()) throw Corrupt(fmt::format("{} has no string '{}'", path, field));
  }
  const auto found = value["store_id"].get<std::string>();
  if (found != id.str()) {
    throw InvalidArgument(
        fmt::format("{} is the store '{}', not '{}': choose another root or id", path, printable(found), printable(id.str())));
  }
  file.incarnation = value["incarnation"].get<std::string>();
  file.kind = static_cast<StoreKind>(read_choice(value, "kind", kKinds, path));
  file.durability = static_cast<Durability>(read_choice(value, "durability", kDurabilities, path));
  if (value.contains("codec")) file.codec = static_cast<Codec>(read_choice(value, "codec", kCodecs, path));
  if (value.contains("layout")) file.layout = static_cast<StoreLayout>(read_choice(value, "layout", kLayouts, path));
  file.max_resident_bytes = read_amount(value, "max_resident_bytes", path);
  file.max_hold_age_ms = static_cast<std::int64_t>(read_amount(value, "max_hold_age_ms", path));
  if (!is_incarnation(file.incarnation)) throw Corrupt(path + ": 'incarnation' is not 32 hex digits");
  return file;
}

// Never a user's own folder by mistake: what we make there is removed by gc one day.
void check_only_ours(const Folder& folder) {
  for (const std::string& name : folder.list()) {
    if (name == kStoreFileName) return;  // someone finished making it meanwhile
    if (std::find(std::begin(kOwnNames), std::end(kOwnNames), name) == std::end(kOwnNames)) {
      throw InvalidArgument(
          fmt::format("{} is not a store and holds '{}': choose an empty or a new folder", folder.path(), printable(name)));
    }
  }
}

}  // namespace

std::optional<StoreFile> find_store_file(const Folder& folder, const StoreId& id) {
  const auto text = folder.find_text(kStoreFileName, kMaxStoreFileBytes, "a store's file");
  if (!text) return std::nullopt;
  return parse(*text, folder.shown(kStoreFileName), id);
}

void check_same_store(const StoreFile& file, const SharedDirOptions& options, bool all, const std::string& path) {
  const auto check = [&](std::string_view what, bool differs, bool is_default, const auto& there, const auto& asked) {
    if (!differs || (is_default && !all)) return;
    throw InvalidArgument(
        fmt::format("the store at {} was made with {} '{}', but '{}' is asked for: leave it out or make a new store", path,
                    what, there, asked));
  };
  const SharedDirOptions usual;
  check("kind", file.kind != options.kind, options.kind == usual.kind, kind_name(file.kind), kind_name(options.kind));
  check("max_resident_bytes", file.max_resident_bytes != options.max_resident_bytes, options.max_resident_bytes == 0,
        file.max_resident_bytes, options.max_resident_bytes);
  check("codec", file.codec != options.codec, options.codec == usual.codec, codec_name(file.codec), codec_name(options.codec));
  check("layout", file.layout != options.layout, options.layout == usual.layout, layout_name(file.layout),
        layout_name(options.layout));
  check("max_hold_age_ms", file.max_hold_age_ms != options.max_hold_age_ms, options.max_hold_age_ms == 0, file.max_hold_age_ms,
        options.max_hold_age_ms);
}

const char* kind_name(StoreKind kind) {
  return kKinds[static_cast<std::size_t>(kind)].data();
}

const char* durability_name(Durability durability) {
  return kDurabilities[static_cast<std::size_t>(durability)].data();
}

const char* layout_name(StoreLayout layout) {
  return kLayouts[static_cast<std::size_t>(layout)].data();
}

void check_never_a_store(const Folder& folder, const StoreId& id) {
  for (const char* const name : {kSamplesFolder, kEpochsFolder}) {
    const auto found = folder.find(name);
    if (!found || found->list().empty() || find_store_file(folder, id)) continue;  // or another has made it meanwhile
    throw Corrupt(
        fmt::format("{} was a store: its folder '{}' is not empty, but {} is gone; put that file back from a copy, or "
                    "take the folder away to begin anew",
                    folder.path(), name, kStoreFileName));
  }
}

StoreFile make_store_file(const Folder& folder, const StoreId& id, const SharedDirOptions& options) {
  if (auto found = find_store_file(folder, id)) return *found;
  check_only_ours(folder);
  for (const std::string_view name : kOwnNames) {
    if (name != kAccessFolder) folder.make(std::string(name));
  }
  const Folder temporaries = folder.find_or_make(kTemporaryFolder);

  Json value;
  value["format"] = kFormat;
  value["format_version"] = kSharedDirVersion;
  value["required"] = Json::array();
  value["store_id"] = id.str();
  value["incarnation"] = random_hex128();
  value["kind"] = kind_name(options.kind);
  value["durability"] = durability_name(options.durability);
  value["max_resident_bytes"] = options.max_resident_bytes;
  value["max_hold_age_ms"] = options.max_hold_age_ms;
  if (options.codec != Codec::kRaw) {
    value["required"].push_back(kNeedsCodec);
    value["codec"] = codec_name(options.codec);
  }
  if (options.layout != StoreLayout::kDraftflow) {
    value["required"].push_back(kNeedsLayout);
    value["layout"] = layout_name(options.layout);
  }
  std::optional<Policies> policies;
  const StoreName name{id.str(), value["incarnation"].get<std::string>()};
  if (options.secret != nullptr) {
    value["required"].push_back(kNeedsAccess);
    policies.emplace(folder.find_or_make(kAccessFolder), name.incarnation);
    // Down first: store.json is never there without it.
    policies->publish(temporaries, make_policy(name, *options.secret, options.encrypt), 1);
  }
  const Published published = publish_text(temporaries, folder, kStoreFileName, value.dump(2) + "\n");
  if (published == Published::kFolderGone) throw Unavailable(folder.path() + " was removed while it was made: retry");
  // Read back in any case: of several that raced, the file that is there is the store.
  const auto made = find_store_file(folder, id);
  if (!made) throw Unavailable(folder.path() + " was removed while it was made: retry");
  if (policies && made->incarnation != name.incarnation) policies->remove_below(2);
  return *made;
}

}  // namespace draftflow::store
