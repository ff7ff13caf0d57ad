// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/torch_zip.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdlib>
#include <numeric>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/formats/feature_file.h"
#include "formats/zip_builder.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using testing::HasSubstr;
using testing_support::TempFolder;
using testing_support::ZipBuilder;
using namespace std::string_literals;

// Pickle text. Numbers are LONG1 of 8 bytes, so that any value can be said.
std::string number(std::int64_t value) {
  return "\x8a\x08"s + ZipBuilder::u64(static_cast<std::uint64_t>(value));
}
std::string text(const std::string& value) {
  return "X" + ZipBuilder::u32(value.size()) + value;
}

std::string tuple(const std::vector<std::int64_t>& values) {
  std::string items = "(";
  for (const std::int64_t value : values) items += number(value);
  return items + "t";
}

struct View {
  std::string type = "LongStorage", key = "0";
  std::int64_t elements = 6, offset = 0;
  std::vector<std::int64_t> shape{2, 3}, strides{3, 1};

  std::string pickle() const {
    return "ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + "ctorch\n" + type + "\n" + text(key) + text("cpu") +
           number(elements) + "tQ" + number(offset) + tuple(shape) + tuple(strides) + "\x89" +
           "ccollections\nOrderedDict\n)RtR";
  }
};

std::string dict_of(const std::string& items) {
  return "\x80\x02}("s + items + "u.";
}

// A file whose pickle is the given one, over the storage 0, 1, 2, 3, 4, 5 (int64).
ZipBuilder builder_of(const std::string& pickle) {
  std::string storage;
  for (int i = 0; i < 6; ++i) storage += ZipBuilder::u64(static_cast<std::uint64_t>(i));
  return ZipBuilder().add("a/data.pkl", pickle).add("a/data/0", storage).add("a/version", "3\n");
}

std::string file_of(const View& view) {
  return builder_of(dict_of(text("x") + view.pickle())).finish();
}

TorchFile parse(const std::string& file) {
  // Aligned, as every real reader of a file would have it.
  const Tensor bytes = Tensor::copy_of(DType::kUInt8, {static_cast<std::int64_t>(file.size())}, std::as_bytes(std::span(file)));
  return parse_torch_zip(bytes.bytes, bytes.owner, "f");
}

std::vector<std::int64_t> longs(const View& view) {
  const TorchFile file = parse(file_of(view));
  const auto values = file.tensors.at(0).second.as<std::int64_t>();
  return {values.begin(), values.end()};
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

template <class E>
std::string error_of(const View& view) {
  return error_of<E>(file_of(view));
}

void expect_equal(const TensorMap& a, const TensorMap& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].first, b[i].first);
    ASSERT_EQ(a[i].second.dtype, b[i].second.dtype);
    ASSERT_EQ(a[i].second.shape, b[i].second.shape);
    ASSERT_TRUE(std::ranges::equal(a[i].second.bytes, b[i].second.bytes)) << a[i].first;
  }
}

