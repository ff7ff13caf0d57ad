// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "draftflow/base/file.h"
#include "formats/fuzz/bodies.h"

namespace draftflow::fuzz {
namespace {

// A file whose name begins with ok_ is read, any other refused (make_corpus.py).
void replay(const char* kind, bool (*body)(std::span<const std::byte>), std::size_t at_least) {
  std::size_t files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(DRAFTFLOW_SOURCE_DIR "/src/formats/fuzz/corpus") / kind)) {
    const std::string name = entry.path().filename(), input = read_text_file(entry.path(), 1U << 20);
    EXPECT_EQ(body(std::as_bytes(std::span(input))), name.starts_with("ok_")) << entry.path();
    ++files;
  }
  EXPECT_GE(files, at_least);
}

TEST(Corpus, Safetensors) {
  replay("safetensors", safetensors_body, 25);
}

TEST(Corpus, TorchZip) {
  replay("torch_zip", torch_zip_body, 55);
}

}  // namespace
}  // namespace draftflow::fuzz
