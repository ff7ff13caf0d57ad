// SPDX-License-Identifier: Apache-2.0
//
// What generation_fuzz does with one input, and generation_fuzz_test with many. An Error is a fine answer to any input; a
// broken promise of the reader is a std::logic_error. For tests and fuzzing only. Thread-safe.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "store/shared_dir/generation_file.h"

namespace draftflow::fuzz {

// Whose file every input claims to be, or not.
store::Identity generation_identity();

// The input is the file of a generation: of a store of layout specforge if it begins as a zip. Else it is safetensors, whose
// header's checksum is put right first, since no mutation would survive it. Every tensor
// header's checksum is put right first: no mutation would survive it. Every tensor that the reader lists is read, and fits its
// dtype and shape. True if all were read, false if anything was refused.
bool generation_body(std::span<const std::byte> input);

}  // namespace draftflow::fuzz
