// SPDX-License-Identifier: Apache-2.0
#include "train/eagle3_loss.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

constexpr std::int64_t kVocabChunk = 32768;  // tokens of the target's vocabulary looked at together

c10::ScalarType wide_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

struct GreedyChoice {
  at::Tensor token;    // int64 [B, T]
  at::Tensor log_sum;  // [B, T]: log of the sum of exp over the whole vocabulary
};

// A running maximum and sum over chunks of the vocabulary: [B, T, V] never exists at once.
GreedyChoice greedy_choice(const at::Tensor& hidden, const at::Tensor& head) {
  GreedyChoice best;
  at::Tensor maximum;
  for (std::int64_t begin = 0; begin < head.size(0); begin += kVocabChunk) {
    const at::Tensor rows = head.narrow(0, begin, std::min(kVocabChunk, head.size(0) - begin));
    const at::Tensor z = at::linear(hidden, rows).to(wide_type(hidden));
    const auto [chunk_max, chunk_arg] = z.max(-1);
    const at::Tensor log_sum = at::logsumexp(z, -1);
    if (begin == 0) {
      maximum = chunk_max;
      best = {chunk_arg, log_sum};
      continue;
    }
    const at::Tensor better = chunk_max.gt(maximum);  // strictly: ties keep the lower id
    best.token = at::where(better, chunk_arg + begin, best.token);
    best.log_sum = at::logaddexp(best.log_sum, log_sum);
    maximum = at::maximum(maximum, chunk_max);
  }
  return best;
}

at::Tensor mask_positions(const at::Tensor& token, const at::Tensor& t2d, const at::Tensor& loss_mask) {
  return t2d.index_select(0, token.flatten()).view_as(token).to(loss_mask.scalar_type()) * loss_mask;
}

double sum_of(const at::Tensor& x) {
  return x.sum(at::kDouble).item<double>();
}

double ratio(double numerator, double denominator) {
  return denominator == 0 ? 0 : numerator / denominator;
}

// The graph's contribution of one step, and the plain sum reported for it.
struct StepLoss {
  at::Tensor term;
  double sum = 0;
};

StepLoss step_loss(const UnrollOptions& options, const Denominators& den, std::size_t i, const at::Tensor& log_q,
                   const at::Tensor& probability, const at::Tensor& alpha, const at::Tensor& mask) {
  if (options.loss == LossKind::kAlpha) {
    // log of a positive alpha only: a zero row would send NaN back.
    const at::Tensor safe = at::where(alpha.gt(0), alpha, at::ones_like(alpha));
    const at::Tensor sum = -(safe.log() * mask).sum();
    return {sum * ratio(1.0, den.position[i]), sum.item<double>()};
  }
  const at::Tensor sum = -((probability * log_q).sum(-1) * mask).sum();
  const at::Tensor kl = sum * ratio(1.0, den.loss[i]);
  if (options.loss == LossKind::kKl) return {kl, sum.item<double>()};
  // 1 - acceptance: the constant carries no gradient and is added once, to the reported loss.
  const double weight = den.kl_weight[i];
  return {weight * kl - (1.0 - weight) * (alpha * mask).sum() * ratio(1.0, den.position[i]), sum.item<double>()};
}

}  // namespace

LossKind loss_kind_from_name(const std::string& name) {
  if (name == "kl") return LossKind::kKl;
  if (name == "alpha") return LossKind::kAlpha;
  if (name == "lambda") return LossKind::kLambda;
  throw InvalidArgument(fmt::format("loss '{}' is not known: kl, alpha and lambda are", name));
}

at::Tensor teacher_position_mask(const Eagle3Batch& batch, const at::Tensor& head, const at::Tensor& t2d) {
  const at::NoGradGuard no_grad;
  return mask_positions(greedy_choice(batch.target_hidden, head).token, t2d, batch.loss_mask);
}

Teacher make_teacher(const Eagle3Batch& batch, const at::Tensor& head, const Eagle3Draft& draft, int steps) {
  const at::NoGradGuard no_grad;
  const GreedyChoice choice = greedy_choice(batch.target_hidden, head);
  const at::Tensor z = at::linear(batch.target_hidden, head.index_select(0, draft.used())).to(wide_type(batch.target_hidden));
  Teacher teacher;
  teacher.position_mask = mask_positions(choice.token, draft.t2d(), batch.loss_mask);
  teacher.token = at::constant_pad_nd(choice.token, {0, steps}, 0);
  teacher.probability = at::constant_pad_nd(at::softmax(z, -1), {0, 0, 0, steps}, 1.0 / static_cast<double>(z.size(-1)));
  teacher.raw = at::constant_pad_nd((z - choice.log_sum.unsqueeze(-1)).exp(), {0, 0, 0, steps}, 0);
  return teacher;
}

StepSums& StepSums::operator+=(const StepSums& other) {
  loss += other.loss;
  position_mask += other.position_mask;
  loss_mask += other.loss_mask;
  correct += other.correct;
  alpha += other.alpha;
  return *this;
}

std::vector<double> shifted_mask_sums(const at::Tensor& mask, int steps) {
  std::vector<double> sums;
  for (std::int64_t i = 0; i < steps; ++i) {
    sums.push_back(i >= mask.size(1) ? 0.0 : sum_of(mask.narrow(1, i, mask.size(1) - i)));
  }
  return sums;
}

Unrolled unroll(const Eagle3Draft& draft, const Eagle3Batch& batch, const Teacher& teacher, const UnrollOptions& options,
                const Denominators& denominators) {
  const std::int64_t t = batch.input_ids.size(1);
  Unrolled result;
  UnrollCache cache = draft.start_unroll(t, options.steps);
  at::Tensor g = draft.project(batch.aux), ids = batch.input_ids;
  at::Tensor position_mask = teacher.position_mask, loss_mask = batch.loss_mask;
  double weight = 1.0;
  for (int i = 0; i < options.steps; ++i) {
    g = draft.step(g, draft.embed(ids), cache);
    const at::Tensor logits = draft.logits(g);
    const at::Tensor log_q = at::log_softmax(logits, -1, wide_type(logits));
    const at::Tensor raw = teacher.raw.narrow(1, i, t), token = teacher.token.narrow(1, i, t);
    at::Tensor alpha;
    {
      const at::AutoGradMode only_if_trained(options.loss != LossKind::kKl && at::GradMode::is_enabled());
      alpha = at::minimum(raw, log_q.exp()).sum(-1);
    }
    const StepLoss loss = step_loss(options, denominators, static_cast<std::size_t>(i), log_q,
                                    teacher.probability.narrow(1, i, t), alpha, position_mask);
    result.total = result.total.defined() ? result.total + loss.term * weight : loss.term * weight;
    const at::Tensor said = draft.used().index_select(0, logits.argmax(-1).flatten()).view({-1, t});
    result.sums.push_back({.loss = loss.sum,
                           .position_mask = sum_of(position_mask),
                           .loss_mask = sum_of(loss_mask),
                           .correct = sum_of(said.eq(token).to(loss_mask.scalar_type()) * loss_mask),
                           .alpha = sum_of(alpha.detach() * position_mask)});
    weight *= options.decay;
    ids = shift_left(ids);
    position_mask = shift_left(position_mask);
    loss_mask = shift_left(loss_mask);
  }
  return result;
}

}  // namespace draftflow
