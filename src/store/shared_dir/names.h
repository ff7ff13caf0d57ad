// SPDX-License-Identifier: Apache-2.0
//
// Names in a shared directory (docs/formats/shared_dir.md): what a person can recognise, and no id, however hostile, can
// leave its folder or meet another id's name. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "draftflow/base/ids.h"

namespace draftflow::store {

constexpr std::uint64_t kMaxGeneration = (1ULL << 53) - 1;

// Where one sample lives below samples/: {fan_out}/{folder}/{readable}.g{generation}.safetensors
struct SamplePlace {
  std::string fan_out, folder, readable;
  std::size_t fan_out_index() const;  // 0 to 255
};

std::string store_folder_name(const StoreId& id);
SamplePlace sample_place(const SampleId& id);

// The place that a folder found by walking is, or nothing if it is not a sample's folder.
std::optional<SamplePlace> parse_sample_folder(std::string_view fan_out, std::string_view folder);
bool is_fan_out_name(std::string_view name);

std::string generation_name(const SamplePlace& place, std::uint64_t generation);
std::optional<std::uint64_t> parse_generation_name(const SamplePlace& place, std::string_view name);

// A file of the reference runtime's (docs/formats/reference.md): {sample_id}.g{generation}.ckpt, split at the last ".g".
struct ReferenceName {
  std::string sample_id;
  std::uint64_t generation = 0;
};
std::optional<ReferenceName> parse_reference_name(std::string_view file);  // nothing for another file
// Nothing for an id that the reference cannot name: one with '/' or a newline, or too long for a file name.
std::optional<std::string> reference_name(const SampleId& id, std::uint64_t generation);

// What a consuming release leaves beside a generation that others still lease.
std::string mark_name(const SamplePlace& place, std::uint64_t generation);
std::optional<std::uint64_t> parse_mark_name(const SamplePlace& place, std::string_view name);

// A lease's link in its holder's folder: which generation, and the holder's number for it.
std::string lease_name(const SamplePlace& place, std::uint64_t generation, std::uint64_t number);
struct LeaseName {
  SamplePlace place;
  std::uint64_t generation = 0;
};
std::optional<LeaseName> parse_lease_name(std::string_view name);

// A decimal of 1 to kMaxGeneration without leading zeros.
std::optional<std::uint64_t> parse_number(std::string_view digits);

}  // namespace draftflow::store
