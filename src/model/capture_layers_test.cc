// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/capture_layers.h"

#include <gtest/gtest.h>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

TEST(CaptureLayers, FormulaFromSevenLayersOn) {
  EXPECT_EQ(default_capture_layers(7), (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(default_capture_layers(32), (std::vector<int>{1, 15, 28}));
  for (const int layers : {1, 5, 6}) EXPECT_THROW(default_capture_layers(layers), InvalidArgument);
}

TEST(CaptureLayers, ThreeDifferentOnesOfTheTarget) {
  EXPECT_NO_THROW(check_capture_layers({0, 2, 4}, 5));
  EXPECT_THROW(check_capture_layers({1, 2, 2}, 6), InvalidArgument);
  EXPECT_THROW(check_capture_layers({1, 2}, 6), InvalidArgument);
  EXPECT_THROW(check_capture_layers({1, 2, 6}, 6), InvalidArgument);
  EXPECT_THROW(check_capture_layers({-1, 2, 3}, 6), InvalidArgument);
}

}  // namespace
}  // namespace draftflow
