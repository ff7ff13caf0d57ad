// SPDX-License-Identifier: Apache-2.0
//
// Reads the zip that torch.save writes for a dict {name: tensor} (docs/formats/torch_zip.md) as data: the handful of
// pickle opcodes and globals it needs are interpreted, anything else is refused by name, nothing is ever executed.
// Plain values (strings, numbers, None, lists, dicts) are recognised and reported as such. Memory is bounded by the file's
// size. Thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "draftflow/formats/tensor.h"

namespace draftflow {

struct TorchFile {
  TensorMap tensors;                                        // views into the input, strided ones copied contiguous
  std::vector<std::pair<std::string, std::string>> values;  // top-level entries that are no tensor: name -> "str", "int", ...
};

// `bytes` is the whole file; the tensors keep `owner` alive. Corrupt for a damaged file, InvalidArgument for one that is
// sound but refused (a compressed entry, a global off the list: named).
TorchFile parse_torch_zip(std::span<const std::byte> bytes, std::shared_ptr<const void> owner, std::string_view what);

}  // namespace draftflow
