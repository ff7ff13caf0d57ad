// SPDX-License-Identifier: Apache-2.0
//
// Writers that die by SIGKILL at any moment: whatever is visible is whole, and gc clears the rest.
#include <signal.h>
#include <unistd.h>

#include <array>

#include "store/shared_dir/shared_dir_store.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using store_testing::generation_files;
using store_testing::run_metadata;

constexpr int kKills = 20;
constexpr int kMostKills = 500;          // where the first 20 all fell between two puts
constexpr std::int64_t kRows = 700'000;  // so that most of a put is writing

TensorMap filled(std::uint8_t value) {
  auto [tensor, bytes] = Tensor::allocate(DType::kUInt8, {kRows});
  std::fill(bytes.begin(), bytes.end(), std::byte{value});
  return {{"x", tensor}, {"y", tensor}};
}

std::string sample_name(int i) {
  return "s" + std::to_string(i % 3);
}

// Puts without end, telling the parent of each; the parent kills it.
void put_for_ever(const std::filesystem::path& root, int tell) {
  const auto store = create_shared_dir_store(root, StoreId("st"), {});
  const std::array contents = {filled(0), filled(1), filled(2), filled(3)};  // so that putting is all it does
  for (int i = 0;; ++i) {
    store->put(contents[static_cast<std::size_t>(i) % contents.size()], SampleId(sample_name(i)), run_metadata());
    if (::write(tell, "p", 1) != 1) ::_exit(1);
  }
}

// Reads every visible generation through the front door, and that its bytes are one put's.
void expect_whole(FeatureStore& store, const std::filesystem::path& root) {
  const std::string incarnation = find_store_file(Folder::open(root), StoreId("st"))->incarnation;
  for (const auto& file : generation_files(root)) {
    const std::string id = file.filename().string().substr(0, 2);
    const auto generation = parse_generation_name(sample_place(SampleId(id)), file.filename().string());
    ASSERT_TRUE(generation) << file;
    SampleRef ref{.sample_id = SampleId(id), .run_id = RunId("run"), .feature_store_uri = "disagg://st/" + id};
    ref.generation = *generation;
    ref.incarnation = incarnation;
    for (const auto& [name, tensor] : filled(0)) ref.feature_specs.push_back(spec_from_tensor(name, tensor));
    const TensorMap tensors = store.read(ref);
    for (const auto& [name, tensor] : tensors) {
      EXPECT_EQ(std::count(tensor.bytes.begin(), tensor.bytes.end(), tensors[0].second.bytes[0]), kRows) << file;
    }
  }
}

TEST(Crash, KilledWritersLeaveOnlyWholeGenerationsAndOrphansThatGcClears) {
  const testing_support::TempFolder temp;
  const auto store = create_shared_dir_store(temp.path(), StoreId("st"), {});
  const auto root = temp.path() / "st";
  constexpr std::uint64_t kSeed = 20240607;
  Random random(kSeed);
  std::uint64_t orphans = 0;
  for (int kill = 0; kill < kKills || (orphans == 0 && kill < kMostKills); ++kill) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = store_testing::fork_child([&] {
      ::close(ends[0]);
      put_for_ever(temp.path(), ends[1]);
    });
    ::close(ends[1]);
    char told = 0;
    EXPECT_EQ(::read(ends[0], &told, 1), 1);  // it is past attaching
    ::usleep(static_cast<useconds_t>(random.below(4000)));
    ::kill(child, SIGKILL);
    EXPECT_TRUE(WIFSIGNALED(store_testing::wait_for(child)));
    ::close(ends[0]);
    expect_whole(*store, root);
    orphans += store->gc().temporaries_removed;
    EXPECT_TRUE(std::filesystem::is_empty(root / "tmp"));
    EXPECT_LE(generation_files(root).size(), 3u);
    expect_whole(*store, root);
  }
  EXPECT_GT(orphans, 0u) << "no kill of " << kMostKills << " hit a put: the test proves nothing here";
}

}  // namespace
}  // namespace draftflow::store
