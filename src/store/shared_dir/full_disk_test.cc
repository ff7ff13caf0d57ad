// SPDX-License-Identifier: Apache-2.0
//
// A really full file system: a small tmpfs, which only root may mount.
#include <sys/mount.h>

#include <cstring>

#include "draftflow/store/feature_store.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using store_testing::expect_same;
using store_testing::files_below;
using store_testing::generation_files;
using store_testing::message_of;
using store_testing::random_tensor;
using store_testing::run_metadata;
using store_testing::small_tensors;
using ::testing::HasSubstr;

class Tmpfs {
 public:
  explicit Tmpfs(const char* options)
      : mounted_(::mount("none", temp_.path().c_str(), "tmpfs", 0, options) == 0), error_(errno) {}
  ~Tmpfs() {
    if (mounted_) ::umount2(temp_.path().c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  std::string why_not() const { return std::string("a tmpfs cannot be mounted here: ") + std::strerror(error_); }
  const std::filesystem::path& path() const { return temp_.path(); }

 private:
  testing_support::TempFolder temp_;
  bool mounted_;
  int error_;
};

TEST(FullDisk, RunningOutOfBytesLeavesNothingAndHealsByFreeing) {
  const Tmpfs disk("size=4m");
  if (!disk.mounted()) GTEST_SKIP() << disk.why_not();
  const auto store = create_shared_dir_store(disk.path(), StoreId("st"), {.free_space_floor_bytes = 0});
  const TensorMap tensors = {{"x", random_tensor(DType::kUInt8, {1'500'000}, 1)}};
  const SampleRef a = store->put(tensors, SampleId("a"), run_metadata());
  store->put(tensors, SampleId("b"), run_metadata());
  const auto before = files_below(disk.path());
  EXPECT_THAT(message_of<Exhausted>([&] { store->put(tensors, SampleId("c"), run_metadata()); }),
              HasSubstr("asks for 1500000 bytes, but store 'st'"));
  EXPECT_EQ(files_below(disk.path()), before);
  EXPECT_TRUE(store->remove(a));
  expect_same(store->read(store->put(tensors, SampleId("c"), run_metadata())), tensors);
}

// As the kernel mounts a disk again that had errors.
TEST(FullDisk, ADiskThatWentReadOnlyIsReadOn) {
  const Tmpfs disk("size=4m");
  if (!disk.mounted()) GTEST_SKIP() << disk.why_not();
  SampleRef ref{.sample_id = SampleId("a"), .run_id = RunId("run")};
  {
    const auto before = create_shared_dir_store(disk.path(), StoreId("st"), {.free_space_floor_bytes = 0});
    ref = before->put(small_tensors(), SampleId("a"), run_metadata());
  }
  ASSERT_EQ(::mount("none", disk.path().c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr), 0);
  const auto store = open_shared_dir_store(disk.path(), StoreId("st"), {});
  expect_same(store->read(ref), small_tensors());
  EXPECT_EQ(store->health().resident_samples, 1u);
  EXPECT_THAT(message_of<PermissionDenied>([&] { store->put(small_tensors(), SampleId("b"), run_metadata()); }),
              HasSubstr("Read-only file system"));
}

// The check of free space comes too early here, as it does when others fill the disk meanwhile.
TEST(FullDisk, AWriteThatFailsInTheMiddleLeavesNothing) {
  const Tmpfs disk("size=4m");
  if (!disk.mounted()) GTEST_SKIP() << disk.why_not();
  const auto store = create_shared_dir_store(disk.path(), StoreId("st"), {.free_space_floor_bytes = 0});
  const SampleRef old = store->put(small_tensors(), SampleId("a"), run_metadata());
  const std::uint64_t all = store->health().free_bytes;
  const TensorMap tensors = {{"x", random_tensor(DType::kUInt8, {static_cast<std::int64_t>(all)}, 1)}};  // no room for a header
  const auto before = files_below(disk.path());
  for (const char* id : {"a", "b"}) {
    const std::string message = message_of<Exhausted>([&] { store->put(tensors, SampleId(id), run_metadata()); });
    EXPECT_THAT(message, HasSubstr("No space left on device"));
    EXPECT_THAT(message, HasSubstr("nothing was kept"));
    EXPECT_EQ(files_below(disk.path()), before);
  }
  EXPECT_EQ(store->health().free_bytes, all);
  expect_same(store->read(old), small_tensors());
}

TEST(FullDisk, RunningOutOfInodesAtAnyStepLeavesNothing) {
  int failures = 0;
  for (int inodes = 12; inodes < 22; ++inodes) {
    const Tmpfs disk(("size=4m,nr_inodes=" + std::to_string(inodes)).c_str());
    if (!disk.mounted()) GTEST_SKIP() << disk.why_not();
    const auto store = create_shared_dir_store(disk.path(), StoreId("st"), {.free_space_floor_bytes = 0});
    std::vector<SampleRef> refs;
    for (int i = 0; i < inodes; ++i) {
      try {
        refs.push_back(store->put(small_tensors(i), SampleId(std::to_string(i)), run_metadata()));
      } catch (const Exhausted& error) {
        ++failures;
        EXPECT_THAT(error.what(), HasSubstr("No space left on device"));
        break;
      }
    }
    EXPECT_EQ(generation_files(disk.path()).size(), refs.size());
    EXPECT_TRUE(std::filesystem::is_empty(disk.path() / "st" / "tmp"));
    for (std::size_t i = 0; i < refs.size(); ++i) expect_same(store->read(refs[i]), small_tensors(i));
    for (const SampleRef& ref : refs) EXPECT_TRUE(store->remove(ref));
    EXPECT_EQ(store->health().resident_samples, 0u);
  }
  EXPECT_EQ(failures, 10);
}

TEST(FullDisk, AStoreThatCannotBeMadeIsExhausted) {
  for (int inodes = 1; inodes < 8; ++inodes) {
    const Tmpfs disk(("nr_inodes=" + std::to_string(inodes)).c_str());
    if (!disk.mounted()) GTEST_SKIP() << disk.why_not();
    EXPECT_THROW(create_shared_dir_store(disk.path(), StoreId("st"), {}), Exhausted) << inodes;
    EXPECT_FALSE(std::filesystem::exists(disk.path() / "st" / "store.json"));
  }
}

}  // namespace
}  // namespace draftflow::store
