// SPDX-License-Identifier: Apache-2.0
#include "python/tensors.h"

#include <dlpack/dlpack.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::python {
namespace {

// Kept for the process's life: destroying Python objects after the interpreter is an error.
struct Torch {
  py::object tensor_type, boolean, uint8, to_dlpack, from_dlpack;
  py::str dtype = interned("dtype"), is_cpu = interned("is_cpu"), is_neg = interned("is_neg"),
          resolve_neg = interned("resolve_neg"), cpu = interned("cpu");
};

Torch* load_torch() {
  const py::module_ torch = py::module_::import("torch");
  const py::object core = torch.attr("_C");
  const py::object dlpack = py::module_::import("torch.utils.dlpack");
  const bool direct = py::hasattr(core, "_to_dlpack") && py::hasattr(core, "_from_dlpack");
  return new Torch{.tensor_type = torch.attr("Tensor"),
                   .boolean = torch.attr("bool"),
                   .uint8 = torch.attr("uint8"),
                   .to_dlpack = direct ? core.attr("_to_dlpack") : dlpack.attr("to_dlpack"),
                   .from_dlpack = direct ? core.attr("_from_dlpack") : dlpack.attr("from_dlpack")};
}

Torch* known_torch = nullptr;

Torch& torch() {
  if (known_torch == nullptr) known_torch = load_torch();
  return *known_torch;
}

bool is_torch_tensor(py::handle object) {
  if (known_torch == nullptr) {  // who has no torch loaded has no tensor of it
    const auto modules = py::reinterpret_borrow<py::dict>(PyImport_GetModuleDict());
    if (!modules.contains("torch")) return false;
  }
  return py::isinstance(object, torch().tensor_type);
}

std::string type_name(py::handle object) {
  return py::str(py::type::handle_of(object).attr("__qualname__"));
}

std::optional<DType> dtype_of(const DLDataType& type) {
  if (type.lanes != 1) return std::nullopt;
  switch (type.code) {
    case kDLInt:
      if (type.bits == 8) return DType::kInt8;
      if (type.bits == 16) return DType::kInt16;
      if (type.bits == 32) return DType::kInt32;
      if (type.bits == 64) return DType::kInt64;
      break;
    case kDLUInt:
      if (type.bits == 8) return DType::kUInt8;
      break;
    case kDLFloat:
      if (type.bits == 16) return DType::kFloat16;
      if (type.bits == 32) return DType::kFloat32;
      if (type.bits == 64) return DType::kFloat64;
      break;
    case kDLBfloat:
      if (type.bits == 16) return DType::kBFloat16;
      break;
    case 6:  // bool, in versions after this header's
      if (type.bits == 8) return DType::kBool;
      break;
  }
  return std::nullopt;
}

DLDataType dl_type(DType dtype) {
  const auto bits = static_cast<std::uint8_t>(8 * dtype_bytes(dtype));
  switch (dtype) {
    case DType::kBool:  // not in DLPack before 0.8
    case DType::kUInt8: return {kDLUInt, 8, 1};
    case DType::kInt8:
    case DType::kInt16:
    case DType::kInt32:
    case DType::kInt64: return {kDLInt, bits, 1};
    case DType::kBFloat16: return {kDLBfloat, bits, 1};
    default: return {kDLFloat, bits, 1};
  }
}

// Elements in strides (in elements), as they lie in C order.
void copy_strided(const std::byte* from, std::byte*& into, std::span<const std::int64_t> shape,
                  std::span<const std::int64_t> strides, std::size_t element) {
  if (shape.empty()) {
    std::memcpy(into, from, element);
    into += element;
    return;
  }
  for (std::int64_t i = 0; i < shape[0]; ++i) {
    copy_strided(from + i * strides[0] * static_cast<std::int64_t>(element), into, shape.subspan(1), strides.subspan(1),
                 element);
  }
}

bool in_c_order(std::span<const std::int64_t> shape, std::span<const std::int64_t> strides) {
  std::int64_t expected = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

// A copy where the elements do not lie in C order; else over their memory, which `owner()` keeps alive.
template <class Owner>
Tensor make_tensor(DType dtype, std::vector<std::int64_t> shape, std::span<const std::int64_t> strides, const std::byte* data,
                   Owner owner) {
  const std::uint64_t bytes = tensor_bytes(dtype, shape);
  if (bytes == 0 || strides.empty() || in_c_order(shape, strides)) {
    return {.dtype = dtype, .shape = std::move(shape), .bytes = {data, bytes}, .owner = owner()};
  }
  auto [tensor, memory] = Tensor::allocate(dtype, shape);
  std::byte* into = memory.data();
  copy_strided(data, into, shape, strides, dtype_bytes(dtype));
  return tensor;
}

// The objects of Python's that some tensors lie in: kept while one of these lives, and dropped with Python's lock, which is
// taken once for all of them.
class Lenders {
 public:
  explicit Lenders(std::size_t most) : kept_(new std::vector<PyObject*>, &drop) { kept_->reserve(most); }

  std::shared_ptr<const void> keep(py::object object) {
    kept_->push_back(object.ptr());
    static_cast<void>(object.release());
    return kept_;
  }

 private:
  static void drop(const std::vector<PyObject*>* kept) {
    std::optional<py::gil_scoped_acquire> lock;
    take_lock([&] { lock.emplace(); });
    for (PyObject* object : *kept) Py_DECREF(object);
    lock.reset();
    delete kept;
  }

  std::shared_ptr<std::vector<PyObject*>> kept_;
};

[[noreturn]] void refuse_device(int type, std::string_view name) {
  throw py::type_error(fmt::format("tensor '{}' is on a device (DLPack's number {}): bring it to host memory first",
                                   printable(std::string(name), 80), type));
}

bool in_host_memory(int device_type) {
  return device_type == kDLCPU || device_type == kDLCUDAHost;
}

// What some library raised that was asked for its tensor, said of the tensor by its name.
[[noreturn]] void refuse_as_it_is(const py::error_already_set& error, std::string_view name, std::string_view taken) {
  if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw error;
  throw py::type_error(fmt::format("tensor '{}' cannot be taken as it is ({}): {}", printable(std::string(name), 80),
                                   printable(py::str(error.value()).cast<std::string>(), 200), taken));
}

Tensor from_capsule(const py::object& capsule, std::string_view name, bool boolean, Lenders& lenders) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor") == 0) {
    throw py::type_error(fmt::format("tensor '{}': its __dlpack__ gave no tensor, or one that was taken already",
                                     printable(std::string(name), 80)));
  }
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  const DLTensor& dl = managed->dl_tensor;
  if (!in_host_memory(dl.device.device_type)) refuse_device(dl.device.device_type, name);
  const auto dtype = dtype_of(dl.dtype);
  if (!dtype) {
    throw py::type_error(fmt::format(
        "tensor '{}' has elements of DLPack type code {} with {} bits: bool, uint8, int8 to int64, float16, bfloat16, float32 "
        "and float64 are taken; view other ones as uint8",
        printable(std::string(name), 80), dl.dtype.code, dl.dtype.bits));
  }
  const auto rank = static_cast<std::size_t>(dl.ndim);
  std::vector<std::int64_t> shape(dl.shape, dl.shape + rank);
  const std::span<const std::int64_t> strides =
      dl.strides == nullptr ? std::span<const std::int64_t>{} : std::span(dl.strides, rank);
  if (dl.data == nullptr && tensor_bytes(*dtype, shape) != 0) {
    throw py::type_error(
        fmt::format("tensor '{}' has no memory (a fake or a symbolic one): pass a real one, as .clone() makes it",
                    printable(std::string(name), 80)));
  }
  const auto* data = static_cast<const std::byte*>(dl.data) + dl.byte_offset;
  return make_tensor(boolean ? DType::kBool : *dtype, std::move(shape), strides, data, [&] { return lenders.keep(capsule); });
}