TEST(TorchZip, ReadsATensorWithoutCopyingIt) {
  const std::string file = file_of({});
  const Tensor bytes = Tensor::copy_of(DType::kUInt8, {static_cast<std::int64_t>(file.size())}, std::as_bytes(std::span(file)));
  const TorchFile torch = parse_torch_zip(bytes.bytes, bytes.owner, "f");
  ASSERT_EQ(torch.tensors.size(), 1u);
  const auto& [name, tensor] = torch.tensors[0];
  EXPECT_EQ(name, "x");
  EXPECT_EQ(tensor.dtype, DType::kInt64);
  EXPECT_EQ(tensor.shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(tensor.as<std::int64_t>()[5], 5);
  EXPECT_GE(tensor.bytes.data(), bytes.bytes.data());
  EXPECT_LE(tensor.bytes.data() + tensor.bytes.size(), bytes.bytes.data() + bytes.bytes.size());
}

TEST(TorchZip, KeepsTheInputAlive) {
  TensorMap tensors = parse(file_of({})).tensors;
  EXPECT_EQ(tensors[0].second.as<std::int64_t>()[3], 3);  // under ASan this would be a use after free
}

TEST(TorchZip, ReadsViews) {
  using Longs = std::vector<std::int64_t>;
  EXPECT_EQ(longs({.offset = 2, .shape = {2}, .strides = {1}}), (Longs{2, 3}));
  EXPECT_EQ(longs({.shape = {3, 2}, .strides = {1, 3}}), (Longs{0, 3, 1, 4, 2, 5}));
  EXPECT_EQ(longs({.offset = 1, .shape = {3}, .strides = {2}}), (Longs{1, 3, 5}));
  EXPECT_EQ(longs({.offset = 5, .shape = {2, 2}, .strides = {0, 0}}), (Longs{5, 5, 5, 5}));
  EXPECT_EQ(longs({.offset = 5, .shape = {}, .strides = {}}), (Longs{5}));
  EXPECT_EQ(longs({.shape = {1, 2, 1}, .strides = {99, 1, 77}}), (Longs{0, 1}));
  EXPECT_EQ(longs({.shape = {1, 2, 1, 2}, .strides = {99, 3, 77, 2}}), (Longs{0, 2, 3, 5}));
  EXPECT_EQ(longs({.offset = 100, .shape = {0, 4}, .strides = {4, 1}}), (Longs{}));
}

TEST(TorchZip, ReadsUnalignedDataByCopying) {
  ZipBuilder builder;
  builder.add("a/data.pkl", dict_of(text("x") + View{.elements = 1, .shape = {1}, .strides = {1}}.pickle()));
  for (std::size_t padding = 4; padding < 12; ++padding) {
    ZipBuilder shifted = builder;
    shifted.add(ZipBuilder::Entry{.name = "a/data/0",
                                  .data = ZipBuilder::u64(42),
                                  .local_extra = "FB" + ZipBuilder::u16(padding - 4) + std::string(padding - 4, 'Z')});
    const TorchFile torch = parse(shifted.finish());
    EXPECT_EQ(torch.tensors[0].second.as<std::int64_t>()[0], 42);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(torch.tensors[0].second.bytes.data()) % 8, 0u);
  }
}

TEST(TorchZip, ReportsPlainValues) {
  const TorchFile torch =
      parse(builder_of(dict_of(text("s") + text("v") + text("n") + "N" + text("x") + View{}.pickle())).finish());
  EXPECT_EQ(torch.tensors.size(), 1u);
  EXPECT_EQ(torch.values, (std::vector<std::pair<std::string, std::string>>{{"s", "str"}, {"n", "NoneType"}}));
}

TEST(TorchZip, RefusesOtherFiles) {
  EXPECT_THAT(error_of<Corrupt>(""s), HasSubstr("f: this is no file of torch.save: it has 0 bytes"));
  EXPECT_THAT(error_of<Corrupt>("hello"s), HasSubstr("does not begin as a zip"));
  EXPECT_THAT(error_of<InvalidArgument>("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."s),
              HasSubstr("before version 1.6"));
}

TEST(TorchZip, RefusesAZipOfOtherThings) {
  EXPECT_THAT(error_of<Corrupt>(ZipBuilder().add("a/version", "3").finish()), HasSubstr("the zip has no entry 'a/data.pkl'"));
  EXPECT_THAT(error_of<Corrupt>(ZipBuilder().add("data.pkl", "\x80\x02}."s).finish()),
              HasSubstr("'data.pkl' is not in the one top folder"));
  EXPECT_THAT(error_of<Corrupt>(ZipBuilder().add("a/data.pkl", "\x80\x02}."s).add("b/data/0", "").finish()),
              HasSubstr("'b/data/0' is not in the one top folder"));
}

TEST(TorchZip, ChecksTheByteOrder) {
  const auto with = [](const char* order) { return builder_of(dict_of("")).add("a/byteorder", order).finish(); };
  EXPECT_TRUE(parse(with("little")).tensors.empty());
  EXPECT_THAT(error_of<InvalidArgument>(with("big")), HasSubstr("f: the tensors are in 'big' byte order: only little is read"));
}

