// SPDX-License-Identifier: Apache-2.0
//
// Beside golden_test.cc: what the outside figures do not cover.
#include "train/eagle3_step.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "draftflow/base/error.h"
#include "train/testing.h"

namespace draftflow {
namespace {

using testing_support::make_draft;
using testing_support::make_sample;

struct Case {
  Eagle3Draft draft = make_draft(at::kDouble);
  at::Tensor head = testing_support::make_target().head().to(at::kDouble);
  std::vector<LoadedSample> samples{make_sample(1, 12), make_sample(2, 7), make_sample(3, 9)};

  std::vector<Eagle3Batch> cut(const std::vector<std::vector<int>>& rows) const {
    std::vector<Eagle3Batch> batches;
    for (const auto& row : rows) {
      std::vector<const LoadedSample*> members;
      for (const int i : row) members.push_back(&samples[static_cast<std::size_t>(i)]);
      batches.push_back(make_eagle3_batch(members, 2048, at::kDouble));
    }
    return batches;
  }
  NamedTensors trainable() {
    NamedTensors parameters = draft.parameters();
    for (auto& [name, parameter] : parameters) parameter.requires_grad_(true);
    return parameters;
  }
};

class EveryLoss : public ::testing::TestWithParam<LossKind> {};
INSTANTIATE_TEST_SUITE_P(Losses, EveryLoss, ::testing::Values(LossKind::kKl, LossKind::kAlpha, LossKind::kLambda));

TEST_P(EveryLoss, GradientIsTheSlopeOfTheLoss) {
  Case c;
  // One batch, as lambda's weight is held constant in the gradient and would move with the weights in the slope.
  const UnrollOptions options{.steps = 3, .loss = GetParam(), .kl_decay = 0.0};
  NamedTensors parameters = c.trainable();
  const auto loss = [&] {
    return accumulate_window(c.draft, c.head, c.cut({{0, 1, 2}}), options, LossNormalization::kTokens, "t");
  };
  loss();
  std::vector<at::Tensor> gradients;
  for (auto& [name, parameter] : parameters) {
    gradients.push_back(parameter.grad().clone());
    parameter.mutable_grad().reset();
  }
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    at::Tensor& w = parameters[i].second;
    const at::Tensor direction = at::randn_like(w);
    const double h = 1e-6;
    const auto at_offset = [&](double offset) {
      const at::NoGradGuard no_grad;
      w.add_(direction, offset);
      const at::AutoGradMode grad(true);
      const double total = loss().total;
      for (auto& [name, parameter] : parameters) parameter.mutable_grad().reset();
      const at::NoGradGuard again;
      w.add_(direction, -offset);
      return total;
    };
    const double slope = (at_offset(h) - at_offset(-h)) / (2 * h);
    const double expected = (gradients[i] * direction).sum().item<double>();
    EXPECT_NEAR(slope, expected, 2e-6 * std::max(1.0, std::abs(expected))) << parameters[i].first;
  }
}

TEST_P(EveryLoss, TheWindowDoesNotDependOnHowItIsCut) {
  const UnrollOptions options{.steps = 4, .loss = GetParam()};
  Case whole, parts;
  const NamedTensors a = whole.trainable(), b = parts.trainable();
  const auto first =
      accumulate_window(whole.draft, whole.head, whole.cut({{0, 1, 2}}), options, LossNormalization::kTokens, "t");
  const auto second =
      accumulate_window(parts.draft, parts.head, parts.cut({{2}, {0, 1}}), options, LossNormalization::kTokens, "t");
  EXPECT_NEAR(first.total, second.total, 1e-10);
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_LT((a[i].second.grad() - b[i].second.grad()).norm().item<double>(),
              1e-9 * a[i].second.grad().norm().item<double>() + 1e-14)
        << a[i].first;
  }
}

TEST(Eagle3Step, APlantedErrorMovesTheNumbers) {
  Case c;
  const UnrollOptions options{.steps = 3};
  const auto total = [&](const std::vector<Eagle3Batch>& batches) {
    const at::NoGradGuard no_grad;
    return make_teacher(batches[0], c.head, c.draft, 3).position_mask.sum().item<double>() > 0
               ? unroll(c.draft, batches[0], make_teacher(batches[0], c.head, c.draft, 3), options, {{1, 1, 1}, {1, 1, 1}, {}})
                     .total.item<double>()
               : 0.0;
  };
  const double right = total(c.cut({{0, 1, 2}}));
  auto wrong_position = c.cut({{0, 1, 2}});
  wrong_position[0].aux = shift_left(wrong_position[0].aux);  // the state of the next token
  auto wrong_target = c.cut({{0, 1, 2}});
  wrong_target[0].target_hidden = shift_left(wrong_target[0].target_hidden);  // the teacher one token late
  EXPECT_GT(std::abs(total(wrong_position) - right), 1e-6 * right);
  EXPECT_GT(std::abs(total(wrong_target) - right), 1e-6 * right);
}

TEST(Eagle3Step, AnEmptyWindowMovesNothingAndIsNoError) {
  Case c;
  LoadedSample failed = make_sample(9, 5);
  failed.failure = "unreadable";
  const std::vector<Eagle3Batch> batches{make_eagle3_batch({&failed}, 2048, at::kDouble)};
  Optimizer optimizer(c.trainable(), {.learning_rate = 1.0, .total_steps = 10});
  const at::Tensor before = c.draft.parameters()[0].second.detach().clone();
  const WindowResult result =
      train_window(c.draft, optimizer, c.head, batches, {.steps = 2}, LossNormalization::kTokens, "window 0");
  EXPECT_EQ(result.total, 0.0);
  EXPECT_TRUE(c.draft.parameters()[0].second.detach().equal(before));
}

TEST(Eagle3Step, ALossThatIsNotFiniteStopsByNameAndLeavesTheWeights) {
  Case c;
  NamedTensors parameters = c.trainable();
  Optimizer optimizer(parameters, {.learning_rate = 1.0, .total_steps = 10});
  {
    const at::NoGradGuard no_grad;
    c.draft.parameters().back().second.fill_(std::numeric_limits<double>::infinity());
  }
  const at::Tensor before = parameters[0].second.detach().clone();
  try {
    train_window(c.draft, optimizer, c.head, c.cut({{0, 1}}), {.steps = 2}, LossNormalization::kTokens, "window 17");
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_EQ(std::string(error.what()).substr(0, 34), "window 17: the loss is not finite ");
  }
  EXPECT_TRUE(parameters[0].second.detach().equal(before));
  EXPECT_FALSE(parameters[0].second.grad().defined());
  EXPECT_EQ(optimizer.steps_done(), 0);
}

TEST(Eagle3Step, NamesAreChecked) {
  EXPECT_THROW(loss_kind_from_name("ce"), InvalidArgument);
  EXPECT_THROW(loss_normalization_from_name("batch"), InvalidArgument);
}

}  // namespace
}  // namespace draftflow
