// SPDX-License-Identifier: Apache-2.0
//
// The input is a data.pkl, wrapped into a sound zip beside one storage, because no mutation survives the CRCs of a whole
// file; an input that begins as a zip is parsed as it is. Built and run as safetensors_fuzz.cc says.
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "draftflow/base/error.h"
#include "draftflow/formats/torch_zip.h"
#include "formats/zip_builder.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  std::string file(input);
  if (!input.starts_with("PK")) {
    file = draftflow::testing_support::ZipBuilder().add("a/data.pkl", file).add("a/data/0", std::string(64, '\1')).finish();
  }
  try {
    const auto torch = draftflow::parse_torch_zip(std::as_bytes(std::span(file)), nullptr, "fuzz");
    unsigned sum = 0;
    for (const auto& [name, tensor] : torch.tensors) {
      for (const std::byte byte : tensor.bytes) sum += std::to_integer<unsigned>(byte);
    }
    volatile unsigned sink = sum;
    static_cast<void>(sink);
  } catch (const draftflow::Error&) {
  }
  return 0;
}