TEST(TorchZip, RefusesATopLevelThatIsNoDictOfNames) {
  EXPECT_THAT(error_of<InvalidArgument>(builder_of("\x80\x02]."s).finish()), HasSubstr("f: the file holds a list: a dict"));
  EXPECT_THAT(error_of<InvalidArgument>(builder_of(dict_of("K\1N"s)).finish()), HasSubstr("a key of type int"));
  EXPECT_THAT(error_of<Corrupt>(builder_of(dict_of(text("x") + "N" + text("x") + "N")).finish()),
              HasSubstr("'x' is in the dict twice"));
}

TEST(TorchZip, RefusesATensorThatLeavesItsStorage) {
  EXPECT_EQ(error_of<Corrupt>(View{.offset = 1}),
            "f: 'x' of shape [2, 3], strides [3, 1] and offset 1 leaves its storage of 6 elements");
  EXPECT_THAT(error_of<Corrupt>(View{.shape = {7}, .strides = {1}}), HasSubstr("leaves its storage"));
  EXPECT_THAT(error_of<Corrupt>(View{.strides = {4, 1}}), HasSubstr("leaves its storage"));
  EXPECT_THAT(error_of<Corrupt>(View{.strides = {INT64_MAX, 1}}), HasSubstr("leaves its storage"));
  EXPECT_THAT(error_of<Corrupt>(View{.offset = INT64_MAX}), HasSubstr("leaves its storage"));
  EXPECT_THAT(error_of<Corrupt>(View{.shape = {3, 3}, .strides = {INT64_MAX / 2 + 1, 1}}), HasSubstr("leaves its storage"));
}

TEST(TorchZip, RefusesImpossibleSizes) {
  EXPECT_EQ(error_of<Corrupt>(View{.offset = -1}), "f: 'x' has as its offset something that is no size");
  EXPECT_EQ(error_of<Corrupt>(View{.shape = {-2, 3}}), "f: 'x' has as its shape something that is no size");
  EXPECT_EQ(error_of<Corrupt>(View{.strides = {-3, 1}}), "f: 'x' has as its stride something that is no size");
  EXPECT_EQ(error_of<Corrupt>(View{.strides = {1}}), "f: 'x' has 2 extents but 1 strides");
  EXPECT_THAT(error_of<Corrupt>(View{.shape = {INT64_MAX, INT64_MAX}, .strides = {0, 0}}), HasSubstr("'x' is impossible"));
  const std::vector<std::int64_t> ones(65, 1);
  EXPECT_THAT(error_of<Corrupt>(View{.shape = ones, .strides = ones}), HasSubstr("'x' has 65 dimensions: at most 64"));
}

TEST(TorchZip, RefusesAStorageThatIsNotThereOrOfAnotherSize) {
  EXPECT_EQ(error_of<Corrupt>(View{.key = "7"}), "f: the zip has no entry 'a/data/7'");
  EXPECT_EQ(error_of<Corrupt>(View{.key = "../data.pkl"}), "f: the zip has no entry 'a/data/../data.pkl'");
  EXPECT_EQ(error_of<Corrupt>(View{.elements = 5}), "f: 'x' has a storage of 5 int64 elements, but data/0 has 48 bytes");
  EXPECT_THAT(error_of<Corrupt>(View{.elements = std::int64_t{1} << 61}), HasSubstr("'x' is impossible"));
  EXPECT_THAT(error_of<InvalidArgument>(View{.type = "UntypedStorage", .elements = 48}), HasSubstr("untyped storage"));
}

TEST(TorchZip, AStrideOfZeroCannotFillMemory) {
  const std::string huge = error_of<InvalidArgument>(View{.shape = {1 << 20, 1 << 10}, .strides = {0, 0}});
  EXPECT_THAT(huge, HasSubstr("f: 'x' is a strided view that would unpack to 8.0 GiB, too much for a file of"));
  std::string many;  // each is within the budget, together they are not
  for (char name = 'a'; name <= 'c'; ++name) {
    many += text(std::string(1, name)) + View{.shape = {1 << 20}, .strides = {0}}.pickle();
  }
  EXPECT_THAT(error_of<InvalidArgument>(builder_of(dict_of(many)).finish()), HasSubstr("'c' is a strided view"));
}

