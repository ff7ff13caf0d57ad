// SPDX-License-Identifier: Apache-2.0
//
// cmake --preset fuzz && cmake --build build/fuzz --target torch_zip_fuzz
//   && build/fuzz/bin/torch_zip_fuzz -max_len=4096 /tmp/found src/formats/fuzz/corpus/torch_zip
#include <cstdint>

#include "formats/fuzz/bodies.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  draftflow::fuzz::torch_zip_body(std::as_bytes(std::span(data, size)));
  return 0;
}
