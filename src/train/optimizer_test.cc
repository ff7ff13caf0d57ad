// SPDX-License-Identifier: Apache-2.0
#include "train/optimizer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

TEST(Optimizer, ScheduleWarmsUpThenFallsToZeroAndStays) {
  const OptimizerOptions options{.learning_rate = 1.0, .warmup_ratio = 0.1, .total_steps = 100};
  EXPECT_DOUBLE_EQ(learning_rate_at(options, 0), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate_at(options, 9), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate_at(options, 10), 1.0);
  EXPECT_NEAR(learning_rate_at(options, 55), 0.5, 1e-12);
  EXPECT_EQ(learning_rate_at(options, 100), 0.0);
  EXPECT_EQ(learning_rate_at(options, 150), 0.0);
  EXPECT_DOUBLE_EQ(learning_rate_at({.learning_rate = 1.0, .warmup_ratio = 0.0, .total_steps = 10}, 0), 1.0);
}

TEST(Optimizer, TwoStepsByHand) {
  at::Tensor w = at::full({1}, 2.0, at::kDouble).requires_grad_(true);
  Optimizer optimizer({{"w", w}}, {.learning_rate = 0.1, .warmup_ratio = 0, .total_steps = 1000000, .max_grad_norm = 0.5});
  double m = 0, v = 0, expected = 2.0;
  for (int step = 1; step <= 2; ++step) {
    (w * 3).sum().backward();  // the gradient is 3; clipped to 0.5
    const OptimizerStep done = optimizer.step();
    EXPECT_DOUBLE_EQ(done.grad_norm, 3.0);
    const double g = 3.0 * (0.5 / (3.0 + 1e-6));
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    expected -= done.learning_rate * (m / (1 - std::pow(0.9, step))) / (std::sqrt(v / (1 - std::pow(0.999, step))) + 1e-8);
    EXPECT_NEAR(w.item<double>(), expected, 1e-12);
    EXPECT_FALSE(w.grad().defined());
  }
}

// A bfloat16 parameter would never move by steps under its own resolution; its float32 master does.
TEST(Optimizer, MastersGatherStepsTooSmallForTheParameter) {
  at::Tensor w = at::ones({1}, at::kBFloat16).requires_grad_(true);
  Optimizer optimizer({{"w", w}}, {.learning_rate = 1e-4, .warmup_ratio = 0, .total_steps = 1000000});
  for (int step = 0; step < 100; ++step) {
    w.sum().backward();
    optimizer.step();
    if (step == 0) {
      EXPECT_EQ(w.item<float>(), 1.0F);
    }
  }
  EXPECT_NEAR(w.item<float>(), 0.99F, 0.004F);
}

TEST(Optimizer, RestoredStateGoesOnToTheSameNumbers) {
  const OptimizerOptions options{.learning_rate = 0.01, .warmup_ratio = 0.1, .total_steps = 20};
  const auto run = [&](Optimizer& optimizer, at::Tensor& w, int steps) {
    for (int i = 0; i < steps; ++i) {
      (w * w).sum().backward();
      optimizer.step();
    }
  };
  at::Tensor straight = at::arange(4, at::kFloat).requires_grad_(true), first = at::arange(4, at::kFloat).requires_grad_(true);
  Optimizer whole({{"w", straight}}, options), part({{"w", first}}, options);
  run(whole, straight, 10);
  run(part, first, 6);
  at::Tensor second = at::zeros({4}, at::kFloat).requires_grad_(true);
  Optimizer rest({{"w", second}}, options);
  rest.restore(part.state(), 6);
  run(rest, second, 4);
  EXPECT_TRUE(second.equal(straight));
}

TEST(Optimizer, RefusesAStateThatIsNotItsOwn) {
  at::Tensor w = at::ones({2}, at::kFloat).requires_grad_(true), other = at::ones({3}, at::kFloat).requires_grad_(true);
  Optimizer optimizer({{"w", w}}, {.total_steps = 1});
  EXPECT_THROW(optimizer.restore({}, 1), Corrupt);
  EXPECT_THROW(optimizer.restore(Optimizer({{"w", other}}, {.total_steps = 1}).state(), 1), Corrupt);
}

}  // namespace
}  // namespace draftflow
