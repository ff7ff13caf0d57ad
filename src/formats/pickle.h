// SPDX-License-Identifier: Apache-2.0
//
// A pickle (protocol 2) read as data: the opcodes that torch.save uses for plain values and tensors, and the few globals
// that name them. Nothing is imported, called or executed; anything off the list is refused by name. Values live in one
// arena and refer to each other by index, so that cycles and deep nesting cost neither recursion nor leaks. Private to
// this room.
//
//   Pickle pickle = read_pickle(bytes, "a.ckpt");
//   const PickleValue& top = pickle[pickle.top];
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "draftflow/records/dtype.h"

namespace draftflow::formats {

// A pickle of 8 MiB describes some 70,000 tensors; each of its bytes may cost this reader about 100 bytes of memory.
constexpr std::size_t kMaxPickleBytes = 8U << 20;

enum class PickleKind : std::uint8_t { kNone, kBool, kInt, kFloat, kStr, kTuple, kList, kDict, kGlobal, kStorage, kTensor };

struct PickleValue {
  PickleKind kind = PickleKind::kNone;
  bool wide = false;                 // kInt: does not fit `number`
  std::int64_t number = 0;           // kInt, kBool; kStorage: elements; kGlobal: its row
  std::string_view text;             // kStr; kStorage: its key. Points into the input
  std::optional<DType> dtype;        // kStorage; none if untyped
  std::vector<std::uint32_t> items;  // kTuple, kList; kDict: key, value, key, value; kTensor: its six arguments
};

struct Pickle {
  std::vector<PickleValue> values;
  std::uint32_t top = 0;
  const PickleValue& operator[](std::uint32_t index) const { return values[index]; }
};

// Corrupt for damage, InvalidArgument for an opcode or a global off the list.
Pickle read_pickle(std::span<const std::byte> bytes, std::string_view what);

// The class of torch's storages of this dtype: "LongStorage", an attribute of the module torch.
std::string_view torch_storage_class(DType dtype);

// The kind as Python calls its type: "str", "int", "NoneType".
const char* python_type(PickleKind kind);

}  // namespace draftflow::formats
