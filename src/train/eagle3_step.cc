// SPDX-License-Identifier: Apache-2.0
#include "train/eagle3_step.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

double divide(double numerator, double denominator) {
  return denominator == 0 ? 0 : numerator / denominator;
}

std::vector<double> window_mask_sums(const Eagle3Draft& draft, const at::Tensor& head, const std::vector<Eagle3Batch>& batches,
                                     int steps) {
  std::vector<double> sums(static_cast<std::size_t>(steps), 0.0);
  for (const Eagle3Batch& batch : batches) {
    if (batch.empty()) continue;
    const auto part = shifted_mask_sums(teacher_position_mask(batch, head, draft.t2d()), steps);
    std::transform(sums.begin(), sums.end(), part.begin(), sums.begin(), std::plus<>());
  }
  return sums;
}

void add(std::vector<StepSums>& into, const std::vector<StepSums>& from) {
  for (std::size_t i = 0; i < into.size(); ++i) into[i] += from[i];
}

void sum_over(Ranks* ranks, std::vector<double>& values) {
  if (ranks != nullptr) ranks->sum(values);
}

void sum_over(Ranks* ranks, std::vector<StepSums>& sums) {
  std::vector<double> values;
  for (const StepSums& step : sums) {
    values.insert(values.end(), {step.loss, step.position_mask, step.loss_mask, step.correct, step.alpha});
  }
  sum_over(ranks, values);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const double* const step = &values[5 * i];
    sums[i] = {.loss = step[0], .position_mask = step[1], .loss_mask = step[2], .correct = step[3], .alpha = step[4]};
  }
}

// The weights of lambda's KL terms come from the acceptance of the whole window, so that they do not depend on how it is
// cut: one more pass without gradients.
std::vector<double> kl_weights(const Eagle3Draft& draft, const at::Tensor& head, const std::vector<Eagle3Batch>& batches,
                               const UnrollOptions& options, Denominators denominators, Ranks* ranks) {
  const at::NoGradGuard no_grad;
  UnrollOptions plain = options;
  plain.loss = LossKind::kKl;
  std::vector<StepSums> sums(static_cast<std::size_t>(options.steps));
  for (const Eagle3Batch& batch : batches) {
    if (!batch.empty())
      add(sums, unroll(draft, batch, make_teacher(batch, head, draft, options.steps), plain, denominators).sums);
  }
  sum_over(ranks, sums);
  std::vector<double> weights;
  for (const StepSums& step : sums) {
    weights.push_back(options.kl_scale * std::exp(-options.kl_decay * step.alpha / std::max(step.position_mask, 1e-8)));
  }
  return weights;
}

void clear_gradients(const Eagle3Draft& draft) {
  for (const auto& [name, parameter] : draft.parameters()) parameter.mutable_grad().reset();
}

[[noreturn]] void refuse(const Eagle3Draft& draft, const std::string& what, const char* found) {
  clear_gradients(draft);
  throw InvalidArgument(
      fmt::format("{}: the {} is not finite though every feature is; no weight was changed. A lower learning "
                  "rate, or float32 in place of bfloat16, is the usual cure",
                  what, found));
}

// `quotients`: the sums over their denominators, added up over the batches.
void report(WindowResult& result, const UnrollOptions& options, const Denominators& den, const std::vector<double>& quotients) {
  double weight = 1.0;
  for (std::size_t i = 0; i < result.sums.size(); ++i) {
    const StepSums& sums = result.sums[i];
    const double acceptance = sums.alpha / std::max(sums.position_mask, 1e-8);
    double loss = quotients[i];
    if (options.loss == LossKind::kLambda) {
      loss = den.kl_weight[i] * loss + (den.position[i] == 0 ? 0 : (1.0 - den.kl_weight[i]) * (1.0 - acceptance));
    }
    result.loss.push_back(loss);
    result.accuracy.push_back(sums.correct / std::max(sums.loss_mask, 1e-6));
    result.acceptance.push_back(acceptance);
    result.total += weight * loss;
    weight *= options.decay;
  }
}

}  // namespace

LossNormalization loss_normalization_from_name(const std::string& name) {
  if (name == "tokens") return LossNormalization::kTokens;
  if (name == "reference") return LossNormalization::kReference;
  throw InvalidArgument(fmt::format("loss normalization '{}' is not known: tokens and reference are", name));
}

WindowResult accumulate_window(const Eagle3Draft& draft, const at::Tensor& target_head, const std::vector<Eagle3Batch>& batches,
                               const UnrollOptions& options, LossNormalization normalization, const std::string& what,
                               Ranks* ranks) {
  WindowResult result;
  result.sums.resize(static_cast<std::size_t>(options.steps));
  Denominators den;
  den.position = window_mask_sums(draft, target_head, batches, options.steps);
  std::vector<double> used{static_cast<double>(
      std::count_if(batches.begin(), batches.end(), [](const Eagle3Batch& batch) { return !batch.empty(); }))};
  sum_over(ranks, den.position);
  sum_over(ranks, used);
  den.loss = den.position;
  if (options.loss == LossKind::kLambda) den.kl_weight = kl_weights(draft, target_head, batches, options, den, ranks);
  std::vector<double> quotients(static_cast<std::size_t>(options.steps), 0.0);
  const std::vector<double>& divisor = options.loss == LossKind::kAlpha ? den.position : den.loss;
  for (const Eagle3Batch& batch : batches) {
    if (batch.empty()) continue;
    if (normalization == LossNormalization::kReference) {
      const double cells = static_cast<double>(batch.input_ids.numel()) * used[0];
      std::fill(den.loss.begin(), den.loss.end(), cells);
    }
    const Teacher teacher = make_teacher(batch, target_head, draft, options.steps);
    Unrolled unrolled = unroll(draft, batch, teacher, options, den);
    if (!std::isfinite(unrolled.total.item<double>())) refuse(draft, what, "loss");
    unrolled.total.backward();
    add(result.sums, unrolled.sums);
    for (std::size_t i = 0; i < quotients.size(); ++i) quotients[i] += divide(unrolled.sums[i].loss, divisor[i]);
  }
  if (ranks != nullptr) ranks->sum_gradients(draft.parameters());
  sum_over(ranks, result.sums);
  sum_over(ranks, quotients);
  report(result, options, den, quotients);
  return result;
}

WindowResult train_window(const Eagle3Draft& draft, Optimizer& optimizer, const at::Tensor& target_head,
                          const std::vector<Eagle3Batch>& batches, const UnrollOptions& options,
                          LossNormalization normalization, const std::string& what, Ranks* ranks) {
  WindowResult result = accumulate_window(draft, target_head, batches, options, normalization, what, ranks);
  if (!std::isfinite(optimizer.gradient_norm())) refuse(draft, what, "gradient");
  result.optimizer = optimizer.step();
  return result;
}

}  // namespace draftflow
