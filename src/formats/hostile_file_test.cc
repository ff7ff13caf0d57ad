// SPDX-License-Identifier: Apache-2.0
//
// A small file cannot make a reader allocate much, whatever it claims. Measured: this file replaces operator new of the whole
// test program by one that counts, except under the sanitizers, which need their own; there the files are read all the same.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <new>
#include <string>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/formats/safetensors.h"
#include "formats/gzip_writer.h"
#include "formats/zip_builder.h"
#include "testing/temp_folder.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define DRAFTFLOW_COUNTS_NEW 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define DRAFTFLOW_COUNTS_NEW 0
#else
#define DRAFTFLOW_COUNTS_NEW 1
#endif
#else
#define DRAFTFLOW_COUNTS_NEW 1
#endif

namespace {

std::atomic<std::size_t> g_live{0}, g_peak{0};  // bytes

[[maybe_unused]] void* counted(std::size_t bytes, std::size_t alignment) {
  // What is asked for counts even when it is not there.
  const std::size_t asked = g_live.load() + bytes;
  if (asked > g_peak.load()) g_peak = asked;
  void* memory = bytes > (std::size_t{1} << 40)           ? nullptr
                 : alignment <= alignof(std::max_align_t) ? std::malloc(bytes + 1)
                                                          : std::aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  g_live += ::malloc_usable_size(memory);
  return memory;
}

[[maybe_unused]] void uncounted(void* memory) {
  if (memory == nullptr) return;
  g_live -= ::malloc_usable_size(memory);
  std::free(memory);
}

}  // namespace

#if DRAFTFLOW_COUNTS_NEW
// The other forms end in these.
void* operator new(std::size_t bytes) {
  return counted(bytes, 1);
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
  uncounted(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  uncounted(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  uncounted(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  uncounted(memory);
}
#endif

namespace draftflow {
namespace {

using testing_support::TempFolder;
using namespace std::string_literals;

constexpr std::size_t kMiB = 1U << 20;

// The most that was allocated at once while the file was read or refused, in bytes.
std::size_t peak_of_reading(const std::filesystem::path& path) {
  const std::size_t before = g_live;
  g_peak = before;
  try {
    load_feature_file(path);
  } catch (const Error&) {
  }
  return g_peak - before;
}

std::filesystem::path write(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  return path;
}

#define DRAFTFLOW_REQUIRE_COUNTED_NEW() \
  if (!DRAFTFLOW_COUNTS_NEW) GTEST_SKIP() << "memory is not measured under a sanitizer"

TEST(HostileFile, TheMeterCounts) {
  DRAFTFLOW_REQUIRE_COUNTED_NEW();
  const TempFolder folder;
  const std::size_t peak = peak_of_reading(write(folder.path() / "a.ckpt", std::string(3 * kMiB, 'x')));
  EXPECT_GE(peak, 3 * kMiB);
  EXPECT_LT(peak, 4 * kMiB);
}

// Every file of the fuzz programs' corpus, as a user would meet it.
TEST(HostileFile, NoFileOfTheCorpusTakesMuchMemory) {
  const TempFolder folder;
  std::size_t files = 0;
  for (const char* kind : {"safetensors", "torch_zip"}) {
    for (const auto& entry :
         std::filesystem::directory_iterator(std::filesystem::path(DRAFTFLOW_SOURCE_DIR "/src/formats/fuzz/corpus") / kind)) {
      std::string file = read_text_file(entry.path());
      const bool torch = kind == "torch_zip"s;
      if (torch && !file.starts_with("PK")) {
        file = testing_support::ZipBuilder().add("a/data.pkl", file).add("a/data/0", std::string(64, '\1')).finish();
      }
      const std::size_t peak = peak_of_reading(write(folder.path() / (torch ? "a.ckpt" : "a.safetensors"), file));
      const bool strided = entry.path().filename().string().starts_with("stride_0_in_parts");  // two fit the budget for views
      EXPECT_LT(peak, strided ? 17 * kMiB : kMiB) << entry.path() << " of " << file.size() << " bytes";
      ++files;
    }
  }
  EXPECT_GE(files, 80u);
}

TEST(HostileFile, MemoryGrowsNoFasterThanTheFile) {
  const TempFolder folder;
  // Each byte of a pickle makes a value; each entry of a header, a tensor.
  const auto torch = [](const std::string& pickle) { return testing_support::ZipBuilder().add("a/data.pkl", pickle).finish(); };
  for (const std::size_t kib : {4, 64}) {
    const std::size_t bytes = kib << 10;
    for (const char* op : {"}", "]", ")", "N", "("}) {
      std::string values;
      while (values.size() < bytes) values += op;
      EXPECT_LT(peak_of_reading(write(folder.path() / "a.ckpt", torch("\x80\x02" + values + "."))), 400 * bytes) << op;
    }
    std::string header = "{";
    for (std::size_t i = 0; header.size() < bytes; ++i) {
      header += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
    }
    header += "}";
    const std::string file = testing_support::ZipBuilder::u64(header.size()) + header;
    EXPECT_LT(peak_of_reading(write(folder.path() / "a.safetensors", file)), 20 * bytes);
  }
}

TEST(HostileFile, AGzipBombIsRefusedEarly) {
  const TempFolder folder;
  const std::string zeros(kMiB, '\0'), packed = testing_support::gzipped(zeros);
  std::string bomb;
  for (int member = 0; member < 256; ++member) bomb += packed;  // 256 MiB in some 260 KiB
  const auto path = write(folder.path() / "a.ckpt.gz", bomb);
  ASSERT_LT(bomb.size(), 300u << 10);
  try {
    load_feature_file(path);
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("unpacks to more than 67108864 bytes, the most that is read of its"));
  }
  DRAFTFLOW_REQUIRE_COUNTED_NEW();
  EXPECT_LT(peak_of_reading(path), 3 * 64 * kMiB);
}

// 10 MB of zeros pack into some 10 KB: below the floor any ratio is fine.
TEST(HostileFile, AnHonestGzipOfZerosIsRead) {
  const TempFolder folder;
  const std::string file =
      testing_support::ZipBuilder().add("a/data.pkl", "\x80\x02}."s).add("a/data/0", std::string(10 * kMiB, '\0')).finish();
  EXPECT_TRUE(load_feature_file(write(folder.path() / "a.ckpt.gz", testing_support::gzipped(file))).empty());
}

}  // namespace
}  // namespace draftflow
