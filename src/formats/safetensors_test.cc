// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/safetensors.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <array>
#include <csignal>
#include <fstream>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using testing::HasSubstr;
using testing_support::TempFolder;

// A file: the length prefix, the JSON, and so many data bytes (0, 1, 2, ...).
std::string file_of(const std::string& json, std::size_t data_bytes = 0) {
  const std::uint64_t length = json.size();
  std::string file(reinterpret_cast<const char*>(&length), 8);
  file += json;
  for (std::size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors_header(std::as_bytes(std::span(file)), file.size(), "f");
}

template <class E>
std::string error_of(const std::string& file) {
  try {
    parse(file);
  } catch (const E& error) {
    return error.what();
  } catch (const Error& error) {
    return std::string("another kind: ") + error_kind_name(error.kind()) + ": " + error.what();
  }
  return "no error";
}

TensorMap sample_tensors() {
  const std::array<float, 3> weights{1.5f, -2.0f, 0.25f};
  const std::array<std::uint8_t, 5> bytes{1, 2, 3, 4, 5};
  const std::array<std::int64_t, 1> step{42};
  return {{"bytes", Tensor::copy_of(DType::kUInt8, {5}, std::as_bytes(std::span(bytes)))},
          {"weights", Tensor::copy_of(DType::kFloat32, {3, 1}, std::as_bytes(std::span(weights)))},
          {"step", Tensor::copy_of(DType::kInt64, {}, std::as_bytes(std::span(step)))},
          {"none", Tensor::allocate(DType::kBFloat16, {0, 4}).first}};
}

void expect_equal(const TensorMap& a, const TensorMap& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].first, b[i].first);
    EXPECT_EQ(a[i].second.dtype, b[i].second.dtype);
    EXPECT_EQ(a[i].second.shape, b[i].second.shape);
    EXPECT_TRUE(std::ranges::equal(a[i].second.bytes, b[i].second.bytes)) << a[i].first;
  }
}

TEST(Safetensors, ReadsAFileWrittenByHand) {
  const auto header = parse(file_of(R"({"__metadata__":{"format":"pt"},"b":{"dtype":"I16","shape":[2],"data_offsets":[4,8]},)"
                                    R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   )",
                                    8));
  ASSERT_EQ(header.entries.size(), 2u);
  EXPECT_EQ(header.entries[0].name, "a");  // in the order of their bytes
  EXPECT_EQ(header.find("b")->dtype, DType::kInt16);
  EXPECT_EQ(header.find("b")->begin, 4u);
  EXPECT_EQ(header.find("c"), nullptr);
  EXPECT_EQ(*header.find_metadata("format"), "pt");
  EXPECT_EQ(header.find_metadata("x"), nullptr);
}

