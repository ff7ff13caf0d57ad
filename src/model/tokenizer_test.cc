// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/tokenizer.h"

#include <gtest/gtest.h>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

const std::filesystem::path kModel = std::filesystem::path(DRAFTFLOW_SOURCE_DIR) / "examples/target/tokenizer.model";

TEST(Tokenizer, RoundTripsWithBosInFront) {
  const Tokenizer tokenizer(kModel);
  const auto ids = tokenizer.encode("Call me Ishmael. \xF0\x9F\x90\x8B");
  EXPECT_EQ(ids.front(), 1);
  EXPECT_EQ(tokenizer.decode(ids), "Call me Ishmael. \xF0\x9F\x90\x8B");  // the whale goes through byte pieces
  EXPECT_EQ(tokenizer.vocab_size(), 2048);
}

TEST(Tokenizer, RefusesEmptyAndInvalidText) {
  const Tokenizer tokenizer(kModel);
  EXPECT_THROW(tokenizer.encode(""), InvalidArgument);
  EXPECT_THROW(tokenizer.encode("ab\xFF"), InvalidArgument);
  EXPECT_THROW(tokenizer.decode({2048}), InvalidArgument);
}

TEST(Tokenizer, RefusesAFileThatIsNoModel) {
  const testing_support::TempFolder folder;
  EXPECT_THROW(Tokenizer(folder.path() / "none"), NotFound);
  for (const std::string text : {"", "not a model"}) {
    replace_file(folder.path() / "t", text);
    EXPECT_THROW(Tokenizer(folder.path() / "t"), Corrupt);
  }
}

}  // namespace
}  // namespace draftflow
