// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <pybind11/stl/filesystem.h>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/store/feature_store.h"
#include "python/arguments.h"
#include "python/handles.h"
#include "python/json.h"
#include "python/tensors.h"

namespace draftflow::python {
namespace {

using OptionalPath = std::optional<std::filesystem::path>;

StoreKind kind_from(const std::string& name) {
  if (name == "ledgered") return StoreKind::kLedgered;
  if (name == "consume-once") return StoreKind::kConsumeOnce;
  throw InvalidArgument(fmt::format("kind is '{}': 'ledgered' and 'consume-once' are allowed", printable(name, 80)));
}

Durability durability_from(const std::string& name) {
  if (name == "none") return Durability::kNone;
  if (name == "data") return Durability::kData;
  if (name == "full") return Durability::kFull;
  throw InvalidArgument(fmt::format("durability is '{}': 'none', 'data' and 'full' are allowed", printable(name, 80)));
}

StoreLayout layout_from(const std::string& name) {
  if (name == "draftflow") return StoreLayout::kDraftflow;
  if (name == "specforge") return StoreLayout::kSpecforge;
  throw InvalidArgument(fmt::format("layout is '{}': 'draftflow' and 'specforge' are allowed", printable(name, 80)));
}

// Not by pybind11, which shows in its error what it was given.
std::optional<py::bytes> secret_bytes(const py::object& given) {
  if (given.is_none()) return std::nullopt;
  if (PyBytes_Check(given.ptr()) == 0) {
    throw py::type_error(
        fmt::format("secret is a {}: bytes are taken, as secret=text.encode()", Py_TYPE(given.ptr())->tp_name));
  }
  return py::reinterpret_borrow<py::bytes>(given);
}

// From the file, or as given, or else from the environment, which keeps it for the children.
std::shared_ptr<const Secret> secret_from(const OptionalPath& file, const std::optional<py::bytes>& given) {
  if (file && given) throw InvalidArgument("secret_file and secret are both given: one is allowed");
  if (file) return std::make_shared<Secret>(Secret::from_file(*file));
  if (given) return std::make_shared<Secret>(Secret::from_bytes(static_cast<std::string_view>(*given)));
  auto found = Secret::from_environment(kSecretVariable, Secret::Afterwards::kKeep);
  return found ? std::make_shared<Secret>(std::move(*found)) : nullptr;
}

bool begins(const std::string& text, std::string_view with) {
  return text.compare(0, with.size(), with) == 0;
}

struct Place {
  std::filesystem::path root;
  StoreId id;
};

Place place_of(const std::string& url) {
  const std::size_t scheme = url.find("://");
  if (scheme != std::string::npos && begins(url, "file://") && url.size() > 7) return place_of(url.substr(7));
  if (scheme != std::string::npos) {
    throw InvalidArgument(fmt::format("store '{}': a folder, mem://NAME and file:// (feature files where they lie) are allowed",
                                      printable(url, 200)));
  }
  const auto folder = std::filesystem::absolute(url).lexically_normal();
  const auto name = folder.has_filename() ? folder.filename() : folder.parent_path().filename();
  if (name.empty()) throw InvalidArgument(fmt::format("store '{}' is no folder of a store", printable(url, 200)));
  return {folder.has_filename() ? folder.parent_path() : folder.parent_path().parent_path(), StoreId(name.string())};
}

std::shared_ptr<StoreHandle> open_handle(const std::string& url, PerProcess<FeatureStore>::Open open) {
  const Unlocked unlocked;
  return std::shared_ptr<StoreHandle>(
      new StoreHandle{.url = url, .opened = PerProcess<FeatureStore>(fmt::format("store '{}'", url), std::move(open))});
}

std::shared_ptr<StoreHandle> open_memory(const std::string& url, const SharedDirOptions& options) {
  const MemoryOptions memory{.kind = options.kind,
                             .max_resident_bytes = options.max_resident_bytes,
                             .max_hold_age_ms = options.max_hold_age_ms,
                             .retain_on_release = options.retain_on_release};
  return open_handle(url, [url, memory, maker = ::getpid()]() -> std::shared_ptr<FeatureStore> {
    if (maker != ::getpid()) {
      throw InvalidArgument(
          fmt::format("store '{}' lies in the memory of process {}, and this is a child of it: use a folder for "
                      "processes to share",
                      url, maker));
    }
    return create_memory_store(StoreId(url.substr(6)), memory);
  });
}

std::shared_ptr<StoreHandle> open_store(const std::string& url, const SharedDirOptions& options, bool create) {
  if (begins(url, "mem://")) return open_memory(url, options);
  if (url == "file://") {
    return open_handle(url, []() -> std::shared_ptr<FeatureStore> { return open_files_store(); });
  }
  return open_handle(url, [place = place_of(url), options, create]() -> std::shared_ptr<FeatureStore> {
    return create ? create_shared_dir_store(place.root, place.id, options)
                  : open_shared_dir_store(place.root, place.id, options);
  });
}

std::shared_ptr<StoreHandle> remember(std::shared_ptr<StoreHandle> store, const OptionalPath& secret_file, bool secret_given,
                                      const SharedDirOptions& options) {
  store->secret_file = secret_file;
  store->secret_given = secret_given;
  store->retain_on_release = options.retain_on_release;
  store->lease_ms = options.lease_ms;
  return store;
}

std::shared_ptr<StoreHandle> attach(const py::object& place, const OptionalPath& secret_file, const py::object& given_secret,
                                    bool retain_on_release, std::int64_t lease_ms) {
  const std::optional<py::bytes> secret = secret_bytes(given_secret);
  const std::string url = place_from(place);
  const SharedDirOptions options{
      .secret = secret_from(secret_file, secret), .retain_on_release = retain_on_release, .lease_ms = lease_ms};
  return remember(open_store(url, options, false), secret_file, secret.has_value(), options);
}

// How another process opens it.
py::tuple reduce(const StoreHandle& self) {
  if (begins(self.url, "mem://")) {
    throw InvalidArgument(
        fmt::format("store '{}' lies in this process's memory: no other can open it; use a folder", self.url));
  }
  if (self.secret_given) {
    throw InvalidArgument(
        fmt::format("store '{}' was opened with secret=..., which is sent nowhere: use secret_file", self.url));
  }
  return py::make_tuple(py::module_::import("draftflow._reopen").attr("store"),
                        py::make_tuple(self.url, self.secret_file, self.retain_on_release, self.lease_ms));
}

std::int64_t tokens_of(const TensorMap& tensors) {
  const Tensor* ids = find_tensor(tensors, "input_ids");
  return ids == nullptr || ids->shape.empty() ? 0 : ids->shape.back();
}

// Under the fence, if there is one, without Python's lock.
SampleRef put_facts(StoreHandle& self, const TensorMap& tensors, const SampleId& id, const PutMetadata& facts,
                    const std::shared_ptr<PyFence>& fence) {
  const std::shared_ptr<FeatureStore> store = self.opened.get();
  PutFence asked;
  std::shared_ptr<OpenLedger> ledger = fence ? fence->ledger->opened.get() : nullptr;
  if (fence) {
    asked.taken_over = fence->lease.taken_over;
    asked.still_mine = [&] {
      const auto turn = ledger->turn();
      return ledger->ledger->extend_lease(fence->lease, fence->lease_ms);
    };
  }
  const Unlocked unlocked;
  return store->put(tensors, id, facts, asked);
}

struct Put {
  static constexpr const char* kName = "put";
  static constexpr const char* kDoc =
      "put(self: Store, tensors: dict, sample_id: str, *, run_id: str = 'run', strategy: str = 'eagle3', "
      "num_tokens: Optional[int] = None, metadata: Optional[dict] = None, source_task_id: Optional[str] = None, "
      "target_model_version: str = 'unknown', tokenizer_version: str = 'unknown', "
      "draft_weight_version: Optional[str] = None, fence: Optional[Fence] = None) -> SampleRef\n\n"
      "Stores {name: tensor} as a new generation of the sample, whole or not at all; earlier ones are not gettable when it "
      "returns. num_tokens: by default the length of input_ids. fence: Ledger.fence(lease), for who works under a lease. "
      "Exhausted: the budget or the disk; nothing was written.";
  enum { kTensors, kSampleId, kRunId, kStrategy, kNumTokens, kMetadata, kSourceTaskId, kTarget, kTokenizer, kDraft, kFence };
  static const Signature& signature() {
    static const Signature made(kName,
                                {"tensors", "sample_id", "run_id", "strategy", "num_tokens", "metadata", "source_task_id",
                                 "target_model_version", "tokenizer_version", "draft_weight_version", "fence"},
                                2, 2);
    return made;
  }
  static py::object call(PyObject* self, const Arguments& given) {
    const SampleId id(given.text(kSampleId));
    const TensorMap tensors = tensors_from(given.dict(kTensors));
    PutMetadata facts{
        .run_id = RunId(given.text(kRunId, "run")),
        .source_task_id = given.optional_text(kSourceTaskId),
        .strategy = given.text(kStrategy, "eagle3"),
        .target_model_version = given.text(kTarget, "unknown"),
        .tokenizer_version = given.text(kTokenizer, "unknown"),
        .draft_weight_version = given.optional_text(kDraft),
        .num_tokens = given[kNumTokens].is_none() ? tokens_of(tensors) : given.as<std::int64_t>(kNumTokens, "an int")};
    if (!given[kMetadata].is_none()) facts.metadata = members_from(given.dict(kMetadata), "metadata");
    const auto fence = given.as<std::shared_ptr<PyFence>>(kFence, "what Ledger.fence returns");
    return py::cast(put_facts(py::handle(self).cast<StoreHandle&>(), tensors, id, facts, fence));
  }
};

// A fetched sample. The lease ends with release(); the memory of its tensors with the last of them.
struct PySample {
  std::shared_ptr<StoreHandle> store;
  Fetched fetched;
  bool shared = false;
  Framework framework = Framework::kTorch;
  py::object device;
  bool released = false;
};

Fetched get_unlocked(StoreHandle& self, const SampleRef& ref, const GetOptions& options) {
  const std::shared_ptr<FeatureStore> store = self.opened.get();
  const Unlocked unlocked;
  return store->get(ref, options);
}

struct Get {
  static constexpr const char* kName = "get";
  static constexpr const char* kDoc =
      "get(self: Store, ref: SampleRef, names: Optional[List[str]] = None, *, zero_copy: bool = False, verify: bool = True, "
      "framework: str = 'torch', device: object = None) -> Sample\n\n"
      "Exactly the ref's bytes, leased. zero_copy: views of the stored bytes, which nobody may write to; they stay readable "
      "while a tensor over them lives. framework: 'torch', 'numpy' or 'draftflow'. NotFound, Corrupt.";
  enum { kRef, kNames, kZeroCopy, kVerify, kFramework, kDevice };
  static const Signature& signature() {
    static const Signature made(kName, {"ref", "names", "zero_copy", "verify", "framework", "device"}, 2, 1);
    return made;
  }
  static py::object call(PyObject* self, const Arguments& given) {
    GetOptions options{.zero_copy = given.flag(kZeroCopy, false), .verify = given.flag(kVerify, true)};
    if (!given[kNames].is_none()) options.names = given.as<std::vector<std::string>>(kNames, "a list of names");
    const Framework wanted = framework_from(given.text(kFramework, "torch"));
    const auto store = py::handle(self).cast<std::shared_ptr<StoreHandle>>();
    Fetched fetched = get_unlocked(*store, given.as<const SampleRef&>(kRef, "a SampleRef"), options);
    return py::cast(PySample{.store = store,
                             .fetched = std::move(fetched),
                             .shared = options.zero_copy,
                             .framework = wanted,
                             .device = py::reinterpret_borrow<py::object>(given[kDevice])});
  }
};

void release(StoreHandle& self, const FeatureHandle& handle) {
  const std::shared_ptr<FeatureStore> store = self.opened.get();
  const Unlocked unlocked;
  store->release(handle);
}

void release_sample(PySample& sample) {
  if (sample.released) return;
  sample.released = true;
  if (!sample.store->opened.closed()) release(*sample.store, sample.fetched.handle);
}

py::dict read(StoreHandle& self, const SampleRef& ref, std::optional<std::vector<std::string>> names,
              const std::string& framework, const py::object& device) {
  const Framework wanted = framework_from(framework);
  const std::shared_ptr<FeatureStore> store = self.opened.get();
  TensorMap tensors;
  {
    const Unlocked unlocked;
    tensors = store->read(ref, names ? *names : std::vector<std::string>{});
  }
  return tensors_to(tensors, false, wanted, device);
}

py::dict gc(StoreHandle& self) {
  const std::shared_ptr<FeatureStore> store = self.opened.get();
  GcReport report;
  {
    const Unlocked unlocked;
    report = store->gc();
  }
  py::dict made;
  made["temporaries_removed"] = report.temporaries_removed;
  made["generations_removed"] = report.generations_removed;
  made["force_freed"] = report.force_freed;
  made["bytes_removed"] = report.bytes_removed;
  made["leases_dropped"] = report.leases_dropped;
  made["release_pending"] = report.release_pending;
  return made;
}

py::dict health(StoreHandle& self) {
  const std::shared_ptr<FeatureStore> store = self.opened.get();
  StoreHealth health;
  {
    const Unlocked unlocked;
    health = store->health();
  }
  py::dict made;
  made["store_id"] = health.store_id;
  made["backend"] = health.backend;
  made["root"] = health.root;
  made["incarnation"] = health.incarnation;
  made["layout"] = health.layout;
  made["kind"] = health.kind == StoreKind::kLedgered ? "ledgered" : "consume-once";
  made["secret"] = health.secret;
  made["encrypted"] = health.encrypted;
  made["read_only"] = health.read_only;
  made["codec"] = std::string(codec_name(health.codec));
  made["resident_samples"] = health.resident_samples;
  made["resident_bytes"] = health.resident_bytes;
  made["max_resident_bytes"] = health.max_resident_bytes;
  made["live_leases"] = health.live_leases;
  made["release_pending"] = health.release_pending;
  made["freed_total"] = health.freed_total;
  made["freed_bytes_total"] = health.freed_bytes_total;
  made["errors_total"] = health.errors_total;
  made["codec_saved_bytes_total"] = health.codec_saved_bytes_total;
  made["oldest_age_s"] = health.oldest_age_s;
  made["average_age_s"] = health.average_age_s;
  made["free_bytes"] = health.free_bytes;
  return made;
}

std::vector<ResidentSample> list_resident(StoreHandle& self, std::optional<std::size_t> limit) {
  const std::shared_ptr<FeatureStore> store = self.opened.get();
  const Unlocked unlocked;
  std::vector<ResidentSample> found;
  if (limit && *limit == 0) return found;
  store->for_each(
      [&](const ResidentSample& sample) {
        found.push_back(sample);
        return !limit || found.size() < *limit;
      },
      [](const std::filesystem::path&, const std::string&) {});
  return found;
}

py::object one_of(const PySample& sample, const Tensor& tensor, const std::string& name) {
  return tensor_to(tensor, sample.shared, sample.framework, sample.device, name);
}

py::dict all_of(const PySample& sample) {
  return tensors_to(sample.fetched.tensors, sample.shared, sample.framework, sample.device);
}

// What is no name is in no sample.
const Tensor* find_named(const PySample& sample, const py::object& name) {
  return py::isinstance<py::str>(name) ? find_tensor(sample.fetched.tensors, name.cast<std::string>()) : nullptr;
}

using SampleClass = py::class_<PySample>;

// As collections.abc.Mapping has them.
void bind_mapping(SampleClass& sample) {
  const auto view = [](const char* kind) {
    return [kind](const py::object& self) { return py::module_::import("collections.abc").attr(kind)(self); };
  };
  sample
      .def("__getitem__",
           [](const PySample& self, const std::string& name) {
             const Tensor* tensor = find_tensor(self.fetched.tensors, name);
             if (tensor == nullptr) throw py::key_error(name);
             return one_of(self, *tensor, name);
           })
      .def(
          "get",
          [](const PySample& self, const py::object& name, const py::object& otherwise) {
            const Tensor* tensor = find_named(self, name);
            return tensor == nullptr ? otherwise : one_of(self, *tensor, name.cast<std::string>());
          },
          py::arg("name"), py::arg("default") = py::none())
      .def("__contains__", [](const PySample& self, const py::object& name) { return find_named(self, name) != nullptr; })
      .def("__len__", [](const PySample& self) { return self.fetched.tensors.size(); })
      .def("__iter__", [](const py::object& self) { return py::iter(self.attr("names")); })
      .def("keys", view("KeysView"))
      .def("values", view("ValuesView"))
      .def("items", view("ItemsView"));
  py::module_::import("collections.abc").attr("Mapping").attr("register")(sample);
}

void bind_sample(py::module_& module) {
  SampleClass sample(module, "Sample",
                     "A fetched sample, leased until release() or the end of its `with`: a mapping of names to tensors. As a "
                     "context it gives a dict of them.");
  sample.def_property_readonly("handle", [](const PySample& self) { return self.fetched.handle; })
      .def_property_readonly("names",
                             [](const PySample& self) {
                               std::vector<std::string> names;
                               for (const auto& [name, tensor] : self.fetched.tensors) names.push_back(name);
                               return names;
                             })
      .def("tensors", &all_of, "{name: tensor}, in the ref's order, in the framework that get was asked for.")
      .def("release", &release_sample, "Ends the lease; in a consume-once store that is consumption. Idempotent.")
      .def("__enter__", &all_of)
      .def("__exit__", [](PySample& self, const py::args&) { release_sample(self); });
  bind_mapping(sample);
}

void bind_resident(py::module_& module) {
  py::class_<ResidentSample>(module, "ResidentSample", "One generation that can be got, as a walk finds it.")
      .def_property_readonly("sample_id", [](const ResidentSample& sample) { return sample.sample_id.str(); })
      .def_readonly("generation", &ResidentSample::generation)
      .def_readonly("bytes", &ResidentSample::bytes)
      .def_readonly("leases", &ResidentSample::leases)
      .def_readonly("age_s", &ResidentSample::age_s)
      .def_property_readonly("path", [](const ResidentSample& sample) -> py::object {
        return sample.path.empty() ? py::none() : py::object(py::str(sample.path.string()));
      });
}

using StoreClass = py::class_<StoreHandle, std::shared_ptr<StoreHandle>>;

void bind_opening(StoreClass& bound) {
  bound
      .def_static("open", &attach, py::arg("url"), py::kw_only(), py::arg("secret_file") = py::none(),
                  py::arg("secret") = py::none(), py::arg("retain_on_release") = false, py::arg("lease_ms") = 60'000,
                  "Attaches to a store that is there (mem:// is made). The secret of one that has it: a file, bytes, or the "
                  "environment's "
                  "DRAFTFLOW_STORE_SECRET. NotFound, PermissionDenied.")
      .def_static(
          "create",
          [](const py::object& place, const std::string& kind, const std::string& durability, std::uint64_t max_resident_bytes,
             std::int64_t max_hold_age_ms, const std::string& codec, const std::string& layout, const OptionalPath& secret_file,
             const py::object& given_secret, bool encrypt, bool retain_on_release, std::uint64_t free_space_floor_bytes,
             std::int64_t lease_ms) {
            const std::optional<py::bytes> secret = secret_bytes(given_secret);
            const std::string url = place_from(place);
            const SharedDirOptions options{.kind = kind_from(kind),
                                           .durability = durability_from(durability),
                                           .max_resident_bytes = max_resident_bytes,
                                           .max_hold_age_ms = max_hold_age_ms,
                                           .codec = codec_from_name(codec),
                                           .layout = layout_from(layout),
                                           .secret = secret_from(secret_file, secret),
                                           .encrypt = encrypt,
                                           .free_space_floor_bytes = free_space_floor_bytes,
                                           .retain_on_release = retain_on_release,
                                           .lease_ms = lease_ms};
            return remember(open_store(url, options, true), secret_file, secret.has_value(), options);
          },
          py::arg("url"), py::kw_only(), py::arg("kind") = "ledgered", py::arg("durability") = "none",
          py::arg("max_resident_bytes") = 0, py::arg("max_hold_age_ms") = 0, py::arg("codec") = "raw",
          py::arg("layout") = "draftflow", py::arg("secret_file") = py::none(), py::arg("secret") = py::none(),
          py::arg("encrypt") = false, py::arg("retain_on_release") = false, py::arg("free_space_floor_bytes") = 64ULL << 20,
          py::arg("lease_ms") = 60'000,
          "Makes the store, or attaches to one that was made with the same options (InvalidArgument, naming both, otherwise). "
          "kind: 'ledgered' (a ledger's sweep frees) or 'consume-once' (the last release frees). durability: 'none', 'data', "
          "'full'. codec: 'raw', 'fp8_e4m3', 'int8', 'zstd'.");
}

void bind_verbs(StoreClass& bound) {
  add_method<Put>(bound);
  add_method<Get>(bound);
  bound
      .def("read", &read, py::arg("ref"), py::arg("names") = py::none(), py::kw_only(), py::arg("framework") = "torch",
           py::arg("device") = py::none(),
           "{name: tensor} without a lease: copies the bytes and leaves no trace; never consumes.")
      .def("release", &release, py::arg("handle"), "Ends the lease of a handle. Idempotent.")
      .def(
          "remove",
          [](StoreHandle& self, const SampleRef& ref) {
            const auto store = self.opened.get();
            const Unlocked unlocked;
            return store->remove(ref);
          },
          py::arg("ref"), "That generation is at once not gettable; True if it was there. Idempotent.")
      .def(
          "abort",
          [](StoreHandle& self, const std::string& sample_id) {
            const SampleId id(sample_id);
            const auto store = self.opened.get();
            const Unlocked unlocked;
            return store->abort(id);
          },
          py::arg("sample_id"), "The same for every generation of the sample; how many there were.")
      .def("gc", &gc, "Frees what nobody can use; touches no live lease. Counts and bytes of what it did.")
      .def("health", &health, "Scalars, at a cost that does not depend on the number of samples.")
      .def(
          "find",
          [](StoreHandle& self, const std::string& sample_id, std::optional<std::uint64_t> generation) {
            const SampleId id(sample_id);
            const auto store = self.opened.get();
            const Unlocked unlocked;
            return store->find(id, generation);
          },
          py::arg("sample_id"), py::arg("generation") = py::none(),
          "A ref to a generation on the books, by default the current one. NotFound.")
      .def("resident", &list_resident, py::arg("limit") = py::none(), "The generations that can be got, in no order.")
      .def(
          "close", [](StoreHandle& self) { self.opened.close(); },
          "Ends its leases as a death would: nothing is consumed. Idempotent.")
      .def("__reduce__", &reduce)
      .def_readonly("url", &StoreHandle::url)
      .def("__enter__", [](const std::shared_ptr<StoreHandle>& self) { return self; })
      .def("__exit__", [](StoreHandle& self, const py::args&) { self.opened.close(); })
      .def("__repr__", [](const StoreHandle& self) { return fmt::format("Store('{}')", self.url); });
}

}  // namespace

void bind_store(py::module_& module) {
  bind_sample(module);
  bind_resident(module);
  StoreClass store(module, "Store",
                   "The bytes of samples: a folder that processes share, mem://NAME in "
                   "this process, or file:// for feature files where they "
                   "lie. Any thread; a forked child opens it anew.");
  bind_opening(store);
  bind_verbs(store);
  module.def(
      "make_file_ref",
      [](const std::filesystem::path& file, const std::string& sample_id, const std::string& run_id,
         const std::string& strategy) {
        PutMetadata facts{.run_id = RunId(run_id), .strategy = strategy};
        const SampleId id(sample_id);
        const Unlocked unlocked;
        const TensorMap tensors = read_feature_file(file).tensors;
        facts.num_tokens = tokens_of(tensors);
        return make_file_ref(file, tensors, id, facts);
      },
      py::arg("file"), py::arg("sample_id"), py::kw_only(), py::arg("run_id") = "offline", py::arg("strategy") = "eagle3",
      "The ref of a feature file where it lies, for Store.open('file://'). The file is read once.");
}

}  // namespace draftflow::python
