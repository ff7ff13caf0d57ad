// SPDX-License-Identifier: Apache-2.0
#include "cli/progress_bar.h"

#include <gtest/gtest.h>

#include <sstream>

namespace draftflow::cli {
namespace {

const ProgressLine kHalf{"train", 50, 100, "steps", 3.4, 14.7, "loss 2.31"};

TEST(ProgressBar, BarHasShareRateAndTimeLeft) {
  EXPECT_EQ(format_bar(kHalf, 200, false),
            "train    [############............] 50/100 steps  50 %  3.40 steps/s  15 s left  loss 2.31");
}

TEST(ProgressBar, IsCutToTheTerminal) {
  EXPECT_EQ(format_bar(kHalf, 40, false).size(), 40u);
  const std::string utf8 = format_bar(kHalf, 12, true);
  EXPECT_EQ(utf8, "train    [\xE2\x96\x88\xE2\x96\x88");  // a character is never cut in two
}

TEST(ProgressBar, PlainLineForLogs) {
  EXPECT_EQ(format_plain(kHalf), "train: 50/100 steps  50 %  3.40 steps/s  15 s left  loss 2.31");
}

TEST(ProgressBar, UnknownTotalAndTimeAreLeftOut) {
  EXPECT_EQ(format_plain({"capture", 7, 0, "prompts", 0, -1, ""}), "capture: 7 prompts");
  EXPECT_EQ(format_plain({"capture", 7, 7, "prompts", 0, 0, ""}), "capture: 7/7 prompts  100 %");
}

TEST(RateMeter, CountsOverItsWindowOnly) {
  RateMeter meter(10);
  EXPECT_EQ(meter.rate(), 0);
  EXPECT_LT(meter.seconds_left(100), 0);
  meter.add(0, 0);
  meter.add(100, 10);
  meter.add(105, 60);
  EXPECT_DOUBLE_EQ(meter.rate(), 10);
  EXPECT_DOUBLE_EQ(meter.seconds_left(160), 10);
}

TEST(RateMeter, StartsAnewWhenACountGoesBack) {
  RateMeter meter;
  meter.add(0, 100);
  meter.add(1, 20);
  EXPECT_EQ(meter.rate(), 0);
  meter.add(2, 25);
  EXPECT_DOUBLE_EQ(meter.rate(), 5);
}

TEST(ProgressBoard, WithoutATerminalTheLastStateIsALineWithoutControlBytes) {
  std::ostringstream out;
  {
    ProgressBoard board(out, false);
    board.show({kHalf});
    board.say("hello");
  }
  EXPECT_EQ(out.str(), "hello\n" + format_plain(kHalf) + "\n");
}

TEST(ProgressBoard, OnATerminalLinesAreRedrawnInPlace) {
  std::ostringstream out;
  ProgressBoard board(out, true);
  board.show({kHalf, kHalf});
  board.say("first");
  board.say("second");
  board.finish();
  const std::string text = out.str();
  EXPECT_NE(text.find("\x1b[1A\x1b[2K\x1b[1A\x1b[2Ksecond\n"), std::string::npos) << text;
}

}  // namespace
}  // namespace draftflow::cli
