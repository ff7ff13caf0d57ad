// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <thread>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/random.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/formats/torch_zip.h"
#include "formats/zip.h"
#include "formats/zip_writer.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using testing::HasSubstr;
using testing_support::TempFolder;
using namespace std::string_literals;

template <class T>
Tensor tensor_of(DType dtype, std::vector<std::int64_t> shape, const std::vector<T>& values) {
  return Tensor::copy_of(dtype, std::move(shape), std::as_bytes(std::span(values)));
}

Tensor longs(std::vector<std::int64_t> shape, std::int64_t first = 0) {
  std::vector<std::int64_t> values(tensor_bytes(DType::kInt64, shape) / 8);
  std::iota(values.begin(), values.end(), first);
  return tensor_of(DType::kInt64, std::move(shape), values);
}

std::string written(const TensorMap& tensors) {
  std::string file;
  write_torch_zip(tensors, [&](std::span<const std::byte> piece) {
    file.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  });
  return file;
}

void write_file(const std::filesystem::path& path, const TensorMap& tensors, const std::optional<std::string>& note = {}) {
  UniqueFd fd = open_file(path, O_WRONLY | O_CREAT | O_EXCL);
  write_torch_zip(fd.get(), path, tensors, note);
  fd.close_checked(path);
}

TensorMap parsed(const std::string& file) {
  const Tensor bytes = Tensor::copy_of(DType::kUInt8, {static_cast<std::int64_t>(file.size())}, std::as_bytes(std::span(file)));
  TorchFile torch = parse_torch_zip(bytes.bytes, bytes.owner, "f");
  EXPECT_TRUE(torch.values.empty());
  return std::move(torch.tensors);
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

template <class E>
std::string error_of(const TensorMap& tensors) {
  std::size_t pieces = 0;
  std::string text = "no error";
  try {
    write_torch_zip(tensors, [&](std::span<const std::byte>) { ++pieces; });
  } catch (const E& error) {
    text = error.what();
  }
  EXPECT_EQ(pieces, 0u) << "refused, but only after some bytes were written";
  return text;
}

// The same values as in testdata/check_torch_files.py.
TensorMap every_dtype() {
  const auto integers = []<class T>(DType dtype, T) { return tensor_of<T>(dtype, {2, 3}, {0, 1, 2, 3, 100, 127}); };
  return {{"bool", tensor_of<std::uint8_t>(DType::kBool, {2, 3}, {0, 1, 1, 1, 0, 1})},
          {"uint8", integers(DType::kUInt8, std::uint8_t{})},
          {"int8", integers(DType::kInt8, std::int8_t{})},
          {"int16", integers(DType::kInt16, std::int16_t{})},
          {"int32", integers(DType::kInt32, std::int32_t{})},
          {"int64", integers(DType::kInt64, std::int64_t{})},
          {"float16", tensor_of<std::uint16_t>(DType::kFloat16, {2, 3}, {0, 0x3e00, 0xc000, 0x3400, 0xb000, 0x5600})},
          {"bfloat16", tensor_of<std::uint16_t>(DType::kBFloat16, {2, 3}, {0, 0x3fc0, 0xc000, 0x3e80, 0xbe00, 0x42c0})},
          {"float32", tensor_of<float>(DType::kFloat32, {2, 3}, {0, 1.5, -2, 0.25, -0.125, 96})},
          {"float64", tensor_of<double>(DType::kFloat64, {2, 3}, {0, 1.5, -2, 0.25, -0.125, 96})}};
}

TensorMap every_shape() {
  return {{"scalar", longs({}, 7)},
          {"one", longs({1}, 7)},
          {"four", longs({1, 2, 3, 4})},
          {"five", longs({1, 2, 3, 4, 1})},
          {"none", Tensor::allocate(DType::kBFloat16, {0, 4}).first},
          {"none_inside", Tensor::allocate(DType::kBool, {2, 0, 70000}).first},
          {"long", longs({70000})}};
}

TensorMap every_name() {
  TensorMap tensors;
  for (const std::string& name :
       {""s, "plain"s, "run:00000001/aux_hidden_state"s, "it's \"quoted\""s, "two\nlines\ttab"s, "\xf0\x9f\x98\x80 \xc3\xa9"s,
        "nul\0inside"s, "back\\slash"s, "../../etc/passwd"s, std::string(70000, 'x')}) {
    tensors.emplace_back(name, longs({1}, static_cast<std::int64_t>(tensors.size())));
  }
  return tensors;
}

TEST(TorchZipWriter, PinsTheBytes) {
  const std::string pickle =
      "\x80\x02}("
      "X\3\0\0\0ids"
      "ctorch._utils\n_rebuild_tensor_v2\n"
      "((X\7\0\0\0storage"
      "ctorch\nLongStorage\n"
      "X\1\0\0\0"
      "0"
      "X\3\0\0\0cpu"
      "K\2tQ"
      "K\0K\2\x85K\1\x85\x89"
      "ccollections\nOrderedDict\n)RtR"
      "u."s;
  const std::string fixed = "\x2d\0\0\0\0\0\0\0\x21\0"s;  // version 45, no flags, stored, 1980-01-01
  const auto pad = [](std::size_t bytes) { return "FB"s + static_cast<char>(bytes) + "\0"s + std::string(bytes, 'Z'); };
  const std::string pickle_sum = "\x4c\xc7\x06\xeb\x88\0\0\0\x88\0\0\0"s, data_sum = "\xc4\x9f\x8d\x50\x10\0\0\0\x10\0\0\0"s,
                    version_sum = "\xd1\x9e\x67\x55\2\0\0\0\2\0\0\0"s;  // CRC-32 and twice the size
  const std::string zeros(10, '\0');
  const std::string expected =
      "PK\3\4" + fixed + pickle_sum + "\x10\0\x12\0"s + "archive/data.pkl" + pad(14) + pickle +                          // at 0
      "PK\3\4" + fixed + data_sum + "\x0e\0\x0c\0"s + "archive/data/0" + pad(8) + "\5\0\0\0\0\0\0\0\6\0\0\0\0\0\0\0"s +  // 200
      "PK\3\4" + fixed + version_sum + "\x0f\0\x43\0"s + "archive/version" + pad(63) + "3\n" +                           // 272
      "PK\1\2\x2d\0"s + fixed + pickle_sum + "\x10\0\0\0"s + zeros + "\0\0\0\0"s + "archive/data.pkl" +                  // 386
      "PK\1\2\x2d\0"s + fixed + data_sum + "\x0e\0\0\0"s + zeros + "\xc8\0\0\0"s + "archive/data/0" + "PK\1\2\x2d\0"s + fixed +
      version_sum + "\x0f\0\0\0"s + zeros + "\x10\1\0\0"s + "archive/version" + "PK\6\6\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0"s +
      std::string(8, '\0') + "\3\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0"s +  // 569
      "\xb7\0\0\0\0\0\0\0\x82\1\0\0\0\0\0\0"s +                     // 183 bytes at 386
      "PK\6\7\0\0\0\0\x39\2\0\0\0\0\0\0\1\0\0\0"s + "PK\5\6\0\0\0\0\3\0\3\0\xb7\0\0\0\x82\1\0\0\0\0"s;
  EXPECT_EQ(testing::PrintToString(written({{"ids", longs({2}, 5)}})), testing::PrintToString(expected));
}

TEST(TorchZipWriter, ComesBackBitForBit) {
  for (const TensorMap& tensors : {every_dtype(), every_shape(), every_name(), TensorMap{}}) {
    expect_equal(parsed(written(tensors)), tensors);
  }
}

TEST(TorchZipWriter, KeepsEveryBitPattern) {  // NaNs with payloads, negative zeros, bools that are neither 0 nor 1
  Random random(11);
  TensorMap tensors;
  for (const auto& [name, model] : every_dtype()) {
    auto [tensor, out] = Tensor::allocate(model.dtype, {257});
    for (std::byte& byte : out) byte = static_cast<std::byte>(random.next());
    tensors.emplace_back(name, tensor);
  }
  expect_equal(parsed(written(tensors)), tensors);
}

TEST(TorchZipWriter, AlignsEveryTensorTo64Bytes) {
  TensorMap tensors;
  for (std::int64_t i = 0; i < 130; ++i)
    tensors.emplace_back("t" + std::to_string(i), Tensor::allocate(DType::kUInt8, {i}).first);
  const std::string file = written(tensors);
  const Tensor bytes = Tensor::copy_of(DType::kUInt8, {static_cast<std::int64_t>(file.size())}, std::as_bytes(std::span(file)));
  for (const auto& [name, tensor] : parse_torch_zip(bytes.bytes, bytes.owner, "f").tensors) {
    EXPECT_EQ((tensor.bytes.data() - bytes.bytes.data()) % 64, 0) << name;
  }
}

TEST(TorchZipWriter, CopiesNoTensor) {
  const TensorMap tensors = every_dtype();
  std::size_t found = 0;
  write_torch_zip(tensors, [&](std::span<const std::byte> piece) {
    for (const auto& [name, tensor] : tensors)
      found += piece.data() == tensor.bytes.data() && piece.size() == tensor.bytes.size();
  });
  EXPECT_EQ(found, tensors.size());
}

TEST(TorchZipWriter, RefusesMoreTensorsThanTheReaderTakes) {
  TensorMap tensors;
  for (int i = 0; i < 70'000; ++i) tensors.emplace_back(std::to_string(i), longs({1}, i));
  EXPECT_THAT(error_of<InvalidArgument>(tensors), HasSubstr("tensors of 70000 take over 8388608 bytes, the most that is read"));
  tensors.resize(50'000);
  expect_equal(parsed(written(tensors)), tensors);
}

TEST(TorchZipWriter, CountsMoreEntriesThanTheOldEndRecord) {
  for (const std::size_t entries : {65'534u, 65'535u, 65'536u}) {
    std::string file;
    formats::ZipWriter zip(
        [&](std::span<const std::byte> piece) { file.append(reinterpret_cast<const char*>(piece.data()), piece.size()); });
    for (std::size_t i = 0; i < entries; ++i) zip.add(std::to_string(i), {});
    zip.finish();
    EXPECT_EQ(formats::read_stored_zip(std::as_bytes(std::span(file)), "f").size(), entries);
  }
}

TEST(TorchZipWriter, RefusesBeforeTheFirstByte) {
  EXPECT_EQ(error_of<InvalidArgument>({{"a", longs({1})}, {"\xff", longs({1})}}),
            "torch zip: tensor '\\xff' has a name that is not UTF-8 at byte 0");
  EXPECT_EQ(error_of<InvalidArgument>({{"a", longs({1})}, {"a", longs({1})}}), "torch zip: tensor 'a' is given twice");
  Tensor wrong = longs({2});
  wrong.shape = {3};
  EXPECT_EQ(error_of<InvalidArgument>({{"a", wrong}}),
            "torch zip: tensor 'a' of dtype int64 and shape [3] has 16 bytes, which does not fit");
  EXPECT_EQ(error_of<InvalidArgument>({{"a", longs(std::vector<std::int64_t>(65, 1))}}),
            "torch zip: tensor 'a' has 65 dimensions: at most 64 are allowed");
  const Tensor vast = Tensor::allocate(DType::kUInt8, {0, std::int64_t{1} << 40, std::int64_t{1} << 40}).first;
  EXPECT_THAT(error_of<InvalidArgument>({{"a", vast}}), HasSubstr("is empty, but its strides pass 2^63"));
  EXPECT_THROW(write_torch_zip(TensorMap{}, ByteSink{}), InvalidArgument);
}

TEST(TorchZipWriter, AFullDiskIsExhaustedAndNamesTheFile) {
  const UniqueFd full = open_file("/dev/full", O_WRONLY);
  try {
    write_torch_zip(full.get(), "a.ckpt", every_dtype());
    FAIL();
  } catch (const Exhausted& error) {
    EXPECT_THAT(error.what(), HasSubstr("writing a.ckpt"));
  }
}

TEST(TorchZipWriter, APipeWillDo) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  const UniqueFd in(ends[0]);
  UniqueFd out(ends[1]);
  const TensorMap tensors = every_shape();
  std::thread writer([&] {
    write_torch_zip(out.get(), "pipe", tensors);
    out.reset();
  });
  std::string file;
  std::array<char, 4096> buffer{};
  for (ssize_t got = 0; (got = ::read(in.get(), buffer.data(), buffer.size())) > 0;) {
    file.append(buffer.data(), static_cast<std::size_t>(got));
  }
  writer.join();
  expect_equal(parsed(file), tensors);
}

int run_check(const std::string& arguments) {
  const std::string script = DRAFTFLOW_SOURCE_DIR "/src/formats/testdata/check_torch_files.py";
  const int status = std::system(("/usr/bin/python3 '" + script + "' " + arguments).c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define DRAFTFLOW_SKIP_WITHOUT_TORCH(rc) \
  if ((rc) == 77 || (rc) == 127) GTEST_SKIP() << "PyTorch is absent for /usr/bin/python3 (Debian: python3-torch)"

TEST(TorchZipWriter, TorchLoadsItWithWeightsOnlyAndSavesItAgain) {
  const TempFolder folder;
  const std::pair<const char*, TensorMap> files[] = {
      {"dtypes.ckpt", every_dtype()}, {"shapes.ckpt", every_shape()}, {"names.ckpt", every_name()}, {"nothing.ckpt", {}}};
  for (const auto& [name, tensors] : files) write_file(folder.path() / name, tensors, "torch does not look here");
  const int rc = run_check("'" + folder.path().string() + "'");
  DRAFTFLOW_SKIP_WITHOUT_TORCH(rc);
  ASSERT_EQ(rc, 0) << "check_torch_files.py says above what differs";
  for (const auto& [name, tensors] : files) {
    expect_equal(load_feature_file(folder.path() / name), tensors);
    expect_equal(load_feature_file(folder.path() / ("again."s + name)), tensors);
  }
}

TEST(TorchZipWriter, ANoteIsReadByTheFilesFirstBytesAndWithTheFile) {
  const TempFolder folder;
  const auto note_of = [&](const std::optional<std::string>& note) {
    const auto path = folder.path() / "f.ckpt";
    std::filesystem::remove(path);
    write_file(path, every_shape(), note);
    const std::string file = read_text_file(path);
    EXPECT_EQ(parse_torch_zip(std::as_bytes(std::span(file)), nullptr, "f").note, note);
    return read_torch_note(open_file(path, O_RDONLY).get(), path);
  };
  EXPECT_EQ(note_of(std::nullopt), std::nullopt);
  EXPECT_EQ(note_of(""), "");
  EXPECT_EQ(note_of("{\"a\": 1}"), "{\"a\": 1}");
  EXPECT_EQ(note_of(std::string(kMaxTorchNoteBytes, 'n')), std::string(kMaxTorchNoteBytes, 'n'));
  EXPECT_THROW(write_torch_zip(
                   {}, [](std::span<const std::byte>) {}, std::string(kMaxTorchNoteBytes + 1, 'n')),
               InvalidArgument);
}

TEST(TorchZipWriter, ADamagedNoteIsCorruptOrNone) {
  const TempFolder folder;
  const auto path = folder.path() / "f.ckpt";
  const std::string note(100, 'n');
  write_file(path, every_dtype(), note);
  const std::string file = read_text_file(path);
  const auto try_note = [&](const std::string& bytes) -> std::optional<std::string> {
    replace_file(path, bytes);
    try {
      return read_torch_note(open_file(path, O_RDONLY).get(), path);
    } catch (const Corrupt&) {
      return std::nullopt;
    }
  };
  for (std::size_t at = 0; at < 200; ++at) {
    std::string flipped = file;
    flipped[at] = static_cast<char>(flipped[at] ^ 1);
    const auto found = try_note(flipped);
    EXPECT_TRUE(!found || *found == note) << at;
    EXPECT_TRUE(at > 160 || !try_note(file.substr(0, at))) << at;
  }
}

// Over 4 GiB: 4 GiB of zeros that take no memory, into a file with a hole that takes no disk.
class BigFile {
 public:
  explicit BigFile(std::filesystem::path path) : path_(std::move(path)) {
    zeros_ = ::mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (zeros_ == MAP_FAILED) throw_errno(errno, "mapping zeros");
    const std::span<const std::byte> bytes(static_cast<const std::byte*>(zeros_), kBytes);
    std::vector<std::uint8_t> small(16);
    std::iota(small.begin(), small.end(), std::uint8_t{0});
    tensors = {{"big", Tensor{DType::kUInt8, {static_cast<std::int64_t>(kBytes)}, bytes, nullptr}},
               {"small", tensor_of(DType::kUInt8, {16}, small)}};
    const UniqueFd fd = open_file(path_, O_RDWR | O_CREAT | O_EXCL);
    std::uint64_t at = 0;
    write_torch_zip(tensors, [&](std::span<const std::byte> piece) {
      if (piece.data() != zeros_ && ::pwrite(fd.get(), piece.data(), piece.size(), static_cast<off_t>(at)) < 0) {
        throw_errno(errno, "writing " + path_.string());
      }
      at += piece.size();
    });
    size = file_size(fd.get(), path_);
    mapped_ = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (mapped_ == MAP_FAILED) throw_errno(errno, "mapping " + path_.string());
  }
  BigFile(const BigFile&) = delete;
  BigFile& operator=(const BigFile&) = delete;
  ~BigFile() {
    ::munmap(zeros_, kBytes);
    ::munmap(mapped_, size);
  }

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(mapped_), size}; }

  static constexpr std::size_t kBytes = (std::size_t{1} << 32) + 5;
  TensorMap tensors;
  std::size_t size = 0;

 private:
  std::filesystem::path path_;
  void *zeros_ = nullptr, *mapped_ = nullptr;
};

TEST(TorchZipWriter, AFileOver4GiBIsRight) {
  const TempFolder folder;
  const BigFile file(folder.path() / "big.ckpt");
  const TensorMap back = parse_torch_zip(file.bytes(), nullptr, "f").tensors;  // checks every CRC
  ASSERT_EQ(back.size(), 2u);
  EXPECT_EQ(back[0].second.bytes.size(), BigFile::kBytes);
  EXPECT_EQ((back[0].second.bytes.data() - file.bytes().data()) % 64, 0);
  EXPECT_TRUE(std::ranges::equal(back[1].second.bytes, file.tensors[1].second.bytes));
  const int rc = run_check("--big '" + (folder.path() / "big.ckpt").string() + "'");
  DRAFTFLOW_SKIP_WITHOUT_TORCH(rc);
  EXPECT_EQ(rc, 0) << "check_torch_files.py says above what differs";
}

}  // namespace
}  // namespace draftflow
