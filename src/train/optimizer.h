// SPDX-License-Identifier: Apache-2.0
//
// AdamW on float32 masters with one global clip and the warm-up and cosine schedule (docs/training.md, step 2.7 of the
// formulas): parameters may be bfloat16, the masters and moments are float32 (float64 for float64 parameters). Owns masters
// and moments, shares the parameters. One thread.
//
//   Optimizer optimizer(draft.parameters(), options);
//   loss.backward();
//   OptimizerStep done = optimizer.step();   // clips, updates, clears the gradients
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace draftflow {

struct OptimizerOptions {
  double learning_rate = 1e-4;   // peak
  double warmup_ratio = 0.015;   // W = int(warmup_ratio * total_steps)
  std::int64_t total_steps = 0;  // N
  double max_grad_norm = 0.5;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.0;
};

struct OptimizerStep {
  double grad_norm = 0;  // before clipping
  double clip_factor = 1;
  double learning_rate = 0;
};

// The rate of the step that follows `done` optimizer steps: lr (done + 1) / W while done < W, then a cosine from lr at W to 0
// at N; past N it stays 0 (the cosine would rise again).
double learning_rate_at(const OptimizerOptions& options, std::int64_t done);

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

class Optimizer {
 public:
  Optimizer(NamedTensors parameters, const OptimizerOptions& options);

  // The global norm of the gradients in their masters' dtype. Parameters without a gradient count as zero.
  double gradient_norm() const;
  OptimizerStep step();
  void clear_gradients();
  std::int64_t steps_done() const { return done_; }
  const OptimizerOptions& options() const { return options_; }

  // Everything a resume needs: "master.<name>", "first.<name>", "second.<name>". restore takes what state gave, checks every
  // name and shape (Corrupt), and writes the masters back into the parameters.
  NamedTensors state() const;
  void restore(const NamedTensors& state, std::int64_t steps_done);

 private:
  struct Slot {
    std::string name;
    at::Tensor parameter, master, first, second;
  };
  void update(Slot& slot, const at::Tensor& gradient, double rate);

  OptimizerOptions options_;
  std::vector<Slot> slots_;
  std::int64_t done_ = 0;
};

}  // namespace draftflow
