// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/policies.h"

#include <fmt/format.h>

#include <algorithm>

#include "draftflow/base/error.h"
#include "store/shared_dir/names.h"
#include "store/shared_dir/temporary.h"

namespace draftflow::store {
namespace {

constexpr std::uint64_t kMaxPolicyFileBytes = 64 << 10;
constexpr std::string_view kSuffix = ".json";

}  // namespace

std::string Policies::name_of(std::uint64_t number) const {
  return fmt::format("{}.{}{}", incarnation_, number, kSuffix);
}

// {incarnation}.{n}.json
std::optional<Policies::Name> Policies::parse(const std::string& file) {
  const std::size_t dot = file.find('.');
  if (dot == std::string::npos || !file.ends_with(kSuffix) || file.size() < dot + 1 + kSuffix.size()) return std::nullopt;
  const auto number = parse_number(std::string_view(file).substr(dot + 1, file.size() - dot - 1 - kSuffix.size()));
  return number ? std::optional(Name{file.substr(0, dot), *number}) : std::nullopt;
}

std::optional<Policies::Found> Policies::find() const {
  constexpr int kTries = 10;  // each failure means that a rotation came between the listing and the reading
  for (int i = 0; i < kTries; ++i) {
    std::uint64_t greatest = 0;
    for (const std::string& file : folder_.list()) {
      const auto name = parse(file);
      if (name && name->incarnation == incarnation_) greatest = std::max(greatest, name->number);
    }
    if (greatest == 0) return std::nullopt;
    const auto text = folder_.find_text(name_of(greatest), kMaxPolicyFileBytes, "an access policy");
    if (text) return Found{AccessPolicy::from_json(*text, folder_.shown(name_of(greatest))), greatest};
  }
  throw Unavailable(folder_.path() + ": the store's secret was rotated again and again while it was looked up: retry");
}

void Policies::publish(const Folder& temporaries, const AccessPolicy& policy, std::uint64_t number) const {
  const Published published = publish_text(temporaries, folder_, name_of(number), policy.to_json() + "\n");
  if (published == Published::kExists) {
    throw Conflict(fmt::format("{} is there already: another rotation of the secret came first; look which secret holds now",
                               folder_.shown(name_of(number))));
  }
  if (published == Published::kFolderGone) throw Unavailable(folder_.path() + " was removed meanwhile: retry");
}

void Policies::remove_below(std::uint64_t number) const {
  for (const std::string& file : folder_.list()) {
    const auto name = parse(file);
    if (name && name->incarnation == incarnation_ && name->number < number) folder_.unlink(file);
  }
  folder_.sync();
}

void Policies::collect() const {
  for (const std::string& file : folder_.list()) {
    const auto name = parse(file);
    if (name && name->incarnation != incarnation_) folder_.unlink(file);
  }
  if (const auto found = find()) remove_below(found->number);
}

}  // namespace draftflow::store
