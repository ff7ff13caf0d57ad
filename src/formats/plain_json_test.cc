// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/plain_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace draftflow {
namespace {

std::string written(std::string_view text) {
  std::string json;
  append_json_text(json, text);
  return json;
}

TEST(PlainJson, TextIsWrittenAsTheLibraryWritesIt) {
  for (const std::string& text :
       {std::string(), std::string("run:00000012"), std::string("a \"quote\" and a \\"), std::string("\b\f\n\r\t\x01\x1f"),
        std::string("\x7f"), std::string("größe 模型 🙂"), std::string("a\0b", 3), std::string("</script>")}) {
    EXPECT_EQ(written(text), nlohmann::json(text).dump());
    EXPECT_EQ(nlohmann::json::parse(written(text)), text);
  }
  for (int c = 0; c < 0x80; ++c) {
    const std::string text(1, static_cast<char>(c));
    EXPECT_EQ(nlohmann::json::parse(written(text)), text) << c;
  }
}

TEST(PlainJson, NumbersAreWrittenWhole) {
  std::string json;
  for (const std::uint64_t number : {std::uint64_t{0}, std::uint64_t{9007199254740991}, UINT64_MAX})
    append_json_number(json, number);
  EXPECT_EQ(json, "0900719925474099118446744073709551615");
}

TEST(PlainJson, TextEndsAtItsQuote) {
  PlainJson json("run:1\",\"b\"");
  EXPECT_EQ(json.text(), "run:1");
  EXPECT_EQ(json.rest(), ",\"b\"");
  EXPECT_EQ(PlainJson("\"").text(), "");
}

TEST(PlainJson, TextThatIsNotPlainIsLeft) {
  for (const std::string_view text : {"", "no quote", "a\\u0041\"", "\xc3\xbc\"", "\x7f\"", "\n\""}) {
    PlainJson json(text);
    EXPECT_FALSE(json.text()) << text;
    EXPECT_EQ(json.rest(), text);
  }
}

TEST(PlainJson, NumbersAreJsonsAndSmallerThan64Bits) {
  for (const auto& [text, value] : {std::pair("0]", 0ULL), {"7", 7ULL}, {"999999999999999999,", 999999999999999999ULL}}) {
    PlainJson json(text);
    std::uint64_t found = 1;
    EXPECT_TRUE(json.number(found)) << text;
    EXPECT_EQ(found, value);
  }
  for (const std::string_view text : {"", "-1", "-0", "01", "00", "x", " 1", "1000000000000000000", "99999999999999999999"}) {
    PlainJson json(text);
    std::int64_t found = 1;
    EXPECT_FALSE(json.number(found)) << text;
    EXPECT_EQ(json.rest(), text);
  }
}

}  // namespace
}  // namespace draftflow
