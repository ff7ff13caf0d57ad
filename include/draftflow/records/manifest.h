// SPDX-License-Identifier: Apache-2.0
//
// Manifest of an offline set: {"schema_version": 1, "refs": [ref, ...]}, as the reference runtime writes and reads it
// (docs/formats/reference.md). Thread-safe.
#pragma once

#include <filesystem>
#include <vector>

#include "draftflow/records/sample_ref.h"

namespace draftflow {

// NotFound if the file is not there. Corrupt, naming the file and the ref's place in it, for what is no manifest;
// InvalidArgument for another schema version, naming the one found and the one known.
std::vector<SampleRef> read_ref_manifest(const std::filesystem::path& path);

// In one step: a file that is there is replaced or stays as it was. What a ref has beyond the reference's own fields stays in
// its metadata, so that the reference reads it.
void write_ref_manifest(const std::filesystem::path& path, const std::vector<SampleRef>& refs);

}  // namespace draftflow