py::object call(py::handle object, const py::str& method) {
  auto made = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), method.ptr()));
  if (!made) throw py::error_already_set();
  return made;
}

Tensor from_torch(py::object object, std::string_view name, Lenders& lenders) {
  const Torch& known = torch();
  const bool boolean = attribute(object, known.dtype).is(known.boolean);
  py::object capsule;
  try {
    if (attribute(object, known.is_cpu).ptr() != Py_True) object = call(object, known.cpu);
    if (call(object, known.is_neg).ptr() == Py_True) object = call(object, known.resolve_neg);
    if (boolean) object = object.attr("view")(known.uint8);
    capsule = py::reinterpret_steal<py::object>(PyObject_CallOneArg(known.to_dlpack.ptr(), object.ptr()));
    if (!capsule) throw py::error_already_set();
  } catch (py::error_already_set& error) {
    refuse_as_it_is(error, name, "dense torch tensors are, and of new element types their .view(torch.uint8)");
  }
  return from_capsule(capsule, name, boolean, lenders);
}

std::optional<DType> dtype_of_buffer(const py::buffer_info& info) {
  const std::string format =
      info.format.size() > 1 && std::strchr("@=<|", info.format[0]) != nullptr ? info.format.substr(1) : info.format;
  if (format == "?") return DType::kBool;
  if (format == "B" || format == "c") return DType::kUInt8;
  if (format == "e") return DType::kFloat16;
  if (format == "f") return DType::kFloat32;
  if (format == "d") return DType::kFloat64;
  if (format.size() == 1 && std::strchr("bhilq", format[0]) != nullptr) {
    switch (info.itemsize) {
      case 1: return DType::kInt8;
      case 2: return DType::kInt16;
      case 4: return DType::kInt32;
      default: return DType::kInt64;
    }
  }
  return std::nullopt;
}

