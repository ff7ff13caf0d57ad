// SPDX-License-Identifier: Apache-2.0
#include "python/compat.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>

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
  py::str sample_id = interned("sample_id"), run_id = interned("run_id"), feature_store_uri = interned("feature_store_uri"),
          feature_keys = interned("feature_keys"), feature_specs = interned("feature_specs"), metadata = interned("metadata"),
          generation = interned("generation"), incarnation = interned("incarnation"), shape = interned("shape"),
          dtype = interned("dtype"), codecs = interned("codecs"), lease_token = interned("lease_token"),
          estimated_bytes = interned("estimated_bytes"), dict = interned("__dict__");
  py::tuple nothing;
};

const Names& names() {
  static const auto* const made = new Names;  // kept for the process's life, as all Python objects here
  return *made;
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

// What kind(**fields) makes of all its fields, which it keeps. A frozen dataclass sets them one by one, which is most of what a
// record costs.
py::object record(py::handle kind, const py::dict& fields) {
  auto* const type = reinterpret_cast<PyTypeObject*>(kind.ptr());
  if (PyType_Check(kind.ptr()) == 0 || type->tp_new != PyBaseObject_Type.tp_new) {
    throw py::type_error("a class of records is needed, which object.__new__ makes");
  }
  const py::object made = checked(type->tp_new(type, names().nothing.ptr(), nullptr));
  if (PyObject_GenericSetAttr(made.ptr(), names().dict.ptr(), fields.ptr()) != 0) throw py::error_already_set();
  return made;
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

struct Locator {
  SampleRef ref;
  std::optional<std::string> without_spec;  // the first feature that has a key only
};

Locator locate(py::handle ref) {
  const Names& known = names();
  Locator locator{.ref = {.sample_id = SampleId(text_from(attribute(ref, known.sample_id))),
                          .run_id = RunId(text_from(attribute(ref, known.run_id))),
                          .feature_store_uri = text_from(attribute(ref, known.feature_store_uri))}};
  SampleRef& made = locator.ref;
  const py::dict keys = attribute(ref, known.feature_keys), specs = attribute(ref, known.feature_specs);
  std::vector<FeatureSpec> described;
  described.reserve(keys.size());
  for (const auto& [name, key] : keys) {
    std::string feature = text_from(name);
    made.feature_keys.emplace_back(feature, text_from(key));
    const auto spec = item(specs, name);
    if (!spec) {
      if (!locator.without_spec) locator.without_spec = std::move(feature);
      continue;
    }
    described.push_back({.name = std::move(feature),
                         .shape = shape_from(attribute(spec, known.shape)),
                         .dtype = dtype_from_name(text_from(attribute(spec, known.dtype)))});
  }
  made.feature_specs = std::move(described);
  const py::dict metadata = attribute(ref, known.metadata);
  made.generation = py::object(metadata[known.generation]).cast<std::uint64_t>();
  if (const auto incarnation = item(metadata, known.incarnation)) made.incarnation = text_from(incarnation);
  return locator;
}

// Whether each feature that is asked for is one of the ref's, and stored under its own name: with the key "{sample_id}/{name}",
// or the name itself.
bool keeps_names(const Locator& locator, const std::vector<std::string>& asked) {
  const auto& keys = locator.ref.feature_keys;
  const std::string& id = locator.ref.sample_id.str();
  const auto is_own = [&](const auto& feature) {
    const auto& [name, key] = feature;
    if (key.size() == name.size()) return key == name;
    return key.size() == id.size() + 1 + name.size() && key[id.size()] == '/' && key.starts_with(id) && key.ends_with(name);
  };
  const auto is_known = [&](const std::string& name) {
    return std::any_of(keys.begin(), keys.end(), [&](const auto& feature) { return feature.first == name; });
  };
  return !locator.without_spec && std::all_of(keys.begin(), keys.end(), is_own) &&
         std::all_of(asked.begin(), asked.end(), is_known);
}

}  // namespace

SampleRef locator_from(py::handle ref) {
  Locator locator = locate(ref);
  if (locator.without_spec) {
    throw NotFound(fmt::format("the ref of sample '{}' has a key, but no spec, of '{}'", printable(locator.ref.sample_id.str()),
                               printable(*locator.without_spec)));
  }
  return std::move(locator.ref);
}

namespace {

// What refs say of a tensor, by who describes it, shared by all that have one of its name, type and shape. Kept for the
// process's life.
struct Described {
  py::object describe, name, spec;
};
using DescribedTensors = std::map<std::tuple<PyObject*, std::string, DType, std::vector<std::int64_t>>, Described, std::less<>>;
constexpr std::size_t kMaxDescribed = 8192;

const Described& described(const std::string& name, const Tensor& tensor, py::handle describe) {
  static auto* const known = new DescribedTensors;  // guarded by Python's lock
  PyObject* const by = describe.ptr();
  const auto found = known->find(std::tie(by, name, tensor.dtype, tensor.shape));
  if (found != known->end()) return found->second;
  const py::str own_name(name);
  const py::object spec = describe(own_name, py::tuple(py::cast(tensor.shape)), py::str(std::string(dtype_name(tensor.dtype))));
  if (known->size() >= kMaxDescribed) known->clear();
  Described made{py::reinterpret_borrow<py::object>(describe), own_name, spec};
  return known->insert_or_assign({by, name, tensor.dtype, tensor.shape}, std::move(made)).first->second;
}

// Into `fields`, what a ref says of its tensors.
void describe_tensors(const TensorMap& tensors, const py::str& sample_id, const py::dict& fields, py::handle describe) {
  const Names& known = names();
  const py::object prefix = checked(PyUnicode_FromFormat("%U/", sample_id.ptr()));
  py::dict specs, keys;
  std::uint64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) {
    const Described& each = described(name, tensor, describe);
    set_item(specs, each.name, each.spec);
    set_item(keys, each.name, checked(PyUnicode_Concat(prefix.ptr(), each.name.ptr())));
    bytes += tensor.bytes.size();
  }
  set_item(fields, known.feature_specs, specs);
  set_item(fields, known.feature_keys, keys);
  set_item(fields, known.estimated_bytes, checked(PyLong_FromUnsignedLongLong(bytes)));
}

struct PutDescribed {
  static constexpr const char* kName = "_put_described";
  static constexpr const char* kDoc =
      "_put_described(self: Store, tensors: dict, sample_id: str, fields: dict, describe: Callable, kind: type) -> object\n\n"
      "put of torch tensors: the `kind` with these fields and those that say what was stored: feature_specs, of describe(name, "
      "shape, dtype), feature_keys, estimated_bytes, and in its metadata the generation, the incarnation, and the codecs, if "
      "any.";
  enum { kTensors, kSampleId, kFields, kDescribe, kKind };
  static const Signature& signature() {
    static const Signature made(kName, {"tensors", "sample_id", "fields", "describe", "kind"}, 5, 5);
    return made;
  }
  static py::object call(PyObject* self, const Arguments& given) {
    const Names& known = names();
    const SampleId id(given.text(kSampleId));
    const TensorMap tensors = tensors_from(given.dict(kTensors), Taken::kTorch);
    const py::dict fields = given.dict(kFields), said = fields[known.metadata];
    const py::object made = record(given[kKind], fields);  // what can fail does before anything is stored
    describe_tensors(tensors, py::reinterpret_borrow<py::str>(given[kSampleId]), fields, given[kDescribe]);
    const std::shared_ptr<FeatureStore> store = py::handle(self).cast<StoreHandle&>().opened.get();
    const SampleRef ref = [&] {
      const Unlocked unlocked;
      return store->put(tensors, id, {.run_id = RunId("run")});
    }();
    if (item(said, known.codecs)) said.attr("pop")(known.codecs);  // the caller's, who does not know
    for (const auto& [name, text] : ref.metadata) set_item(said, py::str(name), from_json(text));
    set_item(said, known.generation, checked(PyLong_FromUnsignedLongLong(ref.generation)));
    if (!ref.incarnation.empty()) set_item(said, known.incarnation, py::str(ref.incarnation));
    return made;
  }
};

struct GetLocated {
  static constexpr const char* kName = "_get_located";
  static constexpr const char* kDoc =
      "_get_located(self: Store, ref: object, names: Optional[List[str]], kind: type) -> Optional[Tuple[dict, object]]\n\n"
      "get by a ref of any class (SampleRef.locator): {name: torch tensor} and the handle, of `kind`. None, and nothing done, "
      "for features that are stored under other names, have no spec, or are asked for and none of the ref's.";
  static const Signature& signature() {
    static const Signature made(kName, {"ref", "names", "kind"}, 3, 3);
    return made;
  }
  static py::object call(PyObject* self, const Arguments& given) {
    const Names& known = names();
    const Locator locator = locate(given[0]);
    GetOptions options;
    if (!given[1].is_none()) options.names = given.as<std::vector<std::string>>(1, "a list of names");
    if (!keeps_names(locator, options.names)) return py::none();
    const std::shared_ptr<FeatureStore> store = py::handle(self).cast<StoreHandle&>().opened.get();
    const Fetched fetched = [&] {
      const Unlocked unlocked;
      return store->get(locator.ref, options);
    }();
    try {
      py::dict handle;
      set_item(handle, known.sample_id, attribute(given[0], known.sample_id));
      set_item(handle, known.generation, checked(PyLong_FromUnsignedLongLong(fetched.handle.generation)));
      set_item(handle, known.lease_token, py::str(fetched.handle.lease_token));
      return py::make_tuple(tensors_to(fetched.tensors, false, Framework::kTorch, py::none()), record(given[2], handle));
    } catch (...) {
      const Unlocked unlocked;
      store->release(fetched.handle);
      throw;
    }
  }
};

}  // namespace

void bind_compat(py::module_& module) {
  const py::object store = module.attr("Store");
  add_method<PutDescribed>(store);
  add_method<GetLocated>(store);
}

}  // namespace draftflow::python
