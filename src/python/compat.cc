// SPDX-License-Identifier: Apache-2.0
#include "python/compat.h"

#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "python/arguments.h"
#include "python/handles.h"
#include "python/json.h"
#include "python/tensors.h"

namespace draftflow::python {
namespace {

// Python's names of what is asked of each ref and tensor, made once.
struct Names {
  py::str sample_id = name("sample_id"), run_id = name("run_id"), feature_store_uri = name("feature_store_uri"),
          feature_keys = name("feature_keys"), feature_specs = name("feature_specs"), metadata = name("metadata"),
          generation = name("generation"), incarnation = name("incarnation"), shape = name("shape"), dtype = name("dtype"),
          codecs = name("codecs"), lease_token = name("lease_token");

  static py::str name(const char* text) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text)); }
};

const Names& names() {
  static const auto* const made = new Names;  // kept for the process's life, as all Python objects here
  return *made;
}

py::object attribute(py::handle object, const py::str& name) {
  auto found = py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), name.ptr()));
  if (!found) throw py::error_already_set();
  return found;
}

// Null where there is none.
py::handle item(const py::dict& from, py::handle key) {
  PyObject* found = PyDict_GetItemWithError(from.ptr(), key.ptr());
  if (found == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return found;
}

void set_item(const py::dict& into, py::handle key, py::handle value) {
  if (PyDict_SetItem(into.ptr(), key.ptr(), value.ptr()) != 0) throw py::error_already_set();
}

py::object checked(PyObject* made) {
  if (made == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

std::vector<std::int64_t> shape_from(const py::object& given) {
  if (PyTuple_CheckExact(given.ptr()) == 0) return given.cast<std::vector<std::int64_t>>();
  std::vector<std::int64_t> shape(static_cast<std::size_t>(PyTuple_GET_SIZE(given.ptr())));
  for (std::size_t i = 0; i < shape.size(); ++i) {
    PyObject* extent = PyTuple_GET_ITEM(given.ptr(), i);
    shape[i] = PyLong_CheckExact(extent) != 0 ? PyLong_AsLongLong(extent) : py::handle(extent).cast<std::int64_t>();
  }
  if (PyErr_Occurred() != nullptr) {  // one that no tensor has
    PyErr_Clear();
    return given.cast<std::vector<std::int64_t>>();
  }
  return shape;
}

}  // namespace

SampleRef locator_from(py::handle ref) {
  const Names& known = names();
  SampleRef made{.sample_id = SampleId(text_from(attribute(ref, known.sample_id))),
                 .run_id = RunId(text_from(attribute(ref, known.run_id))),
                 .feature_store_uri = text_from(attribute(ref, known.feature_store_uri))};
  const py::dict keys = attribute(ref, known.feature_keys), specs = attribute(ref, known.feature_specs);
  made.feature_keys.reserve(keys.size());
  made.feature_specs.reserve(keys.size());
  for (const auto& [name, key] : keys) {
    made.feature_keys.emplace_back(text_from(name), text_from(key));
    const auto spec = item(specs, name);
    if (!spec) {
      throw NotFound(fmt::format("the ref of sample '{}' has a key, but no spec, of '{}'", printable(made.sample_id.str()),
                                 printable(made.feature_keys.back().first)));
    }
    made.feature_specs.push_back({.name = made.feature_keys.back().first,
                                  .shape = shape_from(attribute(spec, known.shape)),
                                  .dtype = dtype_from_name(text_from(attribute(spec, known.dtype)))});
  }
  const py::dict metadata = attribute(ref, known.metadata);
  made.generation = py::object(metadata[known.generation]).cast<std::uint64_t>();
  if (const auto incarnation = item(metadata, known.incarnation)) made.incarnation = text_from(incarnation);
  return made;
}

namespace {

struct PutSaying {
  static constexpr const char* kName = "_put_saying";
  static constexpr const char* kDoc =
      "_put_saying(self: Store, tensors: dict, sample_id: str, said: dict) -> None\n\n"
      "put, which says in the dict `said` which bytes it made: the generation, the incarnation, the codecs if there are some.";
  static const Signature& signature() {
    static const Signature made(kName, {"tensors", "sample_id", "said"}, 3, 3);
    return made;
  }
  static py::object call(PyObject* self, const Arguments& given) {
    const SampleId id(given.text(1));
    const TensorMap tensors = tensors_from(given.dict(0));
    const py::dict said = given.dict(2);
    const std::shared_ptr<FeatureStore> store = py::handle(self).cast<StoreHandle&>().opened.get();
    const SampleRef ref = [&] {
      const Unlocked unlocked;
      return store->put(tensors, id, {.run_id = RunId("run")});
    }();
    const Names& known = names();
    if (item(said, known.codecs)) said.attr("pop")(known.codecs);  // the caller's, who does not know
    for (const auto& [name, text] : ref.metadata) set_item(said, py::str(name), from_json(text));
    set_item(said, known.generation, checked(PyLong_FromUnsignedLongLong(ref.generation)));
    if (!ref.incarnation.empty()) set_item(said, known.incarnation, py::str(ref.incarnation));
    return py::none();
  }
};

struct GetLocated {
  static constexpr const char* kName = "_get_located";
  static constexpr const char* kDoc =
      "_get_located(self: Store, ref: object, names: Optional[List[str]]) -> Tuple[dict, dict]\n\n"
      "get by a ref of any class (SampleRef.locator): {name: torch tensor} and the attributes of the handle.";
  static const Signature& signature() {
    static const Signature made(kName, {"ref", "names"}, 2, 2);
    return made;
  }
  static py::object call(PyObject* self, const Arguments& given) {
    const Names& known = names();
    const SampleRef ref = locator_from(given[0]);
    GetOptions options;
    if (!given[1].is_none()) options.names = given.as<std::vector<std::string>>(1, "a list of names");
    const std::shared_ptr<FeatureStore> store = py::handle(self).cast<StoreHandle&>().opened.get();
    const Fetched fetched = [&] {
      const Unlocked unlocked;
      return store->get(ref, options);
    }();
    try {
      py::dict handle;
      set_item(handle, known.sample_id, attribute(given[0], known.sample_id));
      set_item(handle, known.generation, checked(PyLong_FromUnsignedLongLong(fetched.handle.generation)));
      set_item(handle, known.lease_token, py::str(fetched.handle.lease_token));
      return py::make_tuple(tensors_to(fetched.tensors, false, Framework::kTorch, py::none()), handle);
    } catch (...) {
      const Unlocked unlocked;
      store->release(fetched.handle);
      throw;
    }
  }
};

struct DescribeTensors {
  static constexpr const char* kName = "_describe_tensors";
  static constexpr const char* kDoc =
      "_describe_tensors(tensors: dict, sample_id: str, known: dict, describe: Callable) -> Tuple[dict, dict, int]\n\n"
      "The specs, the keys and the bytes of tensors: known has (name, spec, bytes) by (name, shape, dtype), and "
      "describe(name, shape, dtype) gives what it has not yet.";
  enum { kTensors, kSampleId, kKnown, kDescribe };
  static const Signature& signature() {
    static const Signature made(kName, {"tensors", "sample_id", "known", "describe"}, 4, 4);
    return made;
  }
  static py::object call(PyObject* /*module*/, const Arguments& given) {
    const py::dict known = given.dict(kKnown);
    const auto tensors = py::reinterpret_steal<py::dict>(checked(PyDict_Copy(given.dict(kTensors).ptr())).release());
    const py::object prefix = checked(PyUnicode_FromFormat("%U/", given[kSampleId].ptr()));
    py::dict specs, keys;
    std::uint64_t bytes = 0;
    for (const auto& [name, tensor] : tensors) {
      const py::object shape = attribute(tensor, names().shape), dtype = attribute(tensor, names().dtype);
      const py::object asked = checked(PyTuple_Pack(3, name.ptr(), shape.ptr(), dtype.ptr()));
      py::object described = py::reinterpret_borrow<py::object>(item(known, asked));
      if (!described) described = given[kDescribe](name, shape, dtype);
      PyObject *const plain = PyTuple_GetItem(described.ptr(), 0), *const spec = PyTuple_GetItem(described.ptr(), 1),
                      *const size = PyTuple_GetItem(described.ptr(), 2);
      if (size == nullptr) throw py::error_already_set();
      set_item(specs, plain, spec);
      set_item(keys, plain, checked(PyUnicode_Concat(prefix.ptr(), plain)));
      bytes += PyLong_AsUnsignedLongLong(size);
    }
    return py::make_tuple(specs, keys, bytes);
  }
};

}  // namespace

void bind_compat(py::module_& module) {
  const py::object store = module.attr("Store");
  add_method<PutSaying>(store);
  add_method<GetLocated>(store);
  add_function<DescribeTensors>(module);
}

}  // namespace draftflow::python
