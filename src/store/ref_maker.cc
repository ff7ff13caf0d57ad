// SPDX-License-Identifier: Apache-2.0
#include "store/ref_maker.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::store {
namespace {

void check_text(std::string_view what, std::string_view text, const SampleId& sample_id) {
  const std::size_t at = find_invalid_utf8(text);
  if (at == std::string_view::npos) return;
  throw InvalidArgument(fmt::format("put of sample '{}': {} '{}' is not UTF-8 at byte {}", printable(sample_id.str()), what,
                                    printable(text), at));
}

// The store says which generation it is; a caller's own claim would make the ref lie.
bool is_reserved(std::string_view key) {
  return key == "generation" || key == "incarnation" || key == kCodecsKey;
}

void check_metadata(const PutMetadata& metadata, const SampleId& sample_id) {
  check_text("source_task_id", metadata.source_task_id.value_or(""), sample_id);
  check_text("strategy", metadata.strategy, sample_id);
  check_text("target_model_version", metadata.target_model_version, sample_id);
  check_text("tokenizer_version", metadata.tokenizer_version, sample_id);
  check_text("draft_weight_version", metadata.draft_weight_version.value_or(""), sample_id);
  for (const auto& [key, text] : metadata.metadata) {
    check_text("metadata key", key, sample_id);
    if (is_reserved(key)) {
      throw InvalidArgument(fmt::format("put of sample '{}': the metadata key '{}' is the store's own: leave it out",
                                        printable(sample_id.str()), key));
    }
    if (!nlohmann::json::accept(text)) {
      throw InvalidArgument(fmt::format("put of sample '{}': metadata '{}' is not JSON text: {}", printable(sample_id.str()),
                                        printable(key), printable(text, 80)));
    }
  }
}

}  // namespace

void ask(const PutFence& fence, const SampleId& sample_id) {
  if (!fence.still_mine || fence.still_mine()) return;
  throw Conflict(fmt::format("put of sample '{}': the lease that it works under was lost; nothing was kept: drop this result",
                             printable(sample_id.str())));
}

void check_put(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata) {
  if (tensors.empty()) {
    throw InvalidArgument(
        fmt::format("put of sample '{}': no tensors were given: at least one is needed", printable(sample_id.str())));
  }
  std::set<std::string_view> seen;
  for (const auto& [name, tensor] : tensors) {
    check_text("tensor name", name, sample_id);
    if (name.empty() || name == "__metadata__" || !seen.insert(name).second) {
      throw InvalidArgument(fmt::format("put of sample '{}': the tensor name '{}' is empty, reserved or given twice",
                                        printable(sample_id.str()), printable(name)));
    }
    const std::uint64_t needed = tensor_bytes(tensor.dtype, tensor.shape);
    if (needed != tensor.bytes.size()) {
      throw InvalidArgument(fmt::format("put of sample '{}': tensor '{}' of dtype {} and shape {} needs {} bytes, but has {}",
                                        printable(sample_id.str()), printable(name), dtype_name(tensor.dtype),
                                        shape_text(tensor.shape), needed, tensor.bytes.size()));
    }
  }
  check_metadata(metadata, sample_id);
}

std::uint64_t bytes_of(const TensorMap& tensors) {
  std::uint64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += tensor.bytes.size();
  return bytes;
}

void set_tensors(SampleRef& ref, std::vector<FeatureSpec> specs, const std::string& key_prefix) {
  ref.estimated_bytes = estimate_bytes(specs);
  ref.feature_keys.clear();
  for (const FeatureSpec& spec : specs) ref.feature_keys.emplace_back(spec.name, key_prefix + spec.name);
  ref.feature_specs = std::move(specs);
}

