// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/generations.h"

#include <fcntl.h>

#include <set>
#include <sstream>
#include <thread>

#include "store/shared_dir/names.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using store_testing::message_of;

class GenerationsTest : public ::testing::Test {
 protected:
  void mark(std::uint64_t epoch) { epochs_.open_file(std::to_string(epoch), O_CREAT | O_WRONLY); }

  testing_support::TempFolder temp_;
  Folder epochs_ = Folder::open(temp_.path());
};

TEST_F(GenerationsTest, AreCountedInsideAnEpochClaimedAtTheFirstPut) {
  Generations generations(epochs_);
  EXPECT_TRUE(temp_.list().empty());  // readers leave no trace
  EXPECT_EQ(generations.next(0), (1ULL << 24) + 1);
  EXPECT_EQ(generations.next(0), (1ULL << 24) + 2);
  EXPECT_EQ(temp_.list(), std::vector<std::string>{"1"});
  EXPECT_EQ(Generations(epochs_).next(0), (2ULL << 24) + 1);
}

TEST_F(GenerationsTest, TheNewestIsGreaterThanWhatAnybodyHasBeenGiven) {
  Generations first(epochs_), second(epochs_);
  first.next(0);
  const std::uint64_t elsewhere = second.next(0);
  EXPECT_GT(first.next(0, /*newest=*/true), elsewhere);
}

TEST_F(GenerationsTest, AGreaterOneOnDiskClaimsANewEpochFirst) {
  Generations first(epochs_), second(epochs_);
  first.next(0);
  const std::uint64_t present = second.next(0);
  EXPECT_GT(first.next(present), present);
  EXPECT_EQ(temp_.list().size(), 3u);
}

TEST_F(GenerationsTest, AForkedChildNeverGivesItsParentsNumbers) {
  Generations generations(epochs_);
  generations.next(0);
  const auto out = temp_.path() / "child";
  const pid_t child = store_testing::fork_child([&] { replace_file(out, std::to_string(generations.next(0))); });
  ASSERT_EQ(store_testing::wait_for(child), 0);
  EXPECT_NE(read_text_file(out), std::to_string(generations.next(0)));
}

TEST_F(GenerationsTest, ProcessesAndThreadsThatRaceNeverShareOne) {
  const testing_support::TempFolder results;
  std::vector<pid_t> children;
  for (int i = 0; i < 4; ++i) {
    children.push_back(store_testing::fork_child([&] {
      std::ostringstream text;
      for (int attach = 0; attach < 20; ++attach) {
        Generations generations(epochs_);
        for (int j = 0; j < 3; ++j) text << generations.next(0) << '\n';
      }
      replace_file(results.path() / std::to_string(i), text.str());
    }));
  }
  for (const pid_t child : children) ASSERT_EQ(store_testing::wait_for(child), 0);
  std::set<std::string> seen;
  for (int i = 0; i < 4; ++i) {
    std::istringstream lines(read_text_file(results.path() / std::to_string(i)));
    for (std::string line; std::getline(lines, line);) EXPECT_TRUE(seen.insert(line).second) << line;
  }
  EXPECT_EQ(seen.size(), 4u * 20 * 3);
}

TEST_F(GenerationsTest, PruningKeepsTheGreatest) {
  for (std::uint64_t epoch = 1; epoch <= kKeptMarkers + 10; ++epoch) mark(epoch);
  EXPECT_EQ(prune_epochs(epochs_), 10u);
  EXPECT_EQ(prune_epochs(epochs_), 0u);
  EXPECT_EQ(temp_.list().size(), kKeptMarkers);
  EXPECT_EQ(Generations(epochs_).next(0) >> 24, kKeptMarkers + 11);
}

TEST_F(GenerationsTest, ForeignNamesAreNoMarkers) {
  for (const char* name : {"007", "x", "99999999999999999", "0", "-3"}) epochs_.open_file(name, O_CREAT | O_WRONLY);
  EXPECT_EQ(Generations(epochs_).next(0) >> 24, 1u);
}

TEST_F(GenerationsTest, AnImpossibleGenerationOnDiskIsCorrupt) {
  Generations generations(epochs_);
  EXPECT_THAT(message_of<Corrupt>([&] { generations.next(kMaxGeneration); }),
              ::testing::HasSubstr("9007199254740991 is on disk"));
}

TEST_F(GenerationsTest, TheLastEpochIsTheEnd) {
  mark(kMaxEpoch - 1);
  Generations generations(epochs_);
  const std::uint64_t last = generations.next(0);
  EXPECT_LE(last, kMaxGeneration);
  EXPECT_EQ(last >> 24, kMaxEpoch);
  EXPECT_THAT(message_of<Exhausted>([&] { Generations(epochs_).next(0); }), ::testing::HasSubstr("epochs are used up"));
}

}  // namespace
}  // namespace draftflow::store