TEST(Safetensors, ReadsEveryDtype) {
  const std::pair<const char*, DType> codes[] = {{"BOOL", DType::kBool},   {"U8", DType::kUInt8},      {"I8", DType::kInt8},
                                                 {"I16", DType::kInt16},   {"I32", DType::kInt32},     {"I64", DType::kInt64},
                                                 {"F16", DType::kFloat16}, {"BF16", DType::kBFloat16}, {"F32", DType::kFloat32},
                                                 {"F64", DType::kFloat64}};
  for (const auto& [code, dtype] : codes) {
    const std::size_t bytes = dtype_bytes(dtype);
    const auto header = parse(file_of(
        std::string(R"({"a":{"dtype":")") + code + R"(","shape":[1],"data_offsets":[0,)" + std::to_string(bytes) + "]}}",
        bytes));
    EXPECT_EQ(header.entries[0].dtype, dtype);
  }
}

TEST(Safetensors, EmptyFilesOfTensorsAreFine) {
  EXPECT_TRUE(parse(file_of("{}")).entries.empty());
  EXPECT_TRUE(parse(file_of(R"({"__metadata__":{}})")).entries.empty());
}

TEST(Safetensors, RefusesAShortFile) {
  EXPECT_EQ(error_of<Corrupt>(""), "f: 0 bytes are too few for a safetensors file");
  EXPECT_EQ(error_of<Corrupt>(std::string(7, '\0')), "f: 7 bytes are too few for a safetensors file");
}

TEST(Safetensors, RefusesAHeaderThatIsNotThere) {
  EXPECT_EQ(error_of<Corrupt>(file_of("{}").substr(0, 9)),
            "f: the header claims 2 bytes, but the file has 9 in all: it is truncated or no safetensors file");
}

TEST(Safetensors, RefusesAHeaderOverTheLimit) {
  const std::string head("\x01\xe1\xf5\x05\0\0\0\0{", 9);  // 100,000,001
  EXPECT_THROW(parse_safetensors_header(std::as_bytes(std::span(head)), 1ULL << 40, "f"), Corrupt);
  EXPECT_THAT(error_of<Corrupt>(std::string(8, '\xff') + "{}"),
              HasSubstr("claims 18446744073709551615 bytes: at most 100000000"));
}

TEST(Safetensors, RefusesWhatIsNotJson) {
  EXPECT_EQ(error_of<Corrupt>(file_of("")), "f: the header does not begin with '{'");
  EXPECT_EQ(error_of<Corrupt>(file_of(" {}")), "f: the header does not begin with '{'");
  EXPECT_EQ(error_of<Corrupt>(file_of("[]")), "f: the header does not begin with '{'");
  EXPECT_THAT(error_of<Corrupt>(file_of("{")), HasSubstr("not valid JSON at byte"));
  EXPECT_THAT(error_of<Corrupt>(file_of("{} x")), HasSubstr("not valid JSON at byte"));
  EXPECT_THAT(error_of<Corrupt>(file_of("{\"\xff\":{}}")), HasSubstr("not valid JSON at byte"));
}

TEST(Safetensors, RefusesDuplicateKeys) {
  const std::string entry = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_EQ(error_of<Corrupt>(file_of("{\"a\":" + entry + ",\"a\":" + entry + "}")),
            "f: the name 'a' appears twice in the header");
  EXPECT_EQ(error_of<Corrupt>(file_of("{\"a\":" + entry + ",\"\\u0061\":" + entry + "}")),
            "f: the name 'a' appears twice in the header");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})")),
            "f: tensor 'a' has the field 'dtype' twice");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"__metadata__":{"k":"1","k":"2"}})")),
            "f: the entry '__metadata__' has the field 'k' twice");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"__metadata__":{},"__metadata__":{}})")),
            "f: the name '__metadata__' appears twice in the header");
}

TEST(Safetensors, RefusesMisshapenEntries) {
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"shape":[0],"data_offsets":[0,0]}})")), "f: tensor 'a' has no 'dtype'");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"dtype":"U8","data_offsets":[0,0]}})")), "f: tensor 'a' has no 'shape'");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"dtype":"U8","shape":[0]}})")), "f: tensor 'a' has no 'data_offsets'");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"x":1}})")),
            "f: tensor 'a' has a field 'x': only dtype, shape and data_offsets may be there");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":7})")), "f: tensor 'a' is the number 7 in the header, not an object");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"dtype":3}})")), "f: tensor 'a' has the number 3 where its dtype should be");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"shape":[-1]}})")), "f: tensor 'a' has the number -1 where its shape should be");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"shape":[1.5]}})")),
            "f: tensor 'a' has the number 1.5 where its shape should be");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"shape":[18446744073709551615]}})")),
            "f: tensor 'a' has an extent of 18446744073709551615");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"data_offsets":[0]}})")), "f: tensor 'a' has 1 data_offsets: two are needed");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"data_offsets":[0,0,0]}})")),
            "f: tensor 'a' has the number 0 where its data_offsets should be");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"__metadata__":{"k":1}})")),
            "f: the entry '__metadata__' has the number 1 at 'k': only strings may be there");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"__metadata__":null})")),
            "f: the entry '__metadata__' is null in the header, not an object");
}

TEST(Safetensors, RefusesAnUnknownDtypeByName) {
  EXPECT_THAT(error_of<InvalidArgument>(file_of(R"({"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}})", 1)),
              HasSubstr("f: tensor 'a' has dtype 'F8_E4M3', which draftflow does not read (it reads BOOL, U8, "));
}

