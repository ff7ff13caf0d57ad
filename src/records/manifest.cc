// SPDX-License-Identifier: Apache-2.0
#include "draftflow/records/manifest.h"

#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"
#include "records/json_fields.h"

namespace draftflow {
namespace {

using records::Json;

constexpr std::uint64_t kMaxManifestBytes = 8ULL << 30;

}  // namespace

std::vector<SampleRef> read_ref_manifest(const std::filesystem::path& path) {
  const std::string what = fmt::format("the manifest {}", path.string());
  Json manifest = records::parse_object(what, read_text_file(path, kMaxManifestBytes));
  const auto version = records::take_as<std::int64_t>(manifest, what, "schema_version");
  if (version != kSchemaVersion) {
    throw InvalidArgument(fmt::format("{} has schema_version {}: this program knows {}; use the program that wrote it", what,
                                      version, kSchemaVersion));
  }
  const Json items = records::take(manifest, what, "refs");
  if (!items.is_array()) throw Corrupt(fmt::format("{} field 'refs' is not a list", what));
  std::vector<SampleRef> refs;
  refs.reserve(items.size());
  for (const Json& item : items) {
    const std::string place = fmt::format("{}, ref {} of {}", what, refs.size() + 1, items.size());
    try {
      refs.push_back(sample_ref_from_json(item.dump()));
    } catch (const Corrupt& error) {
      throw Corrupt(fmt::format("{}: {}", place, error.what()));
    } catch (const InvalidArgument& error) {
      throw InvalidArgument(fmt::format("{}: {}", place, error.what()));
    } catch (const Json::exception&) {  // text that is not UTF-8 cannot be dumped
      throw Corrupt(fmt::format("{}: it holds text that is not UTF-8", place));
    }
  }
  return refs;
}

void write_ref_manifest(const std::filesystem::path& path, const std::vector<SampleRef>& refs) {
  std::string text = fmt::format("{{\"schema_version\": {}, \"refs\": [", kSchemaVersion);
  for (std::size_t i = 0; i < refs.size(); ++i) {
    if (i > 0) text += ", ";
    text += sample_ref_to_json(refs[i]);
  }
  replace_file(path, std::string_view(text + "]}\n"));
}

}  // namespace draftflow
