// SPDX-License-Identifier: Apache-2.0
#include "loader/finite.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <span>
#include <vector>

namespace draftflow {
namespace {

// One floating type by its bits: the patterns next to the border between finite and not.
struct Floating {
  DType dtype;
  std::uint64_t infinity;  // sign 0, exponent all ones, mantissa 0
  std::uint64_t sign;
};

class FiniteTest : public ::testing::TestWithParam<Floating> {
 protected:
  static Tensor tensor_of(const std::vector<std::uint64_t>& patterns) {
    const std::size_t width = dtype_bytes(GetParam().dtype);
    auto [tensor, out] = Tensor::allocate(GetParam().dtype, {static_cast<std::int64_t>(patterns.size())});
    for (std::size_t i = 0; i < patterns.size(); ++i) std::memcpy(out.data() + i * width, &patterns[i], width);
    return tensor;
  }
};

TEST_P(FiniteTest, EveryFinitePatternPasses) {
  const auto [dtype, infinity, sign] = GetParam();
  const std::uint64_t largest = infinity - 1, least_denormal = 1;
  EXPECT_FALSE(find_not_finite(tensor_of({})));
  EXPECT_FALSE(find_not_finite(tensor_of({0, sign, least_denormal, sign | least_denormal, largest, sign | largest})));
}

TEST_P(FiniteTest, InfinityOfEitherSignIsNamedWithItsPlace) {
  const auto [dtype, infinity, sign] = GetParam();
  for (const std::uint64_t pattern : {infinity, sign | infinity}) {
    const auto found = find_not_finite(tensor_of({0, infinity - 1, pattern, infinity}));
    ASSERT_TRUE(found);
    EXPECT_EQ(found->what, "infinity");
    EXPECT_EQ(found->element, 2);
  }
}

TEST_P(FiniteTest, EveryKindOfNaNIsNamedWithItsPlace) {
  const auto [dtype, infinity, sign] = GetParam();
  const std::uint64_t least = infinity + 1, all_ones = sign | (sign - 1);
  for (const std::uint64_t pattern : {least, sign | least, all_ones, sign - 1}) {
    const auto found = find_not_finite(tensor_of({infinity - 1, pattern, infinity}));
    ASSERT_TRUE(found);
    EXPECT_EQ(found->what, "NaN");
    EXPECT_EQ(found->element, 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, FiniteTest,
                         ::testing::Values(Floating{DType::kBFloat16, 0x7F80, 0x8000},
                                           Floating{DType::kFloat16, 0x7C00, 0x8000},
                                           Floating{DType::kFloat32, 0x7F800000, 0x80000000},
                                           Floating{DType::kFloat64, 0x7FF0000000000000, 0x8000000000000000}),
                         [](const auto& type) { return std::string(dtype_name(type.param.dtype)); });

// The compiler's own idea of the values, where it has the type.
TEST(Finite, AgreesWithTheCompiler) {
  using Limits = std::numeric_limits<float>;
  const auto find = [](float value) {
    return find_not_finite(Tensor::copy_of(DType::kFloat32, {}, std::as_bytes(std::span(&value, 1))));
  };
  for (const float value : {Limits::max(), Limits::lowest(), Limits::min(), Limits::denorm_min(), -0.0F}) {
    EXPECT_FALSE(find(value)) << value;
  }
  EXPECT_EQ(find(Limits::infinity())->what, "infinity");
  EXPECT_EQ(find(Limits::quiet_NaN())->what, "NaN");
  EXPECT_EQ(find(-Limits::signaling_NaN())->what, "NaN");
}

TEST(Finite, IntegersAlwaysPass) {
  for (const DType dtype : {DType::kBool, DType::kUInt8, DType::kInt8, DType::kInt16, DType::kInt32, DType::kInt64}) {
    auto [tensor, out] = Tensor::allocate(dtype, {5});
    std::memset(out.data(), 0xFF, out.size());
    EXPECT_FALSE(find_not_finite(tensor)) << dtype_name(dtype);
  }
}

}  // namespace
}  // namespace draftflow
