// SPDX-License-Identifier: Apache-2.0
//
// What the fuzz programs do with one input; corpus_test does the same with the files in corpus/. An Error is a fine answer to
// any input; a broken promise of the reader is a std::logic_error. For tests and fuzzing only. Thread-safe.
#pragma once

#include <cstddef>
#include <span>

namespace draftflow::fuzz {

// The input is a file: its header is parsed, the entries must tile the data, and what was read must come back from what
// make_safetensors_header writes. True if the file was read, false if it was refused.
bool safetensors_body(std::span<const std::byte> input);

// The input is a file if it begins as a zip. Else it is a data.pkl, wrapped into a sound zip beside one storage of 64 bytes,
// because no mutation survives the CRCs of a whole file. What was read must come back from what write_torch_zip writes.
bool torch_zip_body(std::span<const std::byte> input);

}  // namespace draftflow::fuzz
