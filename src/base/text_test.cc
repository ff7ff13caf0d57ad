// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/text.h"

#include <gtest/gtest.h>

namespace draftflow {
namespace {

TEST(Text, FindsTheFirstInvalidByte) {
  EXPECT_EQ(find_invalid_utf8("gr\xC3\xBC\xC3\x9F"), std::string_view::npos);
  EXPECT_EQ(find_invalid_utf8("ab\x80"), 2u);
  EXPECT_EQ(find_invalid_utf8("\xE2\x82"), 0u);
  EXPECT_EQ(find_invalid_utf8("\xF5\x80\x80\x80"), 0u);
  EXPECT_EQ(find_invalid_utf8("\xE0\x80\x80"), 0u);
}

TEST(Text, PrintableEscapesWhatATerminalWouldObey) {
  EXPECT_EQ(printable("a\x1b[2J\n\xFF"), "a\\x1b[2J\\x0a\\xff");
  EXPECT_EQ(printable("\xC2\x9B"
                      "2J"),
            "\\xc2\\x9b2J");  // U+009B is a terminal's CSI
  EXPECT_EQ(printable("a\xE2\x80\xAE"
                      "b"),
            "a\\xe2\\x80\\xaeb");  // U+202E writes the rest backwards
  EXPECT_EQ(printable("\xE2\x81\xA6\xE2\x80\xA8"), "\\xe2\\x81\\xa6\\xe2\\x80\\xa8");
  EXPECT_EQ(printable("gr\xC3\xBC\xC3\x9F \xF0\x9F\xA6\x86 \xE2\x80\x8D"), "gr\xC3\xBC\xC3\x9F \xF0\x9F\xA6\x86 \xE2\x80\x8D");
  EXPECT_EQ(printable(std::string(300, 'x'), 10), "xxxxxxxxxx...");
}

TEST(Text, NumbersForPeople) {
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1536), "1.5 KiB");
  EXPECT_EQ(human_seconds(65), "1 min 05 s");
  EXPECT_EQ(human_seconds(-1), "?");
  EXPECT_EQ(human_count(12345), "12.3 k");
}

}  // namespace
}  // namespace draftflow
