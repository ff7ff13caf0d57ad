// SPDX-License-Identifier: Apache-2.0
//
// Each scaling against values worked out by hand from its formula.
#include "draftflow/model/rope.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace draftflow {
namespace {

RopeConfig config(RopeKind kind) {
  RopeConfig rope;
  rope.kind = kind;
  rope.head_dim = 8;
  rope.max_position_embeddings = 128;
  rope.factor = 4.0;
  return rope;
}

TEST(Rope, DefaultIsAPowerOfTheBase) {
  const auto [f, scale] = rope_frequencies(config(RopeKind::kDefault), 128);
  ASSERT_EQ(f.size(), 4u);
  EXPECT_DOUBLE_EQ(f[0], 1.0);
  EXPECT_NEAR(f[1], 0.1, 1e-15);
  EXPECT_NEAR(f[3], 0.001, 1e-15);
  EXPECT_EQ(scale, 1.0);
}

TEST(Rope, LinearDividesPositions) {
  EXPECT_NEAR(rope_frequencies(config(RopeKind::kLinear), 128).first[1], 0.025, 1e-15);
}

TEST(Rope, DynamicGrowsTheBaseWithTheLength) {
  const RopeConfig rope = config(RopeKind::kDynamic);
  EXPECT_NEAR(rope_frequencies(rope, 64).first[1], 0.1, 1e-15);  // within the trained length nothing changes
  const double base = 10000.0 * std::pow(4.0 * 2.0 - 3.0, 8.0 / 6.0);
  EXPECT_NEAR(rope_frequencies(rope, 256).first[1], std::pow(base, -0.25), 1e-15);
}

TEST(Rope, Llama3KeepsShortWavesAndStretchesLongOnes) {
  RopeConfig rope = config(RopeKind::kLlama3);
  rope.original_max_position = 256;
  const auto f = rope_frequencies(rope, 128).first;
  EXPECT_DOUBLE_EQ(f[0], 1.0);                           // wavelength 6.3 < 256 / 4
  EXPECT_NEAR(f[3], 0.001 / 4, 1e-15);                   // wavelength 6283 > 256 / 1
  const double wavelength = 2 * std::numbers::pi / 0.1;  // 62.8, just below 64: kept
  EXPECT_LT(wavelength, 64);
  EXPECT_NEAR(f[1], 0.1, 1e-15);
  rope.original_max_position = 128;  // now between 32 and 128: blended
  const double blend = (128 / wavelength - 1) / 3;
  EXPECT_NEAR(rope_frequencies(rope, 128).first[1], ((1 - blend) / 4 + blend) * 0.1, 1e-15);
}

TEST(Rope, YarnRampsBetweenTheTwoAndScalesMagnitude) {
  RopeConfig rope = config(RopeKind::kYarn);
  rope.original_max_position = 128;
  const auto [f, scale] = rope_frequencies(rope, 128);
  EXPECT_NEAR(scale, 0.1 * std::log(4.0) + 1.0, 1e-15);
  // c(32) = 8 ln(128 / 64 pi) / (2 ln 10000) = -0.196 -> low 0; c(1) = 1.309 -> high 2.
  EXPECT_NEAR(f[0], 1.0, 1e-15);
  EXPECT_NEAR(f[1], 0.1 / 4 * 0.5 + 0.1 * 0.5, 1e-15);
  EXPECT_NEAR(f[2], 0.01 / 4, 1e-15);
  EXPECT_NEAR(f[3], 0.001 / 4, 1e-15);
}

TEST(Rope, RotationKeepsLengthsAndDependsOnDistanceAlone) {
  const RopeTables tables = build_rope(config(RopeKind::kDefault), 32, 32, at::kDouble);
  const at::Tensor q = at::randn({1, 8}, at::kDouble), k = at::randn({1, 8}, at::kDouble);
  const auto rotated = [&](const at::Tensor& x, std::int64_t p) {
    return apply_rope(x, tables.cos.narrow(0, p, 1), tables.sin.narrow(0, p, 1));
  };
  EXPECT_NEAR(rotated(q, 9).norm().item<double>(), q.norm().item<double>(), 1e-12);
  const double near = (rotated(q, 5) * rotated(k, 2)).sum().item<double>();
  const double far = (rotated(q, 25) * rotated(k, 22)).sum().item<double>();
  EXPECT_NEAR(near, far, 1e-12);
}

}  // namespace
}  // namespace draftflow
