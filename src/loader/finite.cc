// SPDX-License-Identifier: Apache-2.0
#include "loader/finite.h"

namespace draftflow {
namespace {

// A floating number is NaN or infinite when all its exponent bits are set; NaN has mantissa bits besides.
template <class Bits>
std::optional<NotFinite> scan(const Tensor& tensor, Bits exponent, Bits mantissa) {
  const auto values = tensor.as<Bits>();
  for (std::size_t i = 0; i < values.size(); ++i) {
    if ((values[i] & exponent) == exponent) {
      return NotFinite{(values[i] & mantissa) != 0 ? "NaN" : "infinity", static_cast<std::int64_t>(i)};
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<NotFinite> find_not_finite(const Tensor& tensor) {
  switch (tensor.dtype) {
    case DType::kBFloat16: return scan<std::uint16_t>(tensor, 0x7F80, 0x007F);
    case DType::kFloat16: return scan<std::uint16_t>(tensor, 0x7C00, 0x03FF);
    case DType::kFloat32: return scan<std::uint32_t>(tensor, 0x7F800000U, 0x007FFFFFU);
    case DType::kFloat64: return scan<std::uint64_t>(tensor, 0x7FF0000000000000ULL, 0x000FFFFFFFFFFFFFULL);
    default: return std::nullopt;
  }
}

}  // namespace draftflow
