// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/rope.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace draftflow {
namespace {

double yarn_scale(double scale, double a) {
  return scale <= 1.0 ? 1.0 : 0.1 * a * std::log(scale) + 1.0;
}

double llama3_frequency(const RopeConfig& config, double frequency) {
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  const double original = config.original_max_position;
  if (wavelength < original / config.high_freq_factor) return frequency;
  if (wavelength > original / config.low_freq_factor) return frequency / config.factor;
  const double blend = (original / wavelength - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor);
  return ((1.0 - blend) / config.factor + blend) * frequency;
}

void scale_yarn(const RopeConfig& config, std::vector<double>& frequencies) {
  const double d = static_cast<double>(config.head_dim);
  const auto correction = [&](double beta) {
    return d * std::log(config.original_max_position / (2.0 * std::numbers::pi * beta)) / (2.0 * std::log(config.base));
  };
  const double low = std::max(std::floor(correction(config.beta_fast)), 0.0);
  double high = std::min(std::ceil(correction(config.beta_slow)), d - 1.0);
  if (high == low) high += 0.001;
  for (std::size_t k = 0; k < frequencies.size(); ++k) {
    const double ramp = std::clamp((static_cast<double>(k) - low) / (high - low), 0.0, 1.0);
    const double keep = 1.0 - ramp;
    frequencies[k] = frequencies[k] / config.factor * (1.0 - keep) + frequencies[k] * keep;
  }
}

}  // namespace

std::pair<std::vector<double>, double> rope_frequencies(const RopeConfig& config, std::int64_t scaled_length) {
  const double d = static_cast<double>(config.head_dim);
  double base = config.base;
  if (config.kind == RopeKind::kDynamic) {
    const double longest = static_cast<double>(std::max(scaled_length, config.max_position_embeddings));
    const double ratio = longest / static_cast<double>(config.max_position_embeddings);
    base *= std::pow(config.factor * ratio - (config.factor - 1.0), d / (d - 2.0));
  }
  std::vector<double> frequencies(static_cast<std::size_t>(config.head_dim / 2));
  for (std::size_t k = 0; k < frequencies.size(); ++k) {
    frequencies[k] = std::pow(base, -2.0 * static_cast<double>(k) / d);
    if (config.kind == RopeKind::kLinear) frequencies[k] /= config.factor;
    if (config.kind == RopeKind::kLlama3) frequencies[k] = llama3_frequency(config, frequencies[k]);
  }
  if (config.kind != RopeKind::kYarn) return {std::move(frequencies), 1.0};
  scale_yarn(config, frequencies);
  return {std::move(frequencies), yarn_scale(config.factor, config.mscale) / yarn_scale(config.factor, config.mscale_all_dim)};
}

RopeTables build_rope(const RopeConfig& config, std::int64_t length, std::int64_t scaled_length, c10::ScalarType dtype) {
  const auto [frequencies, magnitude] = rope_frequencies(config, scaled_length);
  const at::Tensor inverse = at::tensor(at::ArrayRef<double>(frequencies), at::kDouble);
  const at::Tensor positions = at::arange(length, at::kDouble);
  const at::Tensor half = positions.unsqueeze(1) * inverse.unsqueeze(0);
  const at::Tensor angles = at::cat({half, half}, 1);
  return {(angles.cos() * magnitude).to(dtype), (angles.sin() * magnitude).to(dtype)};
}

at::Tensor apply_rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  return x * cos + at::cat({-halves[1], halves[0]}, -1) * sin;
}

}  // namespace draftflow
