// SPDX-License-Identifier: Apache-2.0
#include "draftflow/records/sample_ref.h"

#include <algorithm>

#include "records/json_fields.h"
#include "records/plain_ref.h"

namespace draftflow {
namespace {

using records::Json;
constexpr std::string_view kWhat = "sample ref";

Json spec_to_json(const FeatureSpec& spec) {
  Json object = Json::object();
  const auto other = [&](const char* name, Json fallback) {
    for (const auto& [key, text] : spec.other) {
      if (key == name) fallback = Json::parse(text);
    }
    object[name] = std::move(fallback);
  };
  object["name"] = spec.name;
  object["shape"] = spec.shape;
  object["dtype"] = dtype_name(spec.dtype);
  other("device_hint", nullptr);
  object["required"] = spec.required;
  object["target_repr"] = records::optional_string(spec.target_repr);
  other("target_meta", Json::object());
  for (const auto& [key, text] : spec.other) {
    if (!object.contains(key)) object[key] = Json::parse(text);
  }
  return object;
}

FeatureSpec spec_from_json(Json object) {
  constexpr std::string_view what = "feature spec";
  if (!object.is_object()) throw Corrupt("feature spec is not a JSON object");
  FeatureSpec spec;
  spec.name = records::take_as<std::string>(object, what, "name");
  spec.shape = records::take_as<std::vector<std::int64_t>>(object, what, "shape");
  spec.dtype = dtype_from_name(records::take_as<std::string>(object, what, "dtype"));
  spec.required = records::take_as<bool>(object, what, "required");
  spec.target_repr = records::take_optional_string(object, what, "target_repr");
  for (const std::int64_t extent : spec.shape) {
    if (extent < 0) throw Corrupt(fmt::format("feature spec '{}' has a negative extent {}", spec.name, extent));
  }
  spec.other = records::members_of(object);
  return spec;
}

void check_schema_version(int version) {
  if (version != kSchemaVersion) {
    throw InvalidArgument(fmt::format("sample ref has schema_version {}: this program knows {}; a newer draftflow wrote it",
                                      version, kSchemaVersion));
  }
}

void take_metadata(Json metadata, SampleRef& ref) {
  if (!metadata.is_object()) throw Corrupt("sample ref field 'metadata' is not a JSON object");
  if (metadata.contains("generation")) ref.generation = records::take_as<std::uint64_t>(metadata, kWhat, "generation");
  if (metadata.contains("incarnation")) ref.incarnation = records::take_as<std::string>(metadata, kWhat, "incarnation");
  ref.metadata = records::members_of(metadata);
}

}  // namespace

std::uint64_t FeatureSpec::bytes() const {
  std::uint64_t count = 1;
  for (const std::int64_t extent : shape) count *= static_cast<std::uint64_t>(extent);
  return count * dtype_bytes(dtype);
}

const FeatureSpec* SampleRef::find_spec(std::string_view name) const {
  const auto at = std::find_if(feature_specs.begin(), feature_specs.end(), [&](const auto& spec) { return spec.name == name; });
  return at == feature_specs.end() ? nullptr : &*at;
}

const std::string* SampleRef::find_metadata(std::string_view key) const {
  const auto at = std::find_if(metadata.begin(), metadata.end(), [&](const auto& member) { return member.first == key; });
  return at == metadata.end() ? nullptr : &at->second;
}

void SampleRef::set_metadata(std::string_view key, std::string json_text) {
  for (auto& [name, text] : metadata) {
    if (name == key) {
      text = std::move(json_text);
      return;
    }
  }
  metadata.emplace_back(std::string(key), std::move(json_text));
}

std::string records::write_any_ref(const SampleRef& ref) {
  Json object = Json::object();
  object["sample_id"] = ref.sample_id.str();
  object["run_id"] = ref.run_id.str();
  object["source_task_id"] = records::optional_string(ref.source_task_id);
  object["feature_store_uri"] = ref.feature_store_uri;
  object["feature_keys"] = Json::object();
  for (const auto& [name, key] : ref.feature_keys) object["feature_keys"][std::string(name)] = key;
  object["feature_specs"] = Json::object();
  for (const FeatureSpec& spec : ref.feature_specs) object["feature_specs"][spec.name] = spec_to_json(spec);
  object["strategy"] = ref.strategy;
  object["schema_version"] = ref.schema_version;
  object["target_model_version"] = ref.target_model_version;
  object["draft_weight_version"] = records::optional_string(ref.draft_weight_version);
  object["tokenizer_version"] = ref.tokenizer_version;
  object["num_tokens"] = ref.num_tokens;
  object["estimated_bytes"] = ref.estimated_bytes;
  Json metadata = Json::object();
  records::add_members(metadata, ref.metadata);
  if (ref.generation != 0) metadata["generation"] = ref.generation;
  if (!ref.incarnation.empty()) metadata["incarnation"] = ref.incarnation;
  object["metadata"] = std::move(metadata);
  records::add_members(object, ref.other);
  return object.dump();
}

std::string sample_ref_to_json(const SampleRef& ref) {
  std::optional<std::string> text = records::write_plain_ref(ref);
  return text ? std::move(*text) : records::write_any_ref(ref);
}

SampleRef records::read_any_ref(std::string_view text) {
  Json object = records::parse_object(kWhat, text);
  const int version = records::take_as<int>(object, kWhat, "schema_version");
  check_schema_version(version);
  SampleRef ref{.sample_id = SampleId(records::take_as<std::string>(object, kWhat, "sample_id")),
                .run_id = RunId(records::take_as<std::string>(object, kWhat, "run_id"))};
  ref.schema_version = version;
  ref.source_task_id = records::take_optional_string(object, kWhat, "source_task_id");
  ref.feature_store_uri = records::take_as<std::string>(object, kWhat, "feature_store_uri");
  const Json keys = records::take(object, kWhat, "feature_keys");
  for (const auto& [name, key] : keys.items()) {
    if (!key.is_string()) throw Corrupt(fmt::format("sample ref feature key '{}' is not a string", name));
    ref.feature_keys.emplace_back(name, key.get<std::string>());
  }
  const Json specs = records::take(object, kWhat, "feature_specs");
  std::vector<FeatureSpec> read;
  for (const auto& [name, spec] : specs.items()) read.push_back(spec_from_json(spec));
  ref.feature_specs = std::move(read);
  ref.strategy = records::take_as<std::string>(object, kWhat, "strategy");
  ref.target_model_version = records::take_as<std::string>(object, kWhat, "target_model_version");
  ref.draft_weight_version = records::take_optional_string(object, kWhat, "draft_weight_version");
  ref.tokenizer_version = records::take_as<std::string>(object, kWhat, "tokenizer_version");
  ref.num_tokens = records::take_as<std::int64_t>(object, kWhat, "num_tokens");
  ref.estimated_bytes = records::take_as<std::uint64_t>(object, kWhat, "estimated_bytes");
  take_metadata(records::take(object, kWhat, "metadata"), ref);
  ref.other = records::members_of(object);
  return ref;
}

SampleRef sample_ref_from_json(std::string_view text) {
  std::optional<SampleRef> ref = records::read_plain_ref(text);
  return ref ? std::move(*ref) : records::read_any_ref(text);
}

}  // namespace draftflow
