// SPDX-License-Identifier: Apache-2.0
//
// Tensors between Python and C++ without a copy, by DLPack and the buffer protocol. Only torch's own functions are called,
// found at run time; nothing here needs torch to build, and torch is imported only when a torch tensor is asked for. Called
// with Python's lock held. Private to this room.
#pragma once

#include <string>
#include <string_view>

#include "draftflow/formats/tensor.h"
#include "python/bindings.h"

namespace draftflow::python {

// What Python holds: a tensor, and whether its memory is a store's (zero copy), which nobody may write to.
struct PyTensor {
  Tensor tensor;
  bool shared = false;
};

// The object's own memory where it is contiguous and in host memory, else a copy. Taken are torch tensors, draftflow.Tensor,
// whatever has the buffer protocol (numpy) and whatever has __dlpack__. TypeError naming the tensor for anything else, and for
// element types that draftflow has not. To be let go with Python's lock held.
Tensor tensor_from(py::handle object, std::string_view name);
// The same of each, but small torch tensors are copied. kTorch: TypeError for what is none of torch's.
enum class Taken { kAll, kTorch };
TensorMap tensors_from(const py::dict& tensors, Taken taken = Taken::kAll);

// In what the tensors of a fetch are handed out.
enum class Framework { kTorch, kNumpy, kDraftflow };
Framework framework_from(std::string_view name);  // "torch", "numpy", "draftflow"; InvalidArgument

// Over the same memory. device: torch's alone; None: host memory. TypeError, of the name where it has one, for bfloat16 to
// numpy.
py::object tensor_to(const Tensor& tensor, bool shared, Framework framework, const py::object& device,
                     std::string_view name = {});
py::dict tensors_to(const TensorMap& tensors, bool shared, Framework framework, const py::object& device);

}  // namespace draftflow::python
