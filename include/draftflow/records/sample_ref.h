// SPDX-License-Identifier: Apache-2.0
//
// SampleRef: metadata that points at one sample in one feature store; it can hold no tensor by construction. Its JSON is
// the reference runtime's (docs/formats/records.md): field order kept, everything of ours inside "metadata", and fields
// that this version does not know survive a round trip. Plain values; thread-safe as such.
//
//   SampleRef ref = sample_ref_from_json(text);   // Corrupt if it is not a ref, InvalidArgument for an unknown schema
//   std::string again = sample_ref_to_json(ref);
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "draftflow/base/ids.h"
#include "draftflow/records/dtype.h"
#include "draftflow/records/feature_keys.h"
#include "draftflow/records/shared_list.h"

namespace draftflow {

constexpr int kSchemaVersion = 1;

// JSON members in order: name -> JSON text of the value ("3", "\"x\"", "[1,2]").
using JsonMembers = std::vector<std::pair<std::string, std::string>>;

// What one named tensor of a sample looks like.
struct FeatureSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  DType dtype = DType::kFloat32;
  bool required = true;
  std::optional<std::string> target_repr;  // "logits", "pruned_logits" or "hidden_state"
  JsonMembers other;                       // device_hint, target_meta and fields of later versions, kept as they came

  std::uint64_t bytes() const;  // product of the shape times the element size
};

struct SampleRef {
  SampleId sample_id;
  RunId run_id;
  std::optional<std::string> source_task_id;
  std::string feature_store_uri;          // disagg://{store}/{sample}, mem://..., file://{absolute path}
  FeatureKeys feature_keys;               // name -> raw key, in order
  SharedList<FeatureSpec> feature_specs;  // in order, one per name
  std::string strategy = "eagle3";
  int schema_version = kSchemaVersion;
  std::string target_model_version = "unknown";
  std::optional<std::string> draft_weight_version;
  std::string tokenizer_version = "unknown";
  std::int64_t num_tokens = 0;
  std::uint64_t estimated_bytes = 0;

  // metadata["generation"] and metadata["incarnation"]: which immutable bytes the ref means. 0 and "" where unknown.
  std::uint64_t generation = 0;
  std::string incarnation;
  JsonMembers metadata;  // the rest of metadata
  JsonMembers other;     // unknown top-level fields

  const FeatureSpec* find_spec(std::string_view name) const;       // nullptr if absent
  const std::string* find_metadata(std::string_view key) const;    // JSON text, nullptr if absent
  void set_metadata(std::string_view key, std::string json_text);  // adds or replaces
};

std::string sample_ref_to_json(const SampleRef& ref);

// Text that is not JSON or lacks a field is Corrupt, naming the field; a schema_version other than 1 is InvalidArgument,
// naming the version found and the versions known.
SampleRef sample_ref_from_json(std::string_view text);

}  // namespace draftflow