TEST(TorchZip, EveryTruncationIsCorrupt) {
  const std::string file = file_of({});
  for (std::size_t length = 0; length < file.size(); ++length) {
    EXPECT_THROW(parse(file.substr(0, length)), Corrupt) << length;
  }
}

TEST(TorchZip, NoBitFlipChangesATensor) {
  const std::string file =
      builder_of(dict_of(text("x") + View{}.pickle() + text("t") + View{.shape = {3, 2}, .strides = {1, 3}}.pickle())).finish();
  const TensorMap expected = parse(file).tensors;
  int refused = 0;
  for (std::size_t i = 0; i < file.size() * 8; ++i) {
    std::string flipped = file;
    flipped[i / 8] = static_cast<char>(flipped[i / 8] ^ (1 << (i % 8)));
    try {
      expect_equal(parse(flipped).tensors, expected);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 3000);
}

TEST(TorchZip, NoDamageToThePickleCrashes) {  // with sound CRCs, as an attacker would write them
  const std::string pickle =
      dict_of(text("x") + View{}.pickle() + text("t") + View{.shape = {3, 2}, .strides = {1, 3}}.pickle());
  int refused = 0;
  for (std::size_t i = 0; i < pickle.size(); ++i) {
    for (const int value :
         {0, 1, 127, 255, static_cast<int>('('), static_cast<int>('t'), static_cast<int>('R'), static_cast<int>('.')}) {
      std::string changed = pickle;
      changed[i] = static_cast<char>(value);
      try {
        parse(builder_of(changed).finish());
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(TorchZip, ReadsRealFeatures) {
  DRAFTFLOW_REQUIRE_REAL_DATA(folder, "features-torch");
  const auto files = list_feature_files(folder);
  EXPECT_EQ(files.size(), 64u);
  for (const auto& file : files) {
    const TensorMap tensors = load_feature_file(file);
    ASSERT_EQ(tensors.size(), 4u) << file;
    const std::int64_t tokens = find_tensor(tensors, "input_ids")->shape.at(0);
    EXPECT_EQ(find_tensor(tensors, "hidden_state")->dtype, DType::kBFloat16);
    EXPECT_EQ(find_tensor(tensors, "hidden_state")->shape, (std::vector<std::int64_t>{1, tokens, 64}));
    EXPECT_EQ(find_tensor(tensors, "aux_hidden_state")->shape, (std::vector<std::int64_t>{1, tokens, 192}));
    const auto mask = find_tensor(tensors, "loss_mask")->as<std::int64_t>();
    EXPECT_EQ(std::accumulate(mask.begin(), mask.end(), std::int64_t{0}), tokens - 8);
    for (const std::int64_t id : find_tensor(tensors, "input_ids")->as<std::int64_t>()) EXPECT_TRUE(id >= 0 && id < 512);
  }
}

TEST(TorchZip, ReadsTheReferencesStore) {
  DRAFTFLOW_REQUIRE_REAL_DATA(store, "reference-store/st");
  DRAFTFLOW_REQUIRE_REAL_DATA(features, "features-torch");
  const auto files = list_feature_files(store), originals = list_feature_files(features);
  ASSERT_EQ(files.size(), 8u);
  for (std::size_t i = 0; i < files.size(); ++i) {
    const TensorMap stored = load_feature_file(files[i]);
    for (const auto& [name, tensor] : load_feature_file(originals[i])) {
      const auto at = std::find_if(stored.begin(), stored.end(), [&](const auto& item) { return item.first.ends_with(name); });
      ASSERT_NE(at, stored.end()) << name;
      EXPECT_TRUE(std::ranges::equal(at->second.bytes, tensor.bytes)) << files[i] << name;
    }
  }
}

TEST(TorchZip, EveryTruncationOfARealFileIsCorrupt) {
  DRAFTFLOW_REQUIRE_REAL_DATA(path, "features-torch/0000.ckpt");
  const std::string file = read_text_file(path);
  const auto bytes = std::as_bytes(std::span(file));
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    ASSERT_THROW(parse_torch_zip(bytes.first(length), nullptr, "f"), Corrupt) << length;
  }
}

// Files written by the PyTorch of this machine, made once.
class TorchMade : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TempFolder>();
    const std::string script = DRAFTFLOW_SOURCE_DIR "/src/formats/testdata/make_torch_files.py";
    const int status = std::system(("/usr/bin/python3 '" + script + "' '" + folder_->path().string() + "'").c_str());
    made_ = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  static void TearDownTestSuite() { folder_.reset(); }

  void SetUp() override {
    if (made_ == 77 || made_ == 127) GTEST_SKIP() << "PyTorch is absent for /usr/bin/python3 (Debian: python3-torch)";
    ASSERT_EQ(made_, 0) << "make_torch_files.py failed";
  }

  static std::filesystem::path path(const char* name) { return folder_->path() / name; }

  static void expect_as_torch(const TensorMap& tensors, std::size_t pairs) {
    std::size_t checked = 0;
    for (const auto& [name, tensor] : tensors) {
      const Tensor* expected = find_tensor(tensors, "expected." + name);
      if (expected == nullptr) continue;
      EXPECT_TRUE(std::ranges::equal(tensor.bytes, expected->bytes)) << name;
      ++checked;
    }
    EXPECT_EQ(checked, pairs);
  }

  template <class E>
  static std::string load_error(const char* name) {
    try {
      load_feature_file(path(name));
    } catch (const E& error) {
      return error.what();
    } catch (const Error& error) {
      return std::string("another kind: ") + error_kind_name(error.kind()) + ": " + error.what();
    }
    return "no error";
  }

 private:
  static inline std::unique_ptr<TempFolder> folder_;
  static inline int made_ = -1;
};

TEST_F(TorchMade, EveryDtype) {
  const TensorMap tensors = load_feature_file(path("dtypes.ckpt"));
  expect_as_torch(tensors, 10);
  for (const auto& [name, tensor] : tensors) {
    if (name.starts_with("expected.")) continue;
    EXPECT_EQ(dtype_name(tensor.dtype), name);
    EXPECT_EQ(tensor.shape, (std::vector<std::int64_t>{5, 3}));
  }
}

TEST_F(TorchMade, ViewsSharedStoragesAndScalars) {
  const TensorMap tensors = load_feature_file(path("views.ckpt"));
  expect_as_torch(tensors, 13);
  EXPECT_EQ(find_tensor(tensors, "stepped")->shape, (std::vector<std::int64_t>{2, 2, 2, 2}));
  EXPECT_TRUE(find_tensor(tensors, "scalar")->shape.empty());
  const std::span<const std::byte> base = find_tensor(tensors, "base")->bytes;
  EXPECT_EQ(find_tensor(tensors, "row")->bytes.data(), base.data() + base.size() / 2);  // the shared bytes, not a copy
}

TEST_F(TorchMade, GzipAndUnalignedCopiesReadTheSame) {
  const TensorMap plain = load_feature_file(path("views.ckpt"));
  expect_equal(load_feature_file(path("views.ckpt.gz")), plain);
  expect_equal(load_feature_file(path("unaligned.ckpt")), plain);
}

TEST_F(TorchMade, EmptyTensors) {
  const TensorMap tensors = load_feature_file(path("empty.ckpt"));
  EXPECT_EQ(find_tensor(tensors, "none")->shape, (std::vector<std::int64_t>{0, 3}));
  EXPECT_EQ(find_tensor(tensors, "none_view")->shape, (std::vector<std::int64_t>{2, 0, 4, 5}));
  EXPECT_EQ(find_tensor(tensors, "none_offset")->shape, (std::vector<std::int64_t>{0, 1}));
  for (const auto& [name, tensor] : tensors) EXPECT_TRUE(tensor.bytes.empty()) << name;
}

TEST_F(TorchMade, ManyTensorsInOneFile) {
  const TensorMap tensors = load_feature_file(path("many.ckpt"));
  ASSERT_EQ(tensors.size(), 100u);
  for (std::int64_t i = 0; i < 100; ++i) EXPECT_EQ(tensors[static_cast<std::size_t>(i)].second.as<std::int64_t>()[1], i);
}

TEST_F(TorchMade, StateDict) {
  const TensorMap tensors = load_feature_file(path("state_dict.ckpt"));
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].first, "0.weight");
  EXPECT_EQ(tensors[0].second.shape, (std::vector<std::int64_t>{3, 2}));
}

TEST_F(TorchMade, PlainValuesAreReportedWithTheirTypes) {
  const TorchFile file = parse(read_text_file(path("values.ckpt")));
  ASSERT_EQ(file.tensors.size(), 1u);
  const std::vector<std::pair<std::string, std::string>> expected{
      {"str", "str"},     {"unicode", "str"}, {"int", "int"},      {"negative", "int"},   {"long", "int"},
      {"longer", "int"},  {"float", "float"}, {"true", "bool"},    {"none", "NoneType"},  {"list", "list"},
      {"tuple", "tuple"}, {"dict", "dict"},   {"ordered", "dict"}, {"storage", "storage"}};
  EXPECT_EQ(file.values, expected);
  EXPECT_THAT(load_error<InvalidArgument>("values.ckpt"),
              HasSubstr("'str' is a str: every value of a feature file is a tensor"));
}

TEST_F(TorchMade, ABombIsRefusedByNameAndNotExecuted) {
  EXPECT_THAT(load_error<InvalidArgument>("bomb.ckpt"), HasSubstr("asks for 'posix.system', which is not on the list"));
  EXPECT_FALSE(std::filesystem::exists(path("bombed")));
}

TEST_F(TorchMade, OtherThingsAreRefusedByName) {
  EXPECT_THAT(load_error<InvalidArgument>("list.ckpt"), HasSubstr("holds a list"));
  EXPECT_THAT(load_error<InvalidArgument>("int_key.ckpt"), HasSubstr("a key of type int"));
  EXPECT_THAT(load_error<InvalidArgument>("parameter.ckpt"), HasSubstr("'torch._utils._rebuild_parameter'"));
  EXPECT_THAT(load_error<InvalidArgument>("complex.ckpt"), HasSubstr("'torch.ComplexFloatStorage'"));
  EXPECT_THAT(load_error<InvalidArgument>("legacy.ckpt"), HasSubstr("before version 1.6"));
  EXPECT_THAT(load_error<InvalidArgument>("protocol4.ckpt"), HasSubstr("is pickle protocol 4"));
  EXPECT_THAT(load_error<InvalidArgument>("stride_bomb.ckpt"), HasSubstr("'x' is a strided view that would unpack to 4.0 GiB"));
  EXPECT_THAT(load_error<InvalidArgument>("deflated.ckpt"), HasSubstr("is compressed: only stored entries"));
}

TEST_F(TorchMade, EveryTruncationIsCorruptAndNoBitFlipChangesATensor) {
  const std::string file = read_text_file(path("small.ckpt"));
  const TensorMap expected = parse(file).tensors;
  for (std::size_t length = 0; length < file.size(); ++length) ASSERT_THROW(parse(file.substr(0, length)), Corrupt) << length;
  for (std::size_t i = 0; i < file.size() * 8; ++i) {
    std::string flipped = file;
    flipped[i / 8] = static_cast<char>(flipped[i / 8] ^ (1 << (i % 8)));
    try {
      expect_equal(parse(flipped).tensors, expected);
    } catch (const Error&) {
      continue;  // refused is what most flips deserve; the rest hit padding that nothing reads
    }
  }
}

}  // namespace
}  // namespace draftflow
