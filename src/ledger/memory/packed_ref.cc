// SPDX-License-Identifier: Apache-2.0
#include "ledger/memory/packed_ref.h"

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

RefPattern::Around split(std::string_view text, const std::string& id) {
  const std::size_t at = text.find(id);
  if (at == std::string::npos) return {.before = std::string(text)};
  return {.before = std::string(text.substr(0, at)), .after = std::string(text.substr(at + id.size())), .has_id = true};
}

std::string join(const RefPattern::Around& around, const std::string& id, std::string_view end = "") {
  if (!around.has_id) return around.before;
  std::string whole;
  whole.reserve(around.before.size() + id.size() + around.after.size() + end.size());
  whole.append(around.before).append(id).append(around.after).append(end);
  return whole;
}

// All that is in a pattern, so that two with the same text are the same. U+0000 is in no id, but may be in other texts, so that
// lengths stand before them.
std::string text_of(const RefPattern& pattern) {
  std::string text;
  const auto add = [&](const RefPattern::Around& around) {
    for (const std::string* part : {&around.name, &around.before, &around.after}) {
      text.append(std::to_string(part->size())).append(" ").append(*part);
    }
    text += around.has_id ? '+' : '-';
  };
  add(pattern.uri);
  if (pattern.task) add(*pattern.task);
  text += pattern.uri_ends_in_generation ? 'g' : ' ';
  for (const RefPattern::Around& key : pattern.keys) add(key);
  for (const FeatureSpec& spec : pattern.ref.feature_specs) text.append(" ").append(std::to_string(spec.shape.size()));
  for (const std::size_t at : pattern.apart) text.append("m").append(std::to_string(at));
  return text + sample_ref_to_json(pattern.ref);
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
  std::string extents, texts;
  common.feature_specs.edit([&](std::vector<FeatureSpec>& specs) {
    for (FeatureSpec& spec : specs) {
      for (std::int64_t& extent : spec.shape) put_number(extents, std::exchange(extent, 0));
    }
  });
  if (common.source_task_id) pattern.task = split(*std::exchange(common.source_task_id, std::nullopt), id);
  for (std::size_t i = 0; i < common.metadata.size(); ++i) {
    std::string& text = common.metadata[i].second;
    if (!text.starts_with('"') || text.find_first_of("0123456789") == std::string::npos) continue;
    pattern.apart.push_back(i);
    put_number(texts, static_cast<std::int64_t>(text.size()));
    texts += std::exchange(text, "\"\"");
  }
  for (const auto& [name, key] : std::exchange(common.feature_keys, {})) {
    pattern.keys.push_back(split(key, id));
    pattern.keys.back().name = name;
    pattern.keys_bytes += name.size() + key.size();
  }
  pattern.uri = split(std::exchange(common.feature_store_uri, {}), id);
  if (!pattern.uri.has_id) {
    texts += std::exchange(pattern.uri.before, {});
  } else if (const std::string end = std::to_string(ref.generation); pattern.uri.after.ends_with(end)) {
    pattern.uri.after.resize(pattern.uri.after.size() - end.size());
    pattern.uri_ends_in_generation = true;
  }
  std::string text = text_of(pattern);
  const auto known = shared_.find(text);
  RefPattern& found = known != shared_.end() ? *known->second : patterns_.emplace_back(std::move(pattern));
  if (known == shared_.end() && shared_.size() < kMostShared) shared_.emplace(std::move(text), &found);
  packed.pattern = &found;
  const std::size_t place = place_of_specs(found, extents, ref);
  put_number(packed.rest, static_cast<std::int64_t>(place));
  packed.rest.append(place == 0 ? extents : std::string()).append(texts);
  packed.rest.shrink_to_fit();
  return packed;
}

// Samples of one length have the same shapes, and there are only so many lengths.
std::size_t RefPatterns::place_of_specs(RefPattern& pattern, const std::string& extents, const SampleRef& ref) {
  if (const auto known = pattern.specs_of.find(extents); known != pattern.specs_of.end()) return known->second;
  if (specs_ == kMostShared) return 0;
  pattern.specs.push_back(ref.feature_specs);
  ++specs_;
  return pattern.specs_of[extents] = pattern.specs.size();
}

SampleRef PackedRef::unpack() const {
  SampleRef ref = pattern->ref;
  const std::string& id = sample_id.str();
  ref.sample_id = sample_id;
  ref.generation = generation;
  ref.estimated_bytes = bytes;
  ref.num_tokens = tokens;
  const char* at = rest.data();
  if (const auto place = static_cast<std::size_t>(take_number(at)); place > 0) {
    ref.feature_specs = pattern->specs[place - 1];
  } else {
    ref.feature_specs.edit([&](std::vector<FeatureSpec>& specs) {
      for (FeatureSpec& spec : specs) {
        for (std::int64_t& extent : spec.shape) extent = take_number(at);
      }
    });
  }
  if (pattern->task) ref.source_task_id = join(*pattern->task, id);
  for (const std::size_t member : pattern->apart) {
    const auto size = static_cast<std::size_t>(take_number(at));
    ref.metadata[member].second.assign(at, size);
    at += size;
  }
  ref.feature_keys.reserve(pattern->keys.size(), pattern->keys_bytes + pattern->keys.size() * id.size());
  for (const RefPattern::Around& key : pattern->keys) {
    ref.feature_keys.append(key.name, {key.before, key.has_id ? std::string_view(id) : "", key.after});
  }
  if (!pattern->uri.has_id) {
    ref.feature_store_uri.assign(at, rest.data() + rest.size());
  } else {
    ref.feature_store_uri =
        join(pattern->uri, id, pattern->uri_ends_in_generation ? std::to_string(generation) : std::string());
  }
  return ref;
}

}  // namespace draftflow::memory
