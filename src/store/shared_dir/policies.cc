// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/policies.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <span>

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

std::optional<std::uint64_t> Policies::number_in(const std::string& name) const {
  const std::size_t begin = incarnation_.size() + 1;
  if (!name.starts_with(incarnation_ + ".") || !name.ends_with(kSuffix) || name.size() < begin + kSuffix.size()) {
    return std::nullopt;
  }
  return parse_number(std::string_view(name).substr(begin, name.size() - begin - kSuffix.size()));
}

std::optional<Policies::Found> Policies::find() const {
  constexpr int kTries = 10;  // each failure means that a rotation came between the listing and the reading
  for (int i = 0; i < kTries; ++i) {
    std::uint64_t greatest = 0;
    for (const std::string& name : folder_.list()) greatest = std::max(greatest, number_in(name).value_or(0));
    if (greatest == 0) return std::nullopt;
    const auto fd = folder_.find_file(name_of(greatest), O_RDONLY);
    if (!fd) continue;
    const std::filesystem::path path = folder_.shown(name_of(greatest));
    const std::uint64_t size = file_size(fd->get(), path);
    if (size > kMaxPolicyFileBytes)
      throw Corrupt(fmt::format("{} has {} bytes: it is not an access policy", path.string(), size));
    std::string text(size, '\0');
    read_exact(fd->get(), std::as_writable_bytes(std::span(text)), 0, path);
    return Found{AccessPolicy::from_json(text, path.string()), greatest};
  }
  throw Unavailable(folder_.path().string() + ": the store's secret was rotated again and again while it was looked up: retry");
}

void Policies::publish(const Folder& temporaries, const AccessPolicy& policy, std::uint64_t number) const {
  const std::string text = policy.to_json() + "\n";
  Temporary temporary(temporaries);
  write_all(temporary.fd(), std::as_bytes(std::span(text)), temporary.path());
  temporary.sync();
  const Published published = temporary.publish(folder_, name_of(number));
  if (published == Published::kExists) {
    throw Conflict(fmt::format("{} is there already: another rotation of the secret came first; look which secret holds now",
                               folder_.shown(name_of(number)).string()));
  }
  if (published == Published::kFolderGone) throw Unavailable(folder_.path().string() + " was removed meanwhile: retry");
  folder_.sync();
}

void Policies::remove_below(std::uint64_t number) const {
  for (const std::string& name : folder_.list()) {
    const std::uint64_t found = number_in(name).value_or(number);
    if (found < number) folder_.unlink(name);
  }
  folder_.sync();
}

}  // namespace draftflow::store