TEST(Safetensors, RefusesDeepNestingCheaply) {
  const std::string deep(1'000'000, '[');
  EXPECT_THAT(error_of<Corrupt>(file_of("{\"a\":" + deep)), HasSubstr("tensor 'a' is a list"));
  EXPECT_THAT(error_of<Corrupt>(file_of("{\"a\":{\"shape\":" + deep)), HasSubstr("tensor 'a' has a list where its shape"));
  EXPECT_THAT(error_of<Corrupt>(file_of("{\"a\":{\"dtype\":{\"x\":")), HasSubstr("tensor 'a' has an object where its dtype"));
}

TEST(Safetensors, RefusesBytesThatAreNotThere) {
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 3)),
            "f: tensor 'a' claims data bytes 0 to 4, but the file has 3 of them: it is truncated or damaged");
  EXPECT_THAT(error_of<Corrupt>(file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", 4)),
              HasSubstr("claims data bytes 4 to 0"));
}

TEST(Safetensors, RefusesHolesOverlapsAndTrailingBytes) {
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2)),
            "f: tensor 'a' leaves a hole: data bytes 0 to 1 belong to nobody");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                      R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                                      3)),
            "f: tensor 'b' overlaps another: it starts at data byte 1, before 2");
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 3)),
            "f: 2 bytes after the last tensor belong to nobody");
}

TEST(Safetensors, RefusesAShapeThatDoesNotFillItsSpan) {
  EXPECT_EQ(error_of<Corrupt>(file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4)),
            "f: tensor 'a' of dtype F32 and shape [2] needs 8 bytes, but its data_offsets span 4");
  EXPECT_THAT(error_of<Corrupt>(file_of(R"({"a":{"dtype":"I64","shape":[2305843009213693952],"data_offsets":[0,0]}})")),
              HasSubstr("tensor 'a' is impossible"));  // 2^61 * 8 wraps to 0
}

TEST(Safetensors, RoundTripsWithAlignedData) {
  const TempFolder folder;
  const TensorMap tensors = sample_tensors();
  write_safetensors(folder.path() / "a.safetensors", tensors, {{"format", "pt"}, {"quote\"", "\xF0\x9F\x98\x80\n"}});
  EXPECT_EQ(folder.list(), std::vector<std::string>{"a.safetensors"});
  expect_equal(read_safetensors(folder.path() / "a.safetensors"), tensors);
  const UniqueFd fd = open_file(folder.path() / "a.safetensors", O_RDONLY);
  const auto header = read_safetensors_header(fd.get(), "a.safetensors");
  EXPECT_EQ(header.data_offset % 64, 0u);
  EXPECT_EQ(*header.find_metadata("quote\""), "\xF0\x9F\x98\x80\n");
}

TEST(Safetensors, WritesTheseBytes) {  // a golden file: the format outlives the process
  const std::array<std::uint8_t, 2> values{7, 8};
  const TempFolder folder;
  write_safetensors(folder.path() / "a", {{"x", Tensor::copy_of(DType::kUInt8, {2}, std::as_bytes(std::span(values)))}});
  const std::string json = R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
  EXPECT_EQ(read_text_file(folder.path() / "a"),
            std::string("\x38\0\0\0\0\0\0\0", 8) + json + std::string(0x38 - json.size(), ' ') + "\x07\x08");
}

TEST(Safetensors, ReadsOnlyTheNamedInTheOrderAsked) {
  const TempFolder folder;
  write_safetensors(folder.path() / "a", sample_tensors());
  const TensorMap some = read_safetensors(folder.path() / "a", std::vector<std::string>{"step", "bytes"});
  ASSERT_EQ(some.size(), 2u);
  EXPECT_EQ(some[0].first, "step");
  EXPECT_EQ(some[0].second.as<std::int64_t>()[0], 42);
  EXPECT_THROW(read_safetensors(folder.path() / "a", std::vector<std::string>{"step", "step"}), InvalidArgument);
  try {
    read_safetensors(folder.path() / "a", std::vector<std::string>{"x"});
    FAIL();
  } catch (const NotFound& error) {
    EXPECT_THAT(error.what(), HasSubstr("has no tensor 'x': it has bytes, weights, step, none"));
  }
}

