// SPDX-License-Identifier: Apache-2.0
#include "train/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "draftflow/base/error.h"
#include "draftflow/formats/tensor.h"

namespace draftflow {
namespace {

c10::ScalarType master_dtype(const at::Tensor& parameter) {
  return parameter.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace

double learning_rate_at(const OptimizerOptions& options, std::int64_t done) {
  const auto warmup = static_cast<std::int64_t>(options.warmup_ratio * static_cast<double>(options.total_steps));
  if (done < warmup) return options.learning_rate * static_cast<double>(done + 1) / static_cast<double>(warmup);
  if (done >= options.total_steps) return 0.0;
  const double progress = static_cast<double>(done - warmup) / static_cast<double>(options.total_steps - warmup);
  return 0.5 * options.learning_rate * (1.0 + std::cos(std::numbers::pi * progress));
}

Optimizer::Optimizer(NamedTensors parameters, const OptimizerOptions& options) : options_(options) {
  for (auto& [name, parameter] : parameters) {
    const at::Tensor master = parameter.detach().to(master_dtype(parameter));  // the parameter's own memory if it fits
    slots_.push_back({name, parameter, master, at::zeros_like(master), at::zeros_like(master)});
  }
}

double Optimizer::gradient_norm() const {
  double squares = 0;
  for (const Slot& slot : slots_) {
    if (!slot.parameter.grad().defined()) continue;
    squares += slot.parameter.grad().to(slot.master.scalar_type()).square().sum().item<double>();
  }
  return std::sqrt(squares);
}

OptimizerStep Optimizer::step() {
  const at::NoGradGuard no_grad;
  OptimizerStep result;
  result.grad_norm = gradient_norm();
  result.clip_factor = std::min(1.0, options_.max_grad_norm / (result.grad_norm + 1e-6));
  result.learning_rate = learning_rate_at(options_, done_);
  ++done_;
  for (Slot& slot : slots_) {
    const at::Tensor gradient = slot.parameter.grad().defined()
                                    ? slot.parameter.grad().to(slot.master.scalar_type()) * result.clip_factor
                                    : at::zeros_like(slot.master);
    update(slot, gradient, result.learning_rate);
  }
  clear_gradients();
  return result;
}

void Optimizer::update(Slot& slot, const at::Tensor& gradient, double rate) {
  const double correction1 = 1.0 - std::pow(options_.beta1, static_cast<double>(done_));
  const double correction2 = 1.0 - std::pow(options_.beta2, static_cast<double>(done_));
  slot.first.mul_(options_.beta1).add_(gradient, 1.0 - options_.beta1);
  slot.second.mul_(options_.beta2).addcmul_(gradient, gradient, 1.0 - options_.beta2);
  if (options_.weight_decay != 0) slot.master.mul_(1.0 - rate * options_.weight_decay);
  const at::Tensor denominator = (slot.second / correction2).sqrt_().add_(options_.eps);
  slot.master.addcdiv_(slot.first, denominator, -rate / correction1);
  if (!slot.master.is_alias_of(slot.parameter)) slot.parameter.detach().copy_(slot.master);
}

void Optimizer::clear_gradients() {
  for (Slot& slot : slots_) slot.parameter.mutable_grad().reset();
}

NamedTensors Optimizer::state() const {
  NamedTensors all;
  for (const Slot& slot : slots_) {
    all.emplace_back("master." + slot.name, slot.master);
    all.emplace_back("first." + slot.name, slot.first);
    all.emplace_back("second." + slot.name, slot.second);
  }
  return all;
}

void Optimizer::restore(const NamedTensors& state, std::int64_t steps_done) {
  const at::NoGradGuard no_grad;
  const auto copy = [&](const std::string& name, at::Tensor& into) {
    const auto at = std::find_if(state.begin(), state.end(), [&](const auto& entry) { return entry.first == name; });
    if (at == state.end()) throw Corrupt(fmt::format("the optimizer's state has no tensor '{}'", name));
    if (at->second.sizes() != into.sizes()) {
      throw Corrupt(fmt::format("the optimizer's state '{}' has shape {}, the draft makes it {}", name,
                                shape_text(at->second.sizes().vec()), shape_text(into.sizes().vec())));
    }
    into.copy_(at->second);
  };
  for (Slot& slot : slots_) {
    copy("master." + slot.name, slot.master);
    copy("first." + slot.name, slot.first);
    copy("second." + slot.name, slot.second);
    if (!slot.master.is_alias_of(slot.parameter)) slot.parameter.detach().copy_(slot.master);
  }
  done_ = steps_done;
}

}  // namespace draftflow
