// SPDX-License-Identifier: Apache-2.0
//
// Whole files of every codec, and thousands of mutations of each whose header checksum is right: the reader refuses or reads
// them, in bounds.
#include <fcntl.h>

#include <cstdlib>
#include <fstream>
#include <optional>

#include "store/fuzz/generation_body.h"
#include "store/shared_dir/torch_generation.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::fuzz {
namespace {

using store_testing::random_tensor;

constexpr std::optional<Codec> kCodecs[] = {Codec::kRaw, Codec::kFp8E4M3, Codec::kInt8, Codec::kZstd, std::nullopt};

// `codec`: or nothing, for a file of layout specforge.
std::string seed_file(std::optional<Codec> codec) {
  const testing_support::TempFolder temp;
  const auto path = temp.path() / "seed";
  auto [zeros, bytes] = Tensor::allocate(DType::kFloat32, {2, 64});
  std::fill(bytes.begin(), bytes.end(), std::byte{0});
  const TensorMap tensors = {{"hidden", zeros}, {"ids", random_tensor(DType::kInt64, {3}, 1)}};
  const UniqueFd fd = open_file(path, O_RDWR | O_CREAT | O_EXCL);
  if (codec) {
    store::write_generation(fd.get(), path, generation_identity(), store::pack(*codec, tensors));
  } else {
    const store::PackedSample sample{.parts = tensors, .packed = {}, .torch_pickle = make_torch_pickle(tensors)};
    store::write_torch_generation(fd.get(), path, generation_identity(), sample);
  }
  return read_text_file(path);
}

bool read_all(const std::string& file) {
  return generation_body(std::as_bytes(std::span(file)));
}

// As a fuzzer would: a byte, a digit, a cut, or a piece of the file put elsewhere in it.
std::string mutated(std::string file, Random& random) {
  for (std::uint64_t i = 0; i <= random.below(3); ++i) {
    const std::size_t at = random.below(file.size()), from = random.below(file.size());
    switch (random.below(4)) {
      case 0: file[at] = static_cast<char>(random.next()); break;
      case 1: file[at] = static_cast<char>('0' + random.below(10)); break;
      case 2: file.resize(std::max<std::size_t>(at, 1)); break;
      default: file.replace(at, std::min<std::size_t>(8, file.size() - at), file.substr(from, random.below(12))); break;
    }
    if (file.empty()) break;
  }
  return file;
}

TEST(GenerationFuzz, SeedsOfEveryCodecAreRead) {
  const char* folder = std::getenv("DRAFTFLOW_SEEDS");
  for (const auto& codec : kCodecs) {
    const std::string file = seed_file(codec), name = codec ? std::string(codec_name(*codec)) : "torch_zip";
    EXPECT_TRUE(read_all(file)) << name;
    if (folder != nullptr) {
      std::filesystem::create_directories(folder);
      std::ofstream(std::filesystem::path(folder) / name) << file;
    }
  }
}

TEST(GenerationFuzz, MutationsAreRefusedOrReadInBounds) {
  Random random(20261126);
  int refused = 0, read = 0;
  for (const auto& codec : kCodecs) {
    const std::string seed = seed_file(codec);
    for (int i = 0; i < 3000; ++i) (read_all(mutated(seed, random)) ? read : refused) += 1;
  }
  EXPECT_GT(refused, 3000);
  EXPECT_GT(read, 100) << "the mutations reach nothing behind the checksum";
}

}  // namespace
}  // namespace draftflow::fuzz