TEST(Safetensors, RefusesToWriteWhatCouldNotBeRead) {
  const Tensor one = Tensor::allocate(DType::kInt8, {1}).first;
  Tensor wrong = one;
  wrong.shape = {2};
  EXPECT_THROW(make_safetensors_header({{"a", one}, {"a", one}}, {}), InvalidArgument);
  EXPECT_THROW(make_safetensors_header({{"__metadata__", one}}, {}), InvalidArgument);
  EXPECT_THROW(make_safetensors_header({{"\xff", one}}, {}), InvalidArgument);
  EXPECT_THROW(make_safetensors_header({{"a", wrong}}, {}), InvalidArgument);
  EXPECT_THROW(make_safetensors_header({}, {{"k", "1"}, {"k", "2"}}), InvalidArgument);
}

TEST(Safetensors, AWriteThatFailsLeavesNothing) {
  const TempFolder folder;
  std::filesystem::create_directory(folder.path() / "taken");  // rename cannot replace a folder by a file
  EXPECT_THROW(write_safetensors(folder.path() / "taken", sample_tensors()), Error);
  EXPECT_EQ(folder.list(), std::vector<std::string>{"taken"});
}

TEST(Safetensors, AWriteCutShortAtAnySizeKeepsTheOldFile) {
  const TempFolder folder;
  write_safetensors(folder.path() / "a", {});
  const std::string before = read_text_file(folder.path() / "a");
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t limit : {0, 8, 100, 280}) {  // the file would have more
    const rlimit small{limit, old.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    std::string kind = "none";
    try {
      write_safetensors(folder.path() / "a", sample_tensors());
    } catch (const Error& error) {
      kind = error_kind_name(error.kind());
    }
    setrlimit(RLIMIT_FSIZE, &old);
    EXPECT_NE(kind, "none") << limit;
    EXPECT_EQ(folder.list(), std::vector<std::string>{"a"});
    EXPECT_EQ(read_text_file(folder.path() / "a"), before);
  }
  std::signal(SIGXFSZ, old_handler);
}

TEST(Safetensors, EveryTruncationIsCorrupt) {
  const TempFolder folder;
  write_safetensors(folder.path() / "a", sample_tensors(), {{"k", "v"}});
  const std::string whole = read_text_file(folder.path() / "a");
  for (std::size_t length = 0; length < whole.size(); ++length) {
    std::ofstream(folder.path() / "b", std::ios::trunc).write(whole.data(), static_cast<std::streamsize>(length));
    EXPECT_THROW(read_safetensors(folder.path() / "b"), Corrupt) << length;
  }
}

TEST(Safetensors, EveryBitFlipIsAnErrorOrAFileOfTheSameSize) {
  const TempFolder folder;
  write_safetensors(folder.path() / "a", sample_tensors(), {{"k", "v"}});
  const std::string whole = read_text_file(folder.path() / "a");
  const std::size_t data_offset = parse(whole).data_offset;
  int refused = 0;
  for (std::size_t i = 0; i < data_offset * 8; ++i) {
    std::string flipped = whole;
    flipped[i / 8] = static_cast<char>(flipped[i / 8] ^ (1 << (i % 8)));
    try {
      const auto header = parse(flipped);
      EXPECT_EQ(header.data_offset, data_offset);
      EXPECT_EQ(header.entries.back().end, whole.size() - data_offset);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
}

TEST(Safetensors, ReadsRealFiles) {
  DRAFTFLOW_REQUIRE_REAL_DATA(model, "stories260k-hf/model.safetensors");
  const TensorMap tensors = read_safetensors(model);
  std::uint64_t parameters = 0;
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(tensor.dtype, DType::kFloat32) << name;
    parameters += tensor.as<float>().size();
  }
  EXPECT_GE(parameters, 260'032u);
  for (const char* name : {"L3_reference.safetensors", "L3_tokens.safetensors", "draft0/model.safetensors"}) {
    DRAFTFLOW_REQUIRE_REAL_DATA(path, std::string("eagle3-golden/") + name);
    EXPECT_FALSE(read_safetensors(path).empty()) << name;
  }
}

TEST(Safetensors, RoundTripsARealFile) {
  DRAFTFLOW_REQUIRE_REAL_DATA(path, "eagle3-golden/draft0/model.safetensors");
  const TempFolder folder;
  const TensorMap tensors = read_safetensors(path);
  write_safetensors(folder.path() / "again", tensors, {{"format", "pt"}});
  expect_equal(read_safetensors(folder.path() / "again"), tensors);
}

}  // namespace
}  // namespace draftflow
