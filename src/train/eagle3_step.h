// SPDX-License-Identifier: Apache-2.0
//
// One optimizer step of EAGLE-3 training: a window of batches -> losses divided once by the window's sums -> backward ->
// clip -> AdamW. The window's loss does not depend on how it is cut into batches or padded (except under "reference").
#pragma once

#include <vector>

#include "train/eagle3_loss.h"
#include "train/optimizer.h"
#include "train/ranks.h"

namespace draftflow {

enum class LossNormalization { kTokens, kReference };
LossNormalization loss_normalization_from_name(const std::string& name);  // InvalidArgument, listing the names

struct WindowResult {
  double total = 0;                                // sum over i of decay^i loss_i
  std::vector<double> loss, accuracy, acceptance;  // [L]
  std::vector<StepSums> sums;                      // [L], over the window
  OptimizerStep optimizer;
};

// Adds the window's gradients to the draft's parameters and returns its losses. InvalidArgument for a loss that is not
// finite (named by `what`); the gradients are cleared then and no weight has changed. With `ranks`, `batches` are this rank's
// share: the result and the gradients are the whole window's, the same in every rank.
WindowResult accumulate_window(const Eagle3Draft& draft, const at::Tensor& target_head, const std::vector<Eagle3Batch>& batches,
                               const UnrollOptions& options, LossNormalization normalization, const std::string& what,
                               Ranks* ranks = nullptr);

// accumulate_window, then the optimizer's step.
WindowResult train_window(const Eagle3Draft& draft, Optimizer& optimizer, const at::Tensor& target_head,
                          const std::vector<Eagle3Batch>& batches, const UnrollOptions& options,
                          LossNormalization normalization, const std::string& what, Ranks* ranks = nullptr);

}  // namespace draftflow