// The last view of it may end where Python is not locked.
std::shared_ptr<py::buffer_info> request_buffer(py::handle object, std::string_view name) {
  try {
    auto info = std::make_unique<py::buffer_info>(py::reinterpret_borrow<py::buffer>(object).request());
    return {info.release(), [](py::buffer_info* held) {
              const py::gil_scoped_acquire lock;
              delete held;
            }};
  } catch (py::error_already_set& error) {
    refuse_as_it_is(error, name, "arrays of bool, uint8, int8 to int64, float16, float32 and float64 are");
  }
}

Tensor from_buffer(py::handle object, std::string_view name) {
  auto info = request_buffer(object, name);
  const auto dtype = dtype_of_buffer(*info);
  if (!dtype) {
    throw py::type_error(
        fmt::format("tensor '{}' is an array of format '{}': bool, uint8, int8 to int64, float16, float32 and "
                    "float64 are taken, in this machine's byte order",
                    printable(std::string(name), 80), info->format));
  }
  std::vector<std::int64_t> shape(info->shape.begin(), info->shape.end());
  std::vector<std::int64_t> strides;
  for (const auto stride : info->strides) {
    if (stride % info->itemsize != 0) {
      throw py::type_error(
          fmt::format("tensor '{}' has elements that overlap: pass a contiguous copy", printable(std::string(name), 80)));
    }
    strides.push_back(stride / info->itemsize);
  }
  const auto* data = static_cast<const std::byte*>(info->ptr);
  return make_tensor(*dtype, std::move(shape), strides, data, [&] { return std::shared_ptr<const void>(std::move(info)); });
}

int device_of(py::handle object) {
  return object.attr("__dlpack_device__")().cast<std::pair<int, int>>().first;
}

Tensor from_dlpack(py::handle given, std::string_view name, Lenders& lenders) {
  py::object capsule, object = py::reinterpret_borrow<py::object>(given);
  try {
    if (py::hasattr(object, "__dlpack_device__") && !in_host_memory(device_of(object))) {
      if (py::hasattr(object, "cpu")) object = object.attr("cpu")();  // torch's: waits for what is still computed
      if (const int device = device_of(object); !in_host_memory(device)) refuse_device(device, name);
    }
    capsule = object.attr("__dlpack__")();
  } catch (py::error_already_set& error) {
    refuse_as_it_is(error, name, "what is in host memory and of a common element type is");
  }
  return from_capsule(capsule, name, false, lenders);
}

// Owns its tensor until the capsule's taker, or the capsule, lets go.
struct Exported {
  Tensor tensor;
  DLManagedTensor managed{};
};

py::object to_capsule(const Tensor& tensor) {
  auto exported = std::make_unique<Exported>(Exported{.tensor = tensor});
  DLTensor& dl = exported->managed.dl_tensor;
  dl.data = const_cast<std::byte*>(exported->tensor.bytes.data());
  dl.device = {kDLCPU, 0};
  dl.ndim = static_cast<int>(exported->tensor.shape.size());
  dl.dtype = dl_type(tensor.dtype);
  dl.shape = exported->tensor.shape.data();
  dl.strides = nullptr;
  dl.byte_offset = 0;
  exported->managed.manager_ctx = exported.get();
  exported->managed.deleter = [](DLManagedTensor* managed) { delete static_cast<Exported*>(managed->manager_ctx); };
  PyObject* capsule = PyCapsule_New(&exported->managed, "dltensor", [](PyObject* made) {
    if (PyCapsule_IsValid(made, "dltensor") == 0) return;  // taken: it is the taker's now
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(made, "dltensor"));
    managed->deleter(managed);
  });
  if (capsule == nullptr) throw py::error_already_set();
  static_cast<void>(exported.release());
  return py::reinterpret_steal<py::object>(capsule);
}

