// SPDX-License-Identifier: Apache-2.0
#include "formats/plain_header.h"

#include <gtest/gtest.h>

#include <random>

#include "draftflow/base/error.h"

namespace draftflow::formats {
namespace {

constexpr std::string_view kHeader = R"({"__metadata__":{"format":"draftflow.generation.1","sample_id":"run:00000001"},)"
                                     R"("input_ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},)"
                                     R"("step":{"dtype":"F32","shape":[],"data_offsets":[16,20]},)"
                                     R"("hidden":{"dtype":"BF16","shape":[1,2,0],"data_offsets":[20,20]}}   )";

TEST(PlainHeader, SaysWhatStandsThere) {
  const auto header = scan_plain_header(kHeader);
  ASSERT_TRUE(header);
  ASSERT_EQ(header->metadata.size(), 2U);
  EXPECT_EQ(header->metadata[1], std::pair(std::string("sample_id"), std::string("run:00000001")));
  ASSERT_EQ(header->entries.size(), 3U);
  EXPECT_EQ(header->entries[0].name, "input_ids");
  EXPECT_EQ(header->entries[0].dtype, DType::kInt64);
  EXPECT_EQ(header->entries[0].end, 16U);
  EXPECT_TRUE(header->entries[1].shape.empty());
  EXPECT_EQ(header->entries[2].shape, (std::vector<std::int64_t>{1, 2, 0}));
  EXPECT_EQ(header->entries[2].begin, 20U);
}

TEST(PlainHeader, ReadsWhatIsWritten) {
  TensorMap tensors;
  for (int i = 0; i < 10; ++i)
    tensors.emplace_back("t" + std::to_string(i), Tensor::allocate(static_cast<DType>(i), {i, 1}).first);
  for (const std::vector<std::pair<std::string, std::string>>& metadata :
       {std::vector<std::pair<std::string, std::string>>{}, {{"a", ""}, {"b", "x y"}}}) {
    const std::string header = make_safetensors_header(tensors, metadata);
    const auto scanned = scan_plain_header(std::string_view(header).substr(8));
    ASSERT_TRUE(scanned);
    EXPECT_EQ(scanned->metadata, metadata);
    EXPECT_EQ(scanned->entries.size(), tensors.size());
  }
  EXPECT_TRUE(scan_plain_header(std::string_view(make_safetensors_header({}, {{"a", "b"}})).substr(8)));
}

TEST(PlainHeader, LeavesTheRestToTheParser) {
  for (const std::string_view json : {
           R"()",
           R"({})",
           R"({)",
           R"({"__metadata__":{}})",
           R"({"__metadata__":{"a":"b"})",
           R"({"__metadata__":{"a":1}})",
           R"({"__metadata__":{"a":"b","a":"c"}})",
           R"({"__metadata__":{"a":"\u0041"}})",
           R"({"__metadata__":{"a":"ü"}})",
           R"({ "a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}})",
           R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]})",
           R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}},)",
           R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}x)",
           R"({"a":{"shape":[],"dtype":"U8","data_offsets":[0,1]}})",
           R"({"a":{"dtype":"U4","shape":[],"data_offsets":[0,1]}})",
           R"({"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}})",
           R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})",
           R"({"a":{"dtype":"U8","shape":[1,],"data_offsets":[0,1]}})",
           R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})",
           R"({"a":{"dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,1]}})",
           R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1,2]}})",
           R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0]}})",
           R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"b":1}})",
           R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[],"data_offsets":[1,2]}})",
           R"({"__metadata__":{"dtype":"U8","shape":[],"data_offsets":[0,1]}})",
       }) {
    EXPECT_FALSE(scan_plain_header(json)) << json;
  }
}

// What the file's reader makes of it; a blank after the brace is for the parser.
std::optional<SafetensorsHeader> read(std::string json, bool scanned) {
  if (!scanned && !json.empty()) json.insert(1, " ");
  const std::uint64_t length = json.size();
  std::string file(reinterpret_cast<const char*>(&length), 8);
  file += json + std::string(20, '\0');
  try {
    return parse_safetensors_header(std::as_bytes(std::span(file)), file.size(), "f");
  } catch (const Error&) {
    return std::nullopt;
  }
}

// Whatever somebody does to a header, the scanner does not change what the file is taken for.
TEST(PlainHeader, SaysNothingElseThanTheParser) {
  std::mt19937 random(7);
  const auto below = [&](std::size_t most) { return std::uniform_int_distribution<std::size_t>(0, most - 1)(random); };
  constexpr std::string_view kPieces[] = {"\"",
                                          "{",
                                          "}",
                                          "[",
                                          "]",
                                          ",",
                                          ":",
                                          "0",
                                          "1",
                                          "20",
                                          " ",
                                          "-",
                                          "\\",
                                          "\x01",
                                          "\xc3\xbc",
                                          "\"a\":\"b\"",
                                          "\"__metadata__\":{",
                                          "},",
                                          "1e2",
                                          "0.5",
                                          "null",
                                          "input_ids",
                                          "\x7f"};
  int scanned = 0, sound = 0;
  for (int i = 0; i < 60'000; ++i) {
    std::string json(kHeader);
    for (std::size_t edits = below(3); edits-- > 0;) {
      const std::size_t at = below(json.size());
      if (below(2) == 0) json.erase(at, 1 + below(4));
      if (below(2) == 0) json.insert(std::min(at, json.size()), kPieces[below(std::size(kPieces))]);
      if (json.empty()) json = "{";
    }
    const auto quick = read(json, true), slow = read(json, false);
    ASSERT_EQ(quick.has_value(), slow.has_value()) << json;
    scanned += scan_plain_header(json) ? 1 : 0;
    if (!quick) continue;
    ++sound;
    EXPECT_EQ(quick->metadata, slow->metadata) << json;
    ASSERT_EQ(quick->entries.size(), slow->entries.size()) << json;
    for (std::size_t j = 0; j < quick->entries.size(); ++j) {
      const SafetensorsEntry &a = quick->entries[j], &b = slow->entries[j];
      EXPECT_TRUE(a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && a.begin == b.begin && a.end == b.end) << json;
    }
  }
  EXPECT_GT(scanned, 20'000);  // or nothing was compared
  EXPECT_GT(sound, 20'000);
}

}  // namespace
}  // namespace draftflow::formats
