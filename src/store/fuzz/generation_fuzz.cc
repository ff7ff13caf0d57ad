// SPDX-License-Identifier: Apache-2.0
//
// cmake --preset fuzz && cmake --build build/fuzz --target generation_fuzz store_test
//   && DRAFTFLOW_SEEDS=/tmp/seeds build/fuzz/bin/store_test --gtest_filter='GenerationFuzz.Seeds*'
//   && build/fuzz/bin/generation_fuzz -max_len=8192 /tmp/found /tmp/seeds
#include <cstdint>

#include "store/fuzz/generation_body.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  draftflow::fuzz::generation_body(std::as_bytes(std::span(data, size)));
  return 0;
}
