// SPDX-License-Identifier: Apache-2.0
#include "draftflow/records/feature_keys.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

using Lengths = std::array<std::uint32_t, 2>;  // of the name, of the key

Lengths lengths_at(const char* at) {
  Lengths lengths{};
  std::memcpy(lengths.data(), at, sizeof lengths);
  return lengths;
}

}  // namespace

FeatureKeys::value_type FeatureKeys::const_iterator::operator*() const {
  const auto [name, key] = lengths_at(at_);
  const char* const text = at_ + kHeadBytes;
  return {{text, name}, {text + name, key}};
}

FeatureKeys::const_iterator& FeatureKeys::const_iterator::operator++() {
  const auto [name, key] = lengths_at(at_);
  at_ += kHeadBytes + name + key;
  return *this;
}

void FeatureKeys::append(std::string_view name, std::initializer_list<std::string_view> parts_of_key) {
  std::size_t key = 0;
  for (const std::string_view part : parts_of_key) key += part.size();
  if (std::max(name.size(), key) > std::numeric_limits<std::uint32_t>::max()) {
    throw InvalidArgument("a feature's name or key of 4 GiB or more");
  }
  const Lengths lengths{static_cast<std::uint32_t>(name.size()), static_cast<std::uint32_t>(key)};
  text_.append(reinterpret_cast<const char*>(lengths.data()), sizeof lengths).append(name);
  for (const std::string_view part : parts_of_key) text_.append(part);
  ++size_;
}

}  // namespace draftflow
