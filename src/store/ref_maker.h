// SPDX-License-Identifier: Apache-2.0
//
// What every backend does alike around a sample's bytes: checks a put's arguments, makes the ref, holds what a file contains
// against what a ref promises, and tells which errors health counts. Pure functions, thread-safe. Private to this room.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/formats/tensor.h"
#include "draftflow/records/sample_ref.h"
#include "draftflow/store/feature_store.h"

namespace draftflow::store {

constexpr const char* kCodecsKey = "codecs";  // in a ref's metadata: {"hidden": "int8"}

// Conflict unless the fence lets the put go on.
void ask(const PutFence& fence, const SampleId& sample_id);

// InvalidArgument, before anything is written, for what could not be stored or would make a ref that cannot be JSON.
void check_put(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata);

std::uint64_t bytes_of(const TensorMap& tensors);

// The ref without generation and incarnation; feature keys are `key_prefix` + name.
SampleRef make_ref(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata, std::string uri,
                   const std::string& key_prefix);

// Enters the tensors: their specs, keys and bytes.
void set_tensors(SampleRef& ref, std::vector<FeatureSpec> specs, const std::string& key_prefix);

// The ref's specs to read, in the ref's order; all for no names. NotFound for a name that the ref lacks, listing its own.
std::vector<const FeatureSpec*> specs_to_read(const SampleRef& ref, const std::vector<std::string>& names);
// The same for a backend that keeps each tensor under its own name. NotFound for a key of another: the bytes would be the wrong
// ones.
std::vector<const FeatureSpec*> own_specs_to_read(const SampleRef& ref, const std::vector<std::string>& names);

// What health counts: not what the caller asked wrongly, nor what is gone or full, which is how things go.
bool is_failure(const Error& error);

constexpr std::uint64_t kMaxIdleBytes = 256ULL << 20;  // of a store's buffer pool

// The tensor found for the spec. Corrupt for nullptr, and as the next.
Tensor tensor_of(const FeatureSpec& spec, const Tensor* found, const std::string& what);

// Corrupt, naming both sides, unless dtype and shape are those of the spec.
void check_against_spec(const FeatureSpec& spec, DType dtype, const std::vector<std::int64_t>& shape, std::string_view what);

}  // namespace draftflow::store