const char* buffer_format(DType dtype) {
  switch (dtype) {
    case DType::kBool: return "?";
    case DType::kUInt8: return "B";
    case DType::kInt8: return "b";
    case DType::kInt16: return "h";
    case DType::kInt32: return "i";
    case DType::kInt64: return "q";
    case DType::kFloat16: return "e";
    case DType::kFloat32: return "f";
    case DType::kFloat64: return "d";
    case DType::kBFloat16: break;
  }
  throw py::type_error(
      "the buffer protocol, and so numpy, has no bfloat16: take the tensor as torch's (.torch()), or view its bytes as another "
      "type: numpy.frombuffer(t.tobytes(), 'uint16').reshape(t.shape)");
}

[[noreturn]] void refuse_for_numpy(std::string_view name) {
  throw py::type_error(fmt::format(
      "tensor '{}' is bfloat16, for which numpy has no type: ask for framework='torch', or for 'draftflow' and view its "
      "bytes as another type: numpy.frombuffer(t.tobytes(), 'uint16').reshape(t.shape)",
      printable(std::string(name), 80)));
}

py::buffer_info to_buffer(PyTensor& held) {
  const Tensor& tensor = held.tensor;
  const auto element = static_cast<py::ssize_t>(dtype_bytes(tensor.dtype));
  std::vector<py::ssize_t> shape(tensor.shape.begin(), tensor.shape.end());
  std::vector<py::ssize_t> strides(shape.size());
  py::ssize_t stride = element;
  for (std::size_t i = shape.size(); i-- > 0; stride *= std::max<py::ssize_t>(shape[i], 1)) strides[i] = stride;
  return {const_cast<std::byte*>(tensor.bytes.data()),
          element,
          buffer_format(tensor.dtype),
          static_cast<py::ssize_t>(shape.size()),
          std::move(shape),
          std::move(strides),
          held.shared};
}

py::object to_torch(const Tensor& tensor, const py::object& device) {
  auto made = py::reinterpret_steal<py::object>(PyObject_CallOneArg(torch().from_dlpack.ptr(), to_capsule(tensor).ptr()));
  if (!made) throw py::error_already_set();
  if (tensor.dtype == DType::kBool) made = made.attr("view")(torch().boolean);
  return device.is_none() ? made : made.attr("to")(device);
}

Tensor take(py::handle object, std::string_view name, Lenders& lenders) {
  if (is_torch_tensor(object)) return from_torch(py::reinterpret_borrow<py::object>(object), name, lenders);
  if (py::isinstance<PyTensor>(object)) return object.cast<const PyTensor&>().tensor;
  if (PyObject_CheckBuffer(object.ptr()) != 0) return from_buffer(object, name);
  if (py::hasattr(object, "__dlpack__")) return from_dlpack(object, name, lenders);
  throw py::type_error(fmt::format("'{}' is a {}: a torch tensor, a numpy array or anything with __dlpack__ is taken",
                                   printable(std::string(name), 80), type_name(object)));
}

}  // namespace

Tensor tensor_from(py::handle object, std::string_view name) {
  Lenders lenders(1);
  return take(object, name, lenders);
}

TensorMap tensors_from(const py::dict& tensors, Taken taken) {
  TensorMap map;
  map.reserve(tensors.size());
  // A copy: a tensor's own code is called below, which may change the caller's.
  const auto held = py::reinterpret_steal<py::dict>(PyDict_Copy(tensors.ptr()));
  if (!held) throw py::error_already_set();
  Lenders lenders(tensors.size());
  for (const auto& [key, value] : held) {
    if (!py::isinstance<py::str>(key)) throw py::type_error("the names of tensors are strings: found a " + type_name(key));
    auto name = text_from(key);
    if (taken == Taken::kTorch && !is_torch_tensor(value)) {
      throw py::type_error(fmt::format("'{}' is a {}: a torch tensor is taken", printable(name, 80), type_name(value)));
    }
    Tensor tensor = take(value, name, lenders);
    map.emplace_back(std::move(name), std::move(tensor));
  }
  return map;
}

Framework framework_from(std::string_view name) {
  if (name == "torch") return Framework::kTorch;
  if (name == "numpy") return Framework::kNumpy;
  if (name == "draftflow") return Framework::kDraftflow;
  throw InvalidArgument(
      fmt::format("framework is '{}': 'torch', 'numpy' and 'draftflow' are allowed", printable(std::string(name), 80)));
}

