// SPDX-License-Identifier: Apache-2.0
#include "cli/fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "draftflow/base/error.h"

namespace draftflow::cli {
namespace {

std::string refusal(const Field& field, std::string_view text) {
  try {
    set_field(field, text);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Fields, SetsEveryKindOfValue) {
  TrainOptions train;
  CaptureOptions capture;
  Fields a = train_fields(train), b = capture_fields(capture);
  set_field(find_field(a, "window"), "32");
  set_field(find_field(a, "learning_rate"), "3e-4");
  set_field(find_field(a, "seed"), "18446744073709551615");
  set_field(find_field(a, "out"), "some where");
  set_field(find_field(b, "layers"), "1,3,5");
  set_field(find_field(b, "high_watermark"), "256MiB");
  set_field(find_field(b, "durable"), "true");
  EXPECT_EQ(train.window, 32);
  EXPECT_EQ(train.learning_rate, 3e-4);
  EXPECT_EQ(train.seed, UINT64_MAX);
  EXPECT_EQ(train.out, "some where");
  EXPECT_EQ(capture.layers, (std::vector<int>{1, 3, 5}));
  EXPECT_EQ(capture.high_watermark_bytes, 256ULL << 20);
  EXPECT_TRUE(capture.durable);
}

TEST(Fields, RefusalsSayWhatWasFoundAndWhatIsExpected) {
  TrainOptions train;
  CaptureOptions capture;
  Fields a = train_fields(train), b = capture_fields(capture);
  EXPECT_EQ(refusal(find_field(a, "window"), "many"), "'many' is not a whole number of 1 or more");
  EXPECT_EQ(refusal(find_field(a, "window"), "0"), "'0' is not a whole number of 1 or more");
  EXPECT_EQ(refusal(find_field(a, "window"), "3.5"), "'3.5' is not a whole number of 1 or more");
  EXPECT_EQ(refusal(find_field(a, "window"), "99999999999"), "'99999999999' is not a whole number of 1 or more");
  EXPECT_EQ(refusal(find_field(a, "learning_rate"), "nan"), "'nan' is not a number of 0 or more");
  EXPECT_EQ(refusal(find_field(b, "durable"), "yes"), "'yes' is not true or false");
  EXPECT_EQ(refusal(find_field(b, "layers"), "1,x"), "'1,x' is not a list of whole numbers such as 1,3,5");
  EXPECT_THAT(refusal(find_field(b, "high_watermark"), "12 parsecs"),
              testing::StartsWith("'12 parsecs' is not a size such as"));
  EXPECT_EQ(train.window, 16);  // a refused value changes nothing
}

TEST(Fields, ByteSizes) {
  EXPECT_EQ(parse_byte_size("4096"), 4096u);
  EXPECT_EQ(parse_byte_size("1.5GiB"), 1536ULL << 20);
  EXPECT_EQ(parse_byte_size("10 MB"), 10'000'000u);
  for (const char* bad : {"", "MiB", "-1MiB", "1e400", "nan", "99999999TiB", "1 Mib"}) {
    EXPECT_THROW(parse_byte_size(bad), InvalidArgument) << bad;
  }
  for (const std::uint64_t bytes : {0ULL, 1ULL, 1ULL << 20, 10'000'000ULL, (3ULL << 30) + 1}) {
    EXPECT_EQ(parse_byte_size(byte_size_text(bytes)), bytes);
  }
  EXPECT_EQ(byte_size_text(256 << 20), "256MiB");
}

TEST(Fields, TextOfEveryFieldIsReadBackTheSame) {
  TrainOptions options, copy;
  options.learning_rate = 0.1 + 0.2;
  const Fields from = train_fields(options);
  const Fields to = train_fields(copy);
  for (std::size_t i = 0; i < from.size(); ++i) set_field(to[i], field_text(from[i]));
  EXPECT_EQ(copy.learning_rate, options.learning_rate);
  for (std::size_t i = 0; i < from.size(); ++i) EXPECT_EQ(field_text(to[i]), field_text(from[i])) << from[i].key;
}

TEST(Fields, ArgumentsLeaveOutWhatIsEmptyOrFalse) {
  CaptureOptions options;
  options.target = "m";
  options.layers = {1, 2};
  const auto arguments = to_arguments(select_fields(capture_fields(options), {"target", "tokenizer", "layers", "durable"}));
  EXPECT_THAT(arguments, testing::ElementsAre("--target=m", "--layers=1,2"));
  TrainOptions train;
  const Fields fields = select_fields(train_fields(train), {"checkpoint_on_pressure"});
  EXPECT_THAT(to_arguments(fields), testing::ElementsAre("--checkpoint-on-pressure"));
  train.checkpoint_on_pressure = false;
  EXPECT_THAT(to_arguments(fields), testing::ElementsAre("--checkpoint-on-pressure=false")) << "it would be on otherwise";
}

TEST(Fields, KeysAreUnique) {
  TrainOptions options;
  std::set<std::string> keys;
  for (const Field& field : train_fields(options)) EXPECT_TRUE(keys.insert(field.key).second) << field.key;
}

}  // namespace
}  // namespace draftflow::cli
