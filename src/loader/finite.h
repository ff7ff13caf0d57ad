// SPDX-License-Identifier: Apache-2.0
//
// Finds NaN and infinity in host tensors. Private to this room; pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "draftflow/formats/tensor.h"

namespace draftflow {

struct NotFinite {
  std::string what;          // "NaN" or "infinity"
  std::int64_t element = 0;  // its row-major index
};

// The first element that is NaN or infinite; integers never are.
std::optional<NotFinite> find_not_finite(const Tensor& tensor);

}  // namespace draftflow
