// SPDX-License-Identifier: Apache-2.0
#include "formats/gzip.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "formats/gzip_writer.h"
#include "testing/temp_folder.h"

namespace draftflow::formats {
namespace {

using testing::HasSubstr;
using testing_support::gzipped;
using testing_support::TempFolder;

constexpr std::uint64_t kEnough = 1ULL << 30;

class Gzip : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& bytes) {
    std::ofstream(path_, std::ios::trunc) << bytes;
    return path_;
  }

  std::string unpack(const std::string& packed, std::uint64_t max_bytes = kEnough) {
    const Tensor tensor = gunzip_file(write(packed), {.max_bytes = max_bytes});
    return {reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size()};
  }

  template <class E>
  std::string error_of(const std::string& packed, std::uint64_t max_bytes = kEnough) {
    try {
      unpack(packed, max_bytes);
    } catch (const E& error) {
      return error.what();
    } catch (const Error& error) {
      return std::string("another kind: ") + error_kind_name(error.kind()) + ": " + error.what();
    }
    return "no error";
  }

 private:
  TempFolder folder_;
  std::filesystem::path path_ = folder_.path() / "f.gz";
};

std::string noise(std::size_t bytes) {
  Random random(7);
  std::string text(bytes, '\0');
  for (char& c : text) c = static_cast<char>(random.next());
  return text;
}

TEST_F(Gzip, UnpacksAllSizes) {
  for (const std::size_t size : {0, 1, 1000, 262'143, 262'144, 262'145, 1'000'000}) {
    EXPECT_EQ(unpack(gzipped(noise(size))), noise(size)) << size;
    EXPECT_EQ(unpack(gzipped(std::string(size, 'a'))), std::string(size, 'a')) << size;
  }
}

TEST_F(Gzip, UnpacksSeveralMembers) {
  EXPECT_EQ(unpack(gzipped("one ") + gzipped("") + gzipped("two")), "one two");
}

TEST_F(Gzip, RefusesWhatIsNotGzip) {
  EXPECT_THAT(error_of<Corrupt>("hello hello"), HasSubstr("the gzip data is damaged: incorrect header check"));
  EXPECT_THAT(error_of<Corrupt>(gzipped("x") + "tail"), HasSubstr("the gzip data is damaged: incorrect header check"));
  EXPECT_THAT(error_of<Corrupt>(""), HasSubstr("the file is truncated"));
}

TEST_F(Gzip, EveryTruncationIsCorrupt) {
  const std::string packed = gzipped(noise(300));
  for (std::size_t length = 0; length < packed.size(); ++length)
    EXPECT_NE(error_of<Corrupt>(packed.substr(0, length)), "no error");
}

TEST_F(Gzip, NoBitFlipChangesTheBytes) {
  const std::string packed = gzipped(noise(100));
  int refused = 0;
  for (std::size_t i = 0; i < packed.size() * 8; ++i) {
    std::string flipped = packed;
    flipped[i / 8] = static_cast<char>(flipped[i / 8] ^ (1 << (i % 8)));
    try {
      EXPECT_EQ(unpack(flipped), noise(100));
    } catch (const Corrupt&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 800);
}

TEST_F(Gzip, RefusesABombAtTheLimit) {
  const std::string bomb = gzipped(std::string(10'000'000, '\0'));
  EXPECT_THAT(error_of<InvalidArgument>(bomb, 9'999'999), HasSubstr("unpacks to more than 9999999 bytes"));
  EXPECT_EQ(unpack(bomb, 10'000'000).size(), 10'000'000u);
  EXPECT_THAT(error_of<InvalidArgument>(gzipped("1234") + gzipped("5"), 4), HasSubstr("unpacks to more than 4 bytes"));
}

TEST_F(Gzip, RefusesABombByItsRatio) {
  const std::string bomb = gzipped(std::string(1'000'000, '\0'));  // about 1000 times smaller
  const GzipLimits limits{.max_bytes = kEnough, .any_bytes = 1000, .max_ratio = 100};
  try {
    gunzip_file(write(bomb), limits);
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr(" unpacks to more than " + std::to_string(100 * bomb.size()) +
                                        " bytes, the most that is read of its " + std::to_string(bomb.size())));
  }
  EXPECT_EQ(gunzip_file(write(bomb), {.max_bytes = kEnough, .any_bytes = 1'000'000, .max_ratio = 100}).bytes.size(),
            1'000'000u);
  EXPECT_EQ(gunzip_file(write(bomb), {.max_bytes = kEnough, .any_bytes = 0, .max_ratio = 1100}).bytes.size(), 1'000'000u);
  EXPECT_EQ(gunzip_file(write(gzipped(noise(5000))), limits).bytes.size(), 5000u);
  const GzipLimits overflowing{.max_bytes = 10, .any_bytes = 0, .max_ratio = UINT64_MAX};
  EXPECT_THROW(gunzip_file(write(bomb), overflowing), InvalidArgument);
}

TEST_F(Gzip, NamesAMissingFile) {
  EXPECT_THROW(gunzip_file("/nonexistent.gz", {.max_bytes = kEnough}), NotFound);
}

}  // namespace
}  // namespace draftflow::formats