py::object tensor_to(const Tensor& tensor, bool shared, Framework framework, const py::object& device, std::string_view name) {
  if (framework == Framework::kTorch) return to_torch(tensor, device);
  py::object held = py::cast(PyTensor{.tensor = tensor, .shared = shared});
  if (framework == Framework::kDraftflow) return held;
  if (!name.empty() && tensor.dtype == DType::kBFloat16) refuse_for_numpy(name);
  buffer_format(tensor.dtype);  // says what numpy lacks
  return py::module_::import("numpy").attr("asarray")(held);
}

py::dict tensors_to(const TensorMap& tensors, bool shared, Framework framework, const py::object& device) {
  py::dict made;
  for (const auto& [name, tensor] : tensors) {
    const py::str key(name);
    const py::object value = tensor_to(tensor, shared, framework, device, name);
    if (PyDict_SetItem(made.ptr(), key.ptr(), value.ptr()) != 0) throw py::error_already_set();
  }
  return made;
}

namespace {

// pybind11's own lets no exception out of it: that of a type without buffers would end the process.
getbufferproc pybinds_buffer = nullptr;
int buffer_or_error(PyObject* self, Py_buffer* view, int flags) {
  try {
    return pybinds_buffer(self, view, flags);
  } catch (...) {
    view->obj = nullptr;
    raise_handled();
    return -1;
  }
}

}  // namespace

void bind_tensors(py::module_& module) {
  py::class_<PyTensor> tensor(
      module, "Tensor", py::buffer_protocol(),
      "Row-major elements in host memory. `torch.from_dlpack(t)`, `numpy.asarray(t)`: the same memory, no copy.");
  tensor
      .def(py::init([](const py::object& object) { return PyTensor{.tensor = tensor_from(object, "object")}; }),
           py::arg("object"), "Over the memory of a torch tensor, a numpy array or anything with __dlpack__.")
      .def_property_readonly(
          "dtype", [](const PyTensor& held) { return std::string(dtype_name(held.tensor.dtype)); },
          "The element type under its PyTorch name: 'bfloat16'.")
      .def_property_readonly("shape", [](const PyTensor& held) { return py::tuple(py::cast(held.tensor.shape)); })
      .def_property_readonly("nbytes", [](const PyTensor& held) { return held.tensor.bytes.size(); })
      .def_property_readonly(
          "data_ptr", [](const PyTensor& held) { return reinterpret_cast<std::uintptr_t>(held.tensor.bytes.data()); },
          "Where the first element lies, as torch.Tensor.data_ptr() says it.")
      .def(
          "tobytes",
          [](const PyTensor& held) {
            return py::bytes(reinterpret_cast<const char*>(held.tensor.bytes.data()), held.tensor.bytes.size());
          },
          "A copy of the bytes, little-endian.")
      .def(
          "torch",
          [](const PyTensor& held, const py::object& device) {
            return tensor_to(held.tensor, held.shared, Framework::kTorch, device);
          },
          py::arg("device") = py::none(), "A torch tensor over the same memory; on another device, a copy.")
      .def(
          "numpy", [](const PyTensor& held) { return tensor_to(held.tensor, held.shared, Framework::kNumpy, py::none()); },
          "A numpy array over the same memory, read-only where that is a store's. TypeError for bfloat16.")
      .def_property_readonly(
          "__array__",  // numpy asks for it where there is no buffer, and would make an array of one object
          [](const PyTensor& held) {
            if (held.tensor.dtype != DType::kBFloat16) throw py::attribute_error("__array__: the buffer is what numpy takes");
            return py::cpp_function([](const py::args&, const py::kwargs&) { buffer_format(DType::kBFloat16); });
          })
      .def(
          "__dlpack__", [](const PyTensor& held, const py::args&, const py::kwargs&) { return to_capsule(held.tensor); },
          "For from_dlpack() of any library; bool crosses as uint8.")
      .def("__dlpack_device__", [](const PyTensor&) { return py::make_tuple(static_cast<int>(kDLCPU), 0); })
      .def("__repr__",
           [](const PyTensor& held) {
             return fmt::format("Tensor({}, {})", dtype_name(held.tensor.dtype), shape_text(held.tensor.shape));
           })
      .def_buffer(&to_buffer);
  PyBufferProcs* const buffers = reinterpret_cast<PyTypeObject*>(tensor.ptr())->tp_as_buffer;
  pybinds_buffer = std::exchange(buffers->bf_getbuffer, &buffer_or_error);
}

}  // namespace draftflow::python
