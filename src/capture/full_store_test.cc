// SPDX-License-Identifier: Apache-2.0
//
// The capture worker when the store's budget or its disk is full.
#include <sys/mount.h>

#include <cerrno>
#include <cstring>

#include "capture/capture_testing.h"
#include "draftflow/base/error.h"

namespace draftflow {
namespace {

using namespace capture_testing;
using testing::HasSubstr;
using testing::ThrowsMessage;

TEST_F(CaptureTest, AFullBudgetPausesUntilStopped) {
  ingest(id_prompts(3));
  options_.lease_tasks = 1;
  options_.high_watermark_bytes = options_.low_watermark_bytes = kSampleBytes + 1;
  int pauses = 0;
  const CaptureProgress paused = capture([&](const CaptureProgress& progress) {
    if (progress.paused && ++pauses == 3) stop_ = true;
  });
  EXPECT_EQ(paused.captured, 2) << "the second passes the mark";
  EXPECT_GT(paused.paused_seconds, 0);
  EXPECT_EQ(status().prompts_pending, 1);
  stop_ = false;
  options_.high_watermark_bytes = 1 << 20;
  EXPECT_EQ(capture().captured, 1);
}

// Nothing would ever be freed: the bytes wait for the stream's end, and the stream for bytes.
TEST_F(CaptureTest, AFullBudgetThatCannotEmptyIsRefusedWithTheArithmetic) {
  ingest(id_prompts(3));
  ledger()->declare_group({.group = GroupId("train"), .window = 1, .passes = 2});
  options_.lease_tasks = 1;
  options_.high_watermark_bytes = options_.low_watermark_bytes = kSampleBytes + 1;
  EXPECT_THAT([&] { capture(); },
              ThrowsMessage<Exhausted>(testing::AllOf(HasSubstr("group 'train' trains each sample 2 times"),
                                                      HasSubstr("2 of 3 prompts"), HasSubstr("or train one epoch"))));
  EXPECT_EQ(status().committed, 2);
  EXPECT_EQ(status().prompts_pending, 1);
  options_.high_watermark_bytes = 1 << 20;
  EXPECT_EQ(capture().captured, 1);
}

TEST_F(CaptureTest, AFullBudgetWaitsForTheEndOfAStreamThatHasCapturedAll) {
  options_.keep_open = true;
  ingest(id_prompts(2));
  ledger()->declare_group({.group = GroupId("train"), .window = 1, .passes = 2});
  options_.high_watermark_bytes = options_.low_watermark_bytes = kSampleBytes + 1;
  int pauses = 0;
  const CaptureProgress progress = capture([&](const CaptureProgress& now) {
    if (now.paused && ++pauses == 2) ledger()->close_prompts();
  });
  EXPECT_EQ(progress.captured, 2);
  EXPECT_GE(pauses, 2);
}

TEST_F(CaptureTest, WithNothingLeftToCaptureAFullBudgetIsNoReasonToWait) {
  options_.high_watermark_bytes = options_.low_watermark_bytes = 1;
  prompts(id_prompts(1));
  int pauses = 0;
  capture([&](const CaptureProgress& progress) {
    if (progress.paused && ++pauses == 20) stop_ = true;  // or it would wait for ever
  });
  EXPECT_EQ(pauses, 0);
  EXPECT_EQ(status().prompts_done, 1);
}

class FullDiskTest : public CaptureTest {
 protected:
  // Smaller than the free space that the store keeps, so that nothing can be put.
  FullDiskTest() : mounted_(::mount("none", disk_.path().c_str(), "tmpfs", 0, "size=8m") == 0), error_(errno) {
    options_.store = disk_.path() / "features";
  }
  ~FullDiskTest() override {
    if (mounted_) ::umount2(disk_.path().c_str(), MNT_DETACH);
  }
  void SetUp() override {
    if (!mounted_) GTEST_SKIP() << "a tmpfs cannot be mounted here: " << std::strerror(error_);
    ingest(id_prompts(6));
  }
  bool nothing_half_written() const {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(options_.store)) {
      if (entry.path().extension() == ".safetensors") return false;
    }
    return std::filesystem::is_empty(options_.store / "tmp");
  }

  const testing_support::TempFolder disk_;
  bool mounted_;
  int error_;
};

TEST_F(FullDiskTest, AStopEndsTheWaitAndNothingIsLostOrHalfWritten) {
  int pauses = 0;
  options_.lease_ms = kHour;
  const CaptureProgress progress = capture([&](const CaptureProgress& now) {
    if (now.paused && ++pauses == 3) stop_ = true;
  });
  EXPECT_EQ(pauses, 3);
  EXPECT_EQ(progress.captured, 0);
  EXPECT_GT(progress.paused_seconds, 0);
  EXPECT_TRUE(nothing_half_written());
  EXPECT_EQ(status().prompts_pending, 6) << "neither failed nor kept leased";
  EXPECT_EQ(status().committed, 0);
}

TEST_F(FullDiskTest, ItGoesOnWhenThereIsRoom) {
  int pauses = 0;
  const CaptureProgress progress = capture([&](const CaptureProgress& now) {
    if (!now.paused || ++pauses != 2) return;
    EXPECT_EQ(::mount("none", disk_.path().c_str(), "tmpfs", MS_REMOUNT, "size=256m"), 0) << std::strerror(errno);
  });
  EXPECT_EQ(progress.captured, 6);
  expect_complete(6);
}

// While it waited for room its lease ran out, and another has captured the prompt.
TEST_F(FullDiskTest, WhenThereIsRoomAgainItAsksWhetherThePromptIsStillItsOwn) {
  options_.lease_ms = 20;
  const auto other = ledger();
  std::vector<PromptLease> taken;
  capture([&](const CaptureProgress& now) {
    if (!now.paused || !taken.empty()) return;
    while (taken.size() < 6) {
      for (PromptLease& lease : other->lease_prompts(HolderId("other"), 6, kHour).leases) taken.push_back(std::move(lease));
    }
    EXPECT_EQ(::mount("none", disk_.path().c_str(), "tmpfs", MS_REMOUNT, "size=256m"), 0) << std::strerror(errno);
    for (const PromptLease& lease : taken) {
      const TensorMap features = {{"input_ids", from_torch(at::zeros({3}, at::kLong))}};
      const SampleId id(lease.task.task_id.str());
      other->commit_sample(store()->put(features, id, {.run_id = RunId("r"), .num_tokens = 3}), lease);
    }
  });
  ASSERT_EQ(taken.size(), 6u);
  EXPECT_EQ(status().committed, 6);
  for (const SampleRef& ref : refs()) EXPECT_NO_THROW(store()->read(ref)) << ref.sample_id.str();
}

}  // namespace
}  // namespace draftflow
