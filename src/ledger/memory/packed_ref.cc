// SPDX-License-Identifier: Apache-2.0
#include "ledger/memory/packed_ref.h"

#include <fmt/format.h>

#include <utility>

namespace draftflow::memory {
namespace {

void put_number(std::string& text, std::int64_t number) {
  auto rest = static_cast<std::uint64_t>(number);
  for (; rest >= 128; rest >>= 7) text += static_cast<char>(rest | 128);
  text += static_cast<char>(rest);
}

std::int64_t take_number(const char*& at) {
  std::uint64_t number = 0;
  for (unsigned shift = 0;; shift += 7) {
    const auto byte = static_cast<unsigned char>(*at++);
    number |= std::uint64_t{byte & 127U} << shift;
    if (byte < 128) return static_cast<std::int64_t>(number);
  }
}

// Takes the id out of the text; says where it stood.
std::size_t take_out(std::string& text, const std::string& id) {
  const std::size_t at = text.find(id);
  if (at != std::string::npos) text.erase(at, id.size());
  return at;
}

std::string put_in(const std::string& text, std::size_t at, const std::string& id, std::string_view end = "") {
  std::string whole;
  whole.reserve(text.size() + id.size() + end.size());
  whole.append(text, 0, at).append(id).append(text, at).append(end);
  return whole;
}

}  // namespace

PackedRef RefPatterns::pack(const SampleRef& ref) {
  const std::string& id = ref.sample_id.str();
  PackedRef packed{.sample_id = ref.sample_id};
  packed.generation = ref.generation;
  packed.bytes = ref.estimated_bytes;
  packed.tokens = ref.num_tokens;
  RefPattern pattern{.ref = ref};
  SampleRef& common = pattern.ref;
  common.sample_id = SampleId("-");
  common.generation = common.estimated_bytes = 0;
  common.num_tokens = 0;
  std::string shape_of_it;  // what the JSON of a pattern does not say
  for (FeatureSpec& spec : common.feature_specs) {
    for (std::int64_t& extent : spec.shape) put_number(packed.rest, std::exchange(extent, 0));
    shape_of_it += fmt::format(" {}", spec.shape.size());
  }
  for (auto& [name, key] : common.feature_keys) {
    pattern.keys_at.push_back(take_out(key, id));
    shape_of_it += fmt::format(" {}", pattern.keys_at.back());
  }
  std::string& uri = common.feature_store_uri;
  pattern.uri_at = take_out(uri, id);
  if (pattern.uri_at == RefPattern::kNoId) {
    packed.rest += std::exchange(uri, {});
  } else if (const std::string end = fmt::format("{}", ref.generation);
             uri.size() >= pattern.uri_at + end.size() && uri.ends_with(end)) {
    uri.resize(uri.size() - end.size());
    pattern.uri_ends_in_generation = true;
  }
  shape_of_it += fmt::format("/{}{} ", pattern.uri_at, pattern.uri_ends_in_generation);
  if (shared_.size() < kMostShared) {
    auto& known = shared_[shape_of_it + sample_ref_to_json(common)];
    if (known == nullptr) known = &patterns_.emplace_back(std::move(pattern));
    packed.pattern = known;
  } else {
    const auto known = shared_.find(shape_of_it + sample_ref_to_json(common));
    packed.pattern = known != shared_.end() ? known->second : &patterns_.emplace_back(std::move(pattern));
  }
  packed.rest.shrink_to_fit();
  return packed;
}

SampleRef PackedRef::unpack() const {
  SampleRef ref = pattern->ref;
  const std::string& id = sample_id.str();
  ref.sample_id = sample_id;
  ref.generation = generation;
  ref.estimated_bytes = bytes;
  ref.num_tokens = tokens;
  const char* at = rest.data();
  for (FeatureSpec& spec : ref.feature_specs) {
    for (std::int64_t& extent : spec.shape) extent = take_number(at);
  }
  for (std::size_t i = 0; i < ref.feature_keys.size(); ++i) {
    std::string& key = ref.feature_keys[i].second;
    if (pattern->keys_at[i] != RefPattern::kNoId) key = put_in(key, pattern->keys_at[i], id);
  }
  std::string& uri = ref.feature_store_uri;
  if (pattern->uri_at == RefPattern::kNoId) {
    uri.assign(at, rest.data() + rest.size());
  } else {
    uri = put_in(uri, pattern->uri_at, id, pattern->uri_ends_in_generation ? fmt::format("{}", generation) : std::string());
  }
  return ref;
}

}  // namespace draftflow::memory
