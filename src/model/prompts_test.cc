// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/prompts.h"

#include <gtest/gtest.h>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

class Prompts : public ::testing::Test {
 protected:
  std::vector<Prompt> read(const std::string& name, const std::string& text) {
    replace_file(folder_.path() / name, text);
    return read_prompts(folder_.path() / name, tokenizer_, 16, 2048);
  }
  testing_support::TempFolder folder_;
  Tokenizer tokenizer_{std::filesystem::path(DRAFTFLOW_SOURCE_DIR) / "examples/target/tokenizer.model"};
};

TEST_F(Prompts, OneBadLineNeverStopsTheRest) {
  const auto prompts = read("p.jsonl",
                            "{\"text\":\"Call me Ishmael.\"}\n\n"
                            "{\"text\":\"\xFF\"}\n"
                            "[1]\n"
                            "{\"prompt\":\"x\"}\n"
                            "{\"text\":\"\"}\n"
                            "{\"input_ids\":[1,5000]}\n"
                            "{\"input_ids\":[1,2,3],\"loss_mask\":[0,1]}\n"
                            "{\"input_ids\":[1,2,\"x\"]}\n"
                            "{\"input_ids\":[1,2,3],\"loss_mask\":[0,1,1]}\r\n"
                            "{\"text\":\"one two three four five six seven eight nine ten eleven twelve thirteen fourteen\"}");
  ASSERT_EQ(prompts.size(), 10u);
  EXPECT_FALSE(prompts[0].error);
  EXPECT_EQ(prompts[0].loss_mask.size(), prompts[0].input_ids.size());
  EXPECT_EQ(prompts[1].error, "p.jsonl line 3: it is not UTF-8 at byte 9");
  EXPECT_EQ(prompts[2].error, "p.jsonl line 4: it is not a JSON object");
  EXPECT_EQ(prompts[3].error, "p.jsonl line 5: it has neither a string 'text' nor 'input_ids'");
  EXPECT_EQ(prompts[4].error, "p.jsonl line 6: the text is empty: a prompt needs at least one token");
  EXPECT_EQ(prompts[5].error, "p.jsonl line 7: token 5000 is outside 0 to 2047");
  EXPECT_EQ(prompts[6].error, "p.jsonl line 8: loss_mask has 2 entries for 3 input_ids");
  EXPECT_TRUE(prompts[7].error);
  EXPECT_EQ(prompts[8].input_ids, (std::vector<std::int64_t>{1, 2, 3}));
  EXPECT_EQ(prompts[8].loss_mask, (std::vector<std::int64_t>{0, 1, 1}));
  ASSERT_TRUE(prompts[9].error);
  EXPECT_NE(prompts[9].error->find("tokens: 2 to 16 are allowed"), std::string::npos);
}

TEST_F(Prompts, ALineTooLongForAnyPromptIsItsOwnError) {
  const auto prompts = read("p.txt", std::string((1 << 20) + 1, 'x') + "\nCall me Ishmael.\n");
  ASSERT_EQ(prompts.size(), 2u);
  EXPECT_EQ(prompts[0].error, "p.txt line 1: it has 1048577 bytes: at most 1048576 are allowed");
  EXPECT_FALSE(prompts[1].error);
}

TEST_F(Prompts, PlainTextIsAPromptALine) {
  const auto prompts = read("p.txt", "Call me Ishmael.\n\nSome years ago\n");
  ASSERT_EQ(prompts.size(), 2u);
  EXPECT_EQ(prompts[1].text, "Some years ago");
  EXPECT_EQ(prompts[1].line, 3);
}

TEST_F(Prompts, AFileWithoutAPromptIsRefused) {
  for (const std::string text : {"", "\n \n"}) EXPECT_THROW(read("p.jsonl", text), InvalidArgument);
  EXPECT_THROW(read_prompts(folder_.path() / "none", tokenizer_, 16, 2048), NotFound);
}

}  // namespace
}  // namespace draftflow
