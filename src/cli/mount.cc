// SPDX-License-Identifier: Apache-2.0
#include "cli/mount.h"

#include <algorithm>
#include <charconv>
#include <sstream>
#include <string_view>

namespace draftflow::cli {
namespace {

constexpr std::int64_t kDefaultSeconds = 60;  // acregmax and acdirmax where the list leaves them out

std::int64_t cache_ms(const std::string& options) {
  std::int64_t files = kDefaultSeconds, folders = kDefaultSeconds;
  std::istringstream all(options);
  for (std::string option; std::getline(all, option, ',');) {
    const std::size_t equals = std::min(option.find('='), option.size());
    const std::string_view name = std::string_view(option).substr(0, equals);
    std::int64_t seconds = 0;
    if (equals < option.size()) std::from_chars(option.data() + equals + 1, option.data() + option.size(), seconds);
    if (name == "noac") return 0;
    if (name == "actimeo" || name == "acregmax") files = seconds;
    if (name == "actimeo" || name == "acdirmax") folders = seconds;
  }
  return 1000 * std::max(files, folders);
}

}  // namespace

std::optional<AttributeCache> find_attribute_cache(std::istream& mountinfo, const std::string& device) {
  std::optional<AttributeCache> found;
  for (std::string line; std::getline(mountinfo, line);) {
    std::istringstream fields(line);
    std::string id, parent, its_device, field, type, source, options;
    fields >> id >> parent >> its_device;
    if (its_device != device) continue;
    while (fields >> field && field != "-") {
    }
    fields >> type >> source >> options;
    if (type != "nfs" && type != "nfs4") return std::nullopt;
    const AttributeCache cache{type, cache_ms(options)};
    if (!found || cache.ms > found->ms) found = cache;
  }
  return found;
}

}  // namespace draftflow::cli
