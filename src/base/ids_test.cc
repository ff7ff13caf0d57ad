// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/ids.h"

#include <gtest/gtest.h>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

TEST(Ids, TakesAnyUtf8Up1024Bytes) {
  for (const std::string text : {"a", "../../x", "a/b:c d\n", "\xF0\x9F\x98\x80"}) EXPECT_EQ(SampleId(text).str(), text);
  EXPECT_NO_THROW(SampleId(std::string(1024, 'x')));
}

TEST(Ids, RefusesEmptyLongNulAndInvalidUtf8) {
  EXPECT_THROW(SampleId(""), InvalidArgument);
  EXPECT_THROW(SampleId(std::string(1025, 'x')), InvalidArgument);
  EXPECT_THROW(SampleId(std::string("a\0b", 3)), InvalidArgument);
  EXPECT_THROW(SampleId("\xC0\x80"), InvalidArgument);
  EXPECT_THROW(SampleId("\xED\xA0\x80"), InvalidArgument);
}

TEST(Ids, MessageNamesTheKindAndThePlace) {
  try {
    RunId("ok\xFF");
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "run id 'ok\\xff' is not UTF-8 at byte 2");
  }
}

}  // namespace
}  // namespace draftflow