SampleRef make_ref(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata, std::string uri,
                   const std::string& key_prefix) {
  SampleRef ref{.sample_id = sample_id, .run_id = metadata.run_id};
  ref.source_task_id = metadata.source_task_id;
  ref.feature_store_uri = std::move(uri);
  std::vector<FeatureSpec> specs;
  for (const auto& [name, tensor] : tensors) specs.push_back(spec_from_tensor(name, tensor));
  set_tensors(ref, std::move(specs), key_prefix);
  ref.strategy = metadata.strategy;
  ref.target_model_version = metadata.target_model_version;
  ref.draft_weight_version = metadata.draft_weight_version;
  ref.tokenizer_version = metadata.tokenizer_version;
  ref.num_tokens = metadata.num_tokens;
  ref.metadata = metadata.metadata;
  return ref;
}

std::vector<const FeatureSpec*> specs_to_read(const SampleRef& ref, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (ref.find_spec(name) != nullptr) continue;
    std::vector<std::string> known;
    for (const FeatureSpec& spec : ref.feature_specs) known.push_back(printable(spec.name, 80));
    throw NotFound(fmt::format("the ref of sample '{}' has no tensor '{}': it has {}", printable(ref.sample_id.str()),
                               printable(name), fmt::join(known, ", ")));
  }
  std::vector<const FeatureSpec*> specs;
  for (const FeatureSpec& spec : ref.feature_specs) {
    if (names.empty() || std::find(names.begin(), names.end(), spec.name) != names.end()) specs.push_back(&spec);
  }
  return specs;
}

std::vector<const FeatureSpec*> own_specs_to_read(const SampleRef& ref, const std::vector<std::string>& names) {
  for (const auto& [name, key] : ref.feature_keys) {  // of a key, what follows the sample
    const std::size_t before = key.size() - std::min(key.size(), name.size());
    if (key.substr(before) == name && (before == 0 || key[before - 1] == '/')) continue;
    throw NotFound(fmt::format(
        "the ref of sample '{}' has '{}' as the key of '{}': this store keeps each tensor under its own "
        "name, '{}/{}'; use the ref that put gave",
        printable(ref.sample_id.str()), printable(key), printable(name), printable(ref.sample_id.str()), printable(name)));
  }
  return specs_to_read(ref, names);
}

bool is_failure(const Error& error) {
  const ErrorKind kind = error.kind();
  return kind == ErrorKind::kCorrupt || kind == ErrorKind::kUnavailable || kind == ErrorKind::kPermissionDenied;
}

Tensor tensor_of(const FeatureSpec& spec, const Tensor* found, const std::string& what) {
  if (found == nullptr) {
    throw Corrupt(fmt::format("{}: the file has no tensor '{}', which the ref names", what, printable(spec.name)));
  }
  check_against_spec(spec, found->dtype, found->shape, what);
  return *found;
}

void check_against_spec(const FeatureSpec& spec, DType dtype, const std::vector<std::int64_t>& shape, std::string_view what) {
  if (spec.dtype == dtype && spec.shape == shape) return;
  throw Corrupt(fmt::format("{}: tensor '{}' is {} {}, but the ref says {} {}: the file is not what the ref was made from",
                            what, printable(spec.name), dtype_name(dtype), shape_text(shape), dtype_name(spec.dtype),
                            shape_text(spec.shape)));
}

}  // namespace draftflow::store

namespace draftflow {

ResidentSample FeatureStore::resident(const SampleRef& ref) {
  std::optional<ResidentSample> found;
  for_each(
      [&](const ResidentSample& sample) {
        if (sample.sample_id == ref.sample_id && sample.generation == ref.generation) found = sample;
        return !found;
      },
      [](const std::filesystem::path&, const std::string&) {});
  if (found) return *found;
  throw NotFound(
      fmt::format("sample '{}' generation {} is not in the store: it was freed, superseded or never written; ask the "
                  "ledger for a current ref",
                  printable(ref.sample_id.str()), ref.generation));
}

std::uint64_t estimate_bytes(const std::vector<FeatureSpec>& specs) {
  std::uint64_t bytes = 0;
  for (const FeatureSpec& spec : specs) bytes += tensor_bytes(spec.dtype, spec.shape);
  return bytes;
}

}  // namespace draftflow
