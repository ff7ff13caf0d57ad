// SPDX-License-Identifier: Apache-2.0
//
// cmake --preset fuzz && cmake --build build/fuzz --target safetensors_fuzz
//   && build/fuzz/bin/safetensors_fuzz -max_len=4096 /tmp/found src/formats/fuzz/corpus/safetensors
#include <cstdint>

#include "formats/fuzz/bodies.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  draftflow::fuzz::safetensors_body(std::as_bytes(std::span(data, size)));
  return 0;
}
