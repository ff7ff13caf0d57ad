// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/generation_file.h"

#include <fcntl.h>

#include <cstring>

#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using store_testing::expect_same;
using store_testing::message_of;
using store_testing::sample_tensors;
using store_testing::small_tensors;
using ::testing::HasSubstr;

class GenerationFileTest : public ::testing::Test {
 protected:
  std::string write(const TensorMap& tensors) {
    std::filesystem::remove(path_);
    const UniqueFd fd = open_file(path_, O_CREAT | O_RDWR);
    write_generation(fd.get(), path_, identity_, pack(codec_, tensors), keys_);
    return read_text_file(path_);
  }

  TensorMap read(const TensorMap& like, Identity identity) {
    const GenerationReader reader(open_file(path_, O_RDONLY), path_, std::move(identity), keys_);
    TensorMap tensors;
    for (const auto& [name, tensor] : like) tensors.emplace_back(name, reader.read(spec_from_tensor(name, tensor), pool_));
    return tensors;
  }
  TensorMap read(const TensorMap& like) { return read(like, identity_); }

  void overwrite(std::string_view text) {
    const UniqueFd fd = open_file(path_, O_WRONLY | O_TRUNC);
    write_all(fd.get(), std::as_bytes(std::span(text)), path_);
  }

  testing_support::TempFolder temp_;
  std::filesystem::path path_ = temp_.path() / "a.g7.safetensors";
  BufferPool pool_{0};
  Codec codec_ = Codec::kRaw;
  const Keys* keys_ = nullptr;
  Identity identity_{"st", std::string(32, '1'), "\"header_xxh3_64\":\"0", 7};
};

TEST_F(GenerationFileTest, RoundTripsAndAlignsEveryTensor) {
  const TensorMap tensors = sample_tensors();
  write(tensors);
  expect_same(read(tensors), tensors);
  const SafetensorsHeader header = read_safetensors_header(open_file(path_, O_RDONLY).get(), path_);
  for (const SafetensorsEntry& entry : header.entries) {
    EXPECT_EQ((header.data_offset + entry.begin) % dtype_bytes(entry.dtype), 0u) << entry.name;
  }
}

TEST_F(GenerationFileTest, IsAFileThatTheFieldsToolsRead) {
  const TensorMap tensors = sample_tensors();
  write(tensors);
  for (const auto& [name, tensor] : tensors) expect_same(read_safetensors(path_, {{name}}), {{name, tensor}});
}

// The bytes outlive processes: what version 1 wrote stays readable.
TEST_F(GenerationFileTest, Golden) {
  const TensorMap tensors = {{"x", Tensor::copy_of(DType::kUInt8, {3}, std::as_bytes(std::span("abc", 3)))}};
  identity_.sample_id = "s";
  const std::string text = write(tensors);
  std::string json =
      R"({"__metadata__":{"format":"draftflow.generation.1","header_xxh3_64":"HHHHHHHHHHHHHHHH","store_id":"st",)"
      R"("incarnation":"11111111111111111111111111111111","sample_id":"s","generation":"7",)"
      R"("chunks_xxh3_64":"78af5f94892f3950"},"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})";
  json.replace(json.find("HHHH"), 16, text.substr(8 + json.find("HHHH"), 16));  // see the tests of damage
  EXPECT_EQ(text.substr(8, json.size()), json);
  EXPECT_EQ(text.substr(text.size() - 3), "abc");
}

TEST_F(GenerationFileTest, EveryFlippedBitOfTheHeaderIsCorrupt) {
  const TensorMap tensors = small_tensors();
  const std::string good = write(tensors);
  std::uint64_t length = 0;
  std::memcpy(&length, good.data(), sizeof(length));
  for (std::size_t i = 0; i < 8 + length; ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    overwrite(bad);
    EXPECT_THROW(read(tensors), Corrupt) << "byte " << i;
  }
}

TEST_F(GenerationFileTest, AFlippedBitOfTheDataNamesEverything) {
  const TensorMap tensors = sample_tensors();
  const std::string good = write(tensors);
  std::string bad = good;
  bad[bad.size() - 1000] ^= 4;  // in the third chunk of "large", the last tensor of elements of one byte
  overwrite(bad);
  const std::string message = message_of<Corrupt>([&] { read({tensors.back()}); });
  EXPECT_THAT(message, HasSubstr("generation 7 of store 'st'"));
  EXPECT_THAT(message, HasSubstr(path_.string()));
  EXPECT_THAT(message, HasSubstr("tensor 'large' differs from what was written, in its bytes 2097152 to"));
  expect_same(read({tensors.front()}), {tensors.front()});
}

TEST_F(GenerationFileTest, EveryTruncationIsCorrupt) {
  const TensorMap tensors = small_tensors();
  const std::string good = write(tensors);
  for (std::size_t size = 0; size < good.size(); size += size < 16 ? 1 : 13) {
    overwrite(good.substr(0, size));
    EXPECT_THROW(read(tensors), Corrupt) << size;
  }
  overwrite(good + "x");
  EXPECT_THROW(read(tensors), Corrupt);
}

TEST_F(GenerationFileTest, ATruncationAfterOpeningIsCorruptAndNamesTheTensor) {
  const TensorMap tensors = sample_tensors();
  const std::string good = write(tensors);
  const GenerationReader reader(open_file(path_, O_RDONLY), path_, identity_);
  std::filesystem::resize_file(path_, good.size() - 5000);
  EXPECT_THAT(message_of<Corrupt>([&] { reader.read(spec_from_tensor("large", tensors.back().second), pool_); }),
              HasSubstr("tensor 'large'"));
}

TEST_F(GenerationFileTest, AnotherOnesFileIsCorrupt) {
  write(small_tensors());
  Identity other = identity_;
  other.sample_id = "b";
  EXPECT_THAT(message_of<Corrupt>([&] { read(small_tensors(), other); }), HasSubstr("where 'b' was expected"));
  other = identity_;
  other.generation = 8;
  EXPECT_THROW(read(small_tensors(), other), Corrupt);
  other = identity_;
  other.incarnation = std::string(32, '2');
  EXPECT_THROW(read(small_tensors(), other), Corrupt);
  other = identity_;
  other.store_id = "st2";
  EXPECT_THROW(read(small_tensors(), other), Corrupt);
}

TEST_F(GenerationFileTest, AnySafetensorsFileIsNotAGeneration) {
  write_safetensors(path_, small_tensors());
  EXPECT_THAT(message_of<Corrupt>([&] { read(small_tensors()); }), HasSubstr("not draftflow's"));
}

TEST_F(GenerationFileTest, AHeaderLongerThanTheFirstReadIsWhole) {
  const TensorMap tensors = {{std::string(100'000, 'n'), small_tensors()[0].second}};
  write(tensors);
  expect_same(read(tensors), tensors);
}

TEST_F(GenerationFileTest, TensorBytesAreToldFromTheHeaderLength) {
  const std::string good = write(small_tensors());
  const UniqueFd fd = open_file(path_, O_RDONLY);
  EXPECT_EQ(tensor_bytes_of_file(fd.get(), good.size()), 16u * 8 + 16 * 8 * 2);
  EXPECT_EQ(tensor_bytes_of_file(fd.get(), 10), 10u);
}

}  // namespace
}  // namespace draftflow::store
