// SPDX-License-Identifier: Apache-2.0
#include "draftflow/records/dtype.h"

#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

struct Row {
  DType dtype;
  std::string_view name;
  std::size_t bytes;
};

constexpr Row kRows[] = {
    {DType::kBool, "bool", 1},       {DType::kUInt8, "uint8", 1},       {DType::kInt8, "int8", 1},
    {DType::kInt16, "int16", 2},     {DType::kInt32, "int32", 4},       {DType::kInt64, "int64", 8},
    {DType::kFloat16, "float16", 2}, {DType::kBFloat16, "bfloat16", 2}, {DType::kFloat32, "float32", 4},
    {DType::kFloat64, "float64", 8},
};

}  // namespace

std::size_t dtype_bytes(DType dtype) {
  return kRows[static_cast<int>(dtype)].bytes;
}

std::string_view dtype_name(DType dtype) {
  return kRows[static_cast<int>(dtype)].name;
}

DType dtype_from_name(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.dtype;
  }
  std::string known;
  for (const Row& row : kRows) {
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  throw InvalidArgument(fmt::format("dtype '{}' is not known: {}", printable(name, 40), known));
}

}  // namespace draftflow
