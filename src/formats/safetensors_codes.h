// SPDX-License-Identifier: Apache-2.0
//
// The names of a safetensors header. Private to this room.
#pragma once

#include <algorithm>
#include <iterator>
#include <optional>
#include <string_view>

#include "draftflow/records/dtype.h"

namespace draftflow::formats {

constexpr std::string_view kMetadataName = "__metadata__";

struct DTypeCode {
  DType dtype;
  std::string_view name;
};

constexpr DTypeCode kDTypeCodes[] = {
    {DType::kBool, "BOOL"},   {DType::kUInt8, "U8"},    {DType::kInt8, "I8"},     {DType::kInt16, "I16"},
    {DType::kInt32, "I32"},   {DType::kInt64, "I64"},   {DType::kFloat16, "F16"}, {DType::kBFloat16, "BF16"},
    {DType::kFloat32, "F32"}, {DType::kFloat64, "F64"},
};

inline std::string_view code_of(DType dtype) {
  return std::find_if(std::begin(kDTypeCodes), std::end(kDTypeCodes),
                      [&](const DTypeCode& code) { return code.dtype == dtype; })
      ->name;
}

inline std::optional<DType> dtype_of_code(std::string_view name) {
  const auto code =
      std::find_if(std::begin(kDTypeCodes), std::end(kDTypeCodes), [&](const DTypeCode& known) { return known.name == name; });
  return code == std::end(kDTypeCodes) ? std::nullopt : std::optional(code->dtype);
}

}  // namespace draftflow::formats
