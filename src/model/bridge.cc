// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/bridge.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "draftflow/base/error.h"

namespace draftflow {

c10::ScalarType to_torch_dtype(DType dtype) {
  switch (dtype) {
    case DType::kBool: return c10::kBool;
    case DType::kUInt8: return c10::kByte;
    case DType::kInt8: return c10::kChar;
    case DType::kInt16: return c10::kShort;
    case DType::kInt32: return c10::kInt;
    case DType::kInt64: return c10::kLong;
    case DType::kFloat16: return c10::kHalf;
    case DType::kBFloat16: return c10::kBFloat16;
    case DType::kFloat32: return c10::kFloat;
    case DType::kFloat64: return c10::kDouble;
  }
  throw InvalidArgument("a dtype outside the enumeration");
}

DType from_torch_dtype(c10::ScalarType dtype) {
  for (const DType candidate : {DType::kBool, DType::kUInt8, DType::kInt8, DType::kInt16, DType::kInt32, DType::kInt64,
                                DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64}) {
    if (to_torch_dtype(candidate) == dtype) return candidate;
  }
  throw InvalidArgument(fmt::format("torch dtype {} cannot be stored", c10::toString(dtype)));
}

at::Tensor to_torch(const Tensor& tensor) {
  // from_blob wants a mutable pointer; the contract above is that nobody writes.
  void* data = const_cast<std::byte*>(tensor.bytes.data());
  return at::from_blob(
      data, tensor.shape, [owner = tensor.owner](void*) mutable { owner.reset(); }, at::dtype(to_torch_dtype(tensor.dtype)));
}

Tensor from_torch(const at::Tensor& tensor) {
  auto holder = std::make_shared<at::Tensor>(tensor.detach().to(at::kCPU).contiguous());
  Tensor host;
  host.dtype = from_torch_dtype(holder->scalar_type());
  host.shape = holder->sizes().vec();
  host.bytes = {static_cast<const std::byte*>(holder->data_ptr()), holder->nbytes()};
  host.owner = holder;
  return host;
}

}  // namespace draftflow
