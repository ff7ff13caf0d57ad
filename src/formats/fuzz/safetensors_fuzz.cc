// SPDX-License-Identifier: Apache-2.0
//
// cmake -B build-fuzz -DCMAKE_CXX_COMPILER=clang++ -DDRAFTFLOW_FUZZ=ON -DDRAFTFLOW_SANITIZE=address,undefined
//   && ninja -C build-fuzz safetensors_fuzz && build-fuzz/bin/safetensors_fuzz -max_len=4096
#include <cstdint>
#include <span>

#include "draftflow/base/error.h"
#include "draftflow/formats/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto header = draftflow::parse_safetensors_header(std::as_bytes(std::span(data, size)), size, "fuzz");
    std::uint64_t at = 0;
    for (const auto& entry : header.entries) {
      if (entry.begin != at || entry.end < at || entry.end > size - header.data_offset) __builtin_trap();
      at = entry.end;
    }
  } catch (const draftflow::Error&) {
  }
  return 0;
}
