// SPDX-License-Identifier: Apache-2.0
//
// sentencepiece behind a C boundary, in a shared library of its own. Debian's libsentencepiece exports the protobuf it was
// built with under the same names as the libprotobuf that libtorch needs; in one symbol scope they overwrite each other and
// the process dies before main. The library is opened with RTLD_LOCAL | RTLD_DEEPBIND, so neither sees the other.
// A tokenizer is constant after it was made; the functions are thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

namespace draftflow::sentencepiece_shim {

using Receive = void (*)(void* context, const void* data, std::size_t count);  // count: ids (int) or bytes (text)

struct Functions {
  // A tokenizer, or nullptr with the reason handed to `error`.
  void* (*open)(const char* model, std::size_t bytes, Receive error, void* context);
  void (*close)(void* tokenizer);
  int (*size)(void* tokenizer);
  int (*bos)(void* tokenizer);  // -1: none
  bool (*encode)(void* tokenizer, const char* text, std::size_t bytes, Receive ids, void* context);
  bool (*decode)(void* tokenizer, const int* ids, std::size_t count, Receive text, void* context);
};

// What the library exports, under this name.
constexpr const char* kEntry = "draftflow_sentencepiece";
constexpr const char* kLibrary = "libdraftflow_sentencepiece.so";
using Entry = const Functions* (*)();

}  // namespace draftflow::sentencepiece_shim
