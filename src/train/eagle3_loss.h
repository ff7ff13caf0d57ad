// SPDX-License-Identifier: Apache-2.0
//
// The teacher, the unroll, and the sums that losses and metrics are made of (formulas: docs/training.md). Sums of a batch
// are kept apart from their denominators, which belong to the whole optimizer window. Pure functions over their arguments.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "train/eagle3_batch.h"
#include "train/eagle3_draft.h"

namespace draftflow {

enum class LossKind { kKl, kAlpha, kLambda };
LossKind loss_kind_from_name(const std::string& name);  // InvalidArgument, listing the names

struct UnrollOptions {
  int steps = 7;       // L
  double decay = 0.8;  // step i weighs decay^i
  LossKind loss = LossKind::kKl;
  double kl_scale = 1.0, kl_decay = 1.0;  // of lambda
};

struct Teacher {
  at::Tensor token;          // int64 [B, T + L]: the target's greedy choice, lowest id on ties
  at::Tensor probability;    // [B, T + L, D]: renormalised over the draft vocabulary (the KL target)
  at::Tensor raw;            // [B, T + L, D]: not renormalised (for the acceptance)
  at::Tensor position_mask;  // [B, T]: loss mask where the choice is in the draft vocabulary
};

// The position mask alone, at a fraction of the cost. head: the target's [V, Ht].
at::Tensor teacher_position_mask(const Eagle3Batch& batch, const at::Tensor& head, const at::Tensor& t2d);
Teacher make_teacher(const Eagle3Batch& batch, const at::Tensor& head, const Eagle3Draft& draft, int steps);

// Sums over a batch, for each unrolled step.
struct StepSums {
  double loss = 0;  // KL: sum of mask * cross entropy; alpha: sum of mask * -log alpha
  double position_mask = 0, loss_mask = 0, correct = 0, alpha = 0;
  StepSums& operator+=(const StepSums& other);
};

// sum over each shifted position mask, i = 0 .. steps - 1
std::vector<double> shifted_mask_sums(const at::Tensor& mask, int steps);

// What the sums of step i are divided by.
struct Denominators {
  std::vector<double> loss;       // [L]: mask sums of the window, or B * T * batches under "reference"
  std::vector<double> position;   // [L]: mask sums of the window
  std::vector<double> kl_weight;  // [L], lambda only: the weight of the KL term, from the window's acceptance
};

struct Unrolled {
  at::Tensor total;            // this batch's part of the window's loss; carries the graph
  std::vector<StepSums> sums;  // [L]
};

Unrolled unroll(const Eagle3Draft& draft, const Eagle3Batch& batch, const Teacher& teacher, const UnrollOptions& options,
                const Denominators& denominators);

}  // namespace draftflow
