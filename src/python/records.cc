// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <pybind11/stl/filesystem.h>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/formats/tensor.h"
#include "draftflow/ledger/partition.h"
#include "draftflow/ledger/types.h"
#include "draftflow/records/feature_handle.h"
#include "draftflow/records/manifest.h"
#include "draftflow/records/prompt_task.h"
#include "draftflow/records/sample_ref.h"
#include "python/bindings.h"
#include "python/compat.h"
#include "python/json.h"

namespace draftflow::python {
namespace {

FeatureSpec make_spec(std::string name, std::vector<std::int64_t> shape, const std::string& dtype, bool required,
                      std::optional<std::string> target_repr, const py::object& device_hint, const py::dict& target_meta) {
  FeatureSpec spec{.name = std::move(name),
                   .shape = std::move(shape),
                   .dtype = dtype_from_name(dtype),
                   .required = required,
                   .target_repr = std::move(target_repr)};
  tensor_bytes(spec.dtype, spec.shape);  // refuses what no tensor has
  spec.other.emplace_back("device_hint", to_json(device_hint, "device_hint"));
  spec.other.emplace_back("target_meta", target_meta.empty() ? "{}" : to_json(target_meta, "target_meta"));
  return spec;
}

py::object spec_member(const FeatureSpec& spec, std::string_view name, const py::object& absent) {
  for (const auto& [key, text] : spec.other) {
    if (key == name) return from_json(text);
  }
  return absent;
}

py::dict metadata_of(const SampleRef& ref) {
  py::dict made = members_to(ref.metadata);
  if (ref.generation != 0) made["generation"] = ref.generation;
  if (!ref.incarnation.empty()) made["incarnation"] = ref.incarnation;
  return made;
}

void set_metadata_of(SampleRef& ref, const py::dict& metadata) {
  py::dict rest = metadata.attr("copy")();
  if (rest.contains("generation")) ref.generation = rest.attr("pop")("generation").cast<std::uint64_t>();
  if (rest.contains("incarnation")) ref.incarnation = rest.attr("pop")("incarnation").cast<std::string>();
  ref.metadata = members_from(rest, "metadata");
}

SampleRef make_ref(const std::string& sample_id, const std::string& run_id, std::string uri,
                   const std::vector<FeatureSpec>& specs, const py::dict& feature_keys, const std::string& strategy,
                   std::int64_t num_tokens, const py::dict& metadata, std::optional<std::string> source_task_id,
                   std::string target_model_version, std::string tokenizer_version,
                   std::optional<std::string> draft_weight_version, std::optional<std::uint64_t> estimated_bytes,
                   int schema_version) {
  SampleRef ref{.sample_id = SampleId(sample_id),
                .run_id = RunId(run_id),
                .source_task_id = std::move(source_task_id),
                .feature_store_uri = std::move(uri),
                .feature_specs = specs,
                .strategy = strategy,
                .schema_version = schema_version,
                .target_model_version = std::move(target_model_version),
                .draft_weight_version = std::move(draft_weight_version),
                .tokenizer_version = std::move(tokenizer_version),
                .num_tokens = num_tokens};
  for (const auto& [name, key] : feature_keys) ref.feature_keys.emplace_back(name.cast<std::string>(), key.cast<std::string>());
  std::uint64_t bytes = 0;
  for (const FeatureSpec& spec : specs) {
    bytes += spec.bytes();
    if (feature_keys.empty()) ref.feature_keys.emplace_back(spec.name, sample_id + "/" + spec.name);
  }
  ref.estimated_bytes = estimated_bytes.value_or(bytes);
  set_metadata_of(ref, metadata);
  return ref;
}

void bind_spec(py::module_& module) {
  py::class_<FeatureSpec>(module, "FeatureSpec", "What one named tensor of a sample looks like.")
      .def(py::init(&make_spec), py::arg("name"), py::arg("shape"), py::arg("dtype"), py::kw_only(), py::arg("required") = true,
           py::arg("target_repr") = py::none(), py::arg("device_hint") = py::none(), py::arg("target_meta") = py::dict())
      .def_readonly("name", &FeatureSpec::name)
      .def_property_readonly("shape", [](const FeatureSpec& spec) { return py::tuple(py::cast(spec.shape)); })
      .def_property_readonly("dtype", [](const FeatureSpec& spec) { return std::string(dtype_name(spec.dtype)); })
      .def_readonly("required", &FeatureSpec::required)
      .def_readonly("target_repr", &FeatureSpec::target_repr)
      .def_property_readonly("device_hint",
                             [](const FeatureSpec& spec) { return spec_member(spec, "device_hint", py::none()); })
      .def_property_readonly("target_meta",
                             [](const FeatureSpec& spec) { return spec_member(spec, "target_meta", py::dict()); })
      .def_property_readonly("nbytes", &FeatureSpec::bytes)
      .def("__repr__", [](const FeatureSpec& spec) {
        return fmt::format("FeatureSpec('{}', {} {})", spec.name, dtype_name(spec.dtype),
                           py::str(py::cast(spec.shape)).cast<std::string>());
      });
}

void bind_ref(py::module_& module) {
  py::class_<SampleRef>(
      module, "SampleRef",
      "Metadata that points at one sample in one store; never a tensor. Equal, hashed and pickled by its JSON, "
      "which is the reference runtime's.")
      .def(py::init(&make_ref), py::arg("sample_id"), py::kw_only(), py::arg("run_id"), py::arg("feature_store_uri"),
           py::arg("feature_specs"), py::arg("feature_keys") = py::dict(), py::arg("strategy") = "eagle3",
           py::arg("num_tokens") = 0, py::arg("metadata") = py::dict(), py::arg("source_task_id") = py::none(),
           py::arg("target_model_version") = "unknown", py::arg("tokenizer_version") = "unknown",
           py::arg("draft_weight_version") = py::none(), py::arg("estimated_bytes") = py::none(),
           py::arg("schema_version") = kSchemaVersion)
      .def_property_readonly("sample_id", [](const SampleRef& ref) { return ref.sample_id.str(); })
      .def_property_readonly("run_id", [](const SampleRef& ref) { return ref.run_id.str(); })
      .def_readonly("source_task_id", &SampleRef::source_task_id)
      .def_readonly("feature_store_uri", &SampleRef::feature_store_uri)
      .def_property_readonly("feature_keys",
                             [](const SampleRef& ref) {
                               py::dict made;
                               for (const auto& [name, key] : ref.feature_keys) made[py::str(name)] = py::str(key);
                               return made;
                             })
      .def_property_readonly("feature_specs",
                             [](const SampleRef& ref) {
                               py::dict made;
                               for (const FeatureSpec& spec : ref.feature_specs) made[py::str(spec.name)] = py::cast(spec);
                               return made;
                             })
      .def_readonly("strategy", &SampleRef::strategy)
      .def_readonly("schema_version", &SampleRef::schema_version)
      .def_readonly("target_model_version", &SampleRef::target_model_version)
      .def_readonly("draft_weight_version", &SampleRef::draft_weight_version)
      .def_readonly("tokenizer_version", &SampleRef::tokenizer_version)
      .def_readonly("num_tokens", &SampleRef::num_tokens)
      .def_readonly("estimated_bytes", &SampleRef::estimated_bytes)
      .def_readonly("generation", &SampleRef::generation)
      .def_readonly("incarnation", &SampleRef::incarnation)
      .def_property_readonly("metadata", &metadata_of, "A copy, with the generation and the incarnation of the bytes.")
      .def("to_json", &sample_ref_to_json)
      .def_static("from_json", &sample_ref_from_json, py::arg("text"), "Corrupt, naming the field, for what is no ref.")
      .def_static(
          "locator", &locator_from, py::arg("ref"),
          "What Store.get needs of a ref that is another class's, with the same attributes (draftflow.compat): the features "
          "that its feature_keys names; the rest is left out.")
      .def("__eq__",
           [](const SampleRef& ref, const py::object& other) {
             return py::isinstance<SampleRef>(other) &&
                    sample_ref_to_json(ref) == sample_ref_to_json(other.cast<const SampleRef&>());
           })
      .def("__hash__", [](const SampleRef& ref) { return py::hash(py::make_tuple(ref.sample_id.str(), ref.generation)); })
      .def("__repr__",
           [](const SampleRef& ref) {
             return fmt::format("SampleRef({}, generation {}, {} tensors, {} tokens)",
                                py::repr(py::str(ref.sample_id.str())).cast<std::string>(), ref.generation,
                                ref.feature_specs.size(), ref.num_tokens);
           })
      .def(py::pickle([](const SampleRef& ref) { return py::str(sample_ref_to_json(ref)); },
                      [](const py::str& text) { return sample_ref_from_json(text.cast<std::string>()); }));
}

PromptTask make_task(const std::string& task_id, const std::string& run_id, const py::object& payload, std::string source_id,
                     std::int64_t max_length, std::string chat_template, std::string loss_mask_policy,
                     std::string target_model_version, std::optional<std::string> draft_weight_version, int attempt,
                     const py::dict& metadata) {
  return {.task_id = TaskId(task_id),
          .run_id = RunId(run_id),
          .source_id = std::move(source_id),
          .payload = to_json(payload, "payload"),
          .max_length = max_length,
          .chat_template = std::move(chat_template),
          .loss_mask_policy = std::move(loss_mask_policy),
          .target_model_version = std::move(target_model_version),
          .draft_weight_version = std::move(draft_weight_version),
          .attempt = attempt,
          .metadata = members_from(metadata, "metadata")};
}

void bind_prompts(py::module_& module) {
  py::class_<PromptTask>(module, "PromptTask", "One piece of text, or token ids, waiting to be captured.")
      .def(py::init(&make_task), py::arg("task_id"), py::kw_only(), py::arg("run_id"), py::arg("payload"),
           py::arg("source_id") = "", py::arg("max_length") = 0, py::arg("chat_template") = "",
           py::arg("loss_mask_policy") = "all", py::arg("target_model_version") = "unknown",
           py::arg("draft_weight_version") = py::none(), py::arg("attempt") = 0, py::arg("metadata") = py::dict())
      .def_property_readonly(
          "task_id", [](const PromptTask& task) { return task.task_id.str(); },
          "Also the id of the sample that the task becomes.")
      .def_property_readonly("run_id", [](const PromptTask& task) { return task.run_id.str(); })
      .def_property_readonly("payload", [](const PromptTask& task) { return from_json(task.payload); })
      .def_readonly("source_id", &PromptTask::source_id)
      .def_readonly("max_length", &PromptTask::max_length)
      .def_readonly("chat_template", &PromptTask::chat_template)
      .def_readonly("loss_mask_policy", &PromptTask::loss_mask_policy)
      .def_readonly("target_model_version", &PromptTask::target_model_version)
      .def_readonly("draft_weight_version", &PromptTask::draft_weight_version)
      .def_readonly("attempt", &PromptTask::attempt)
      .def_property_readonly("metadata", [](const PromptTask& task) { return members_to(task.metadata); })
      .def("to_json", &prompt_task_to_json)
      .def_static("from_json", &prompt_task_from_json, py::arg("text"))
      .def("__repr__", [](const PromptTask& task) {
        return fmt::format("PromptTask({})", py::repr(py::str(task.task_id.str())).cast<std::string>());
      });
  py::class_<PromptLease>(module, "PromptLease", "A prompt, leased: the token names the lease.")
      .def_readonly("task", &PromptLease::task)
      .def_readonly("token", &PromptLease::token)
      .def_readonly("taken_over", &PromptLease::taken_over,
                    "Another holder had it before, and may still be at work: Ledger.fence tells the store.");
}

}  // namespace

void bind_records(py::module_& module) {
  bind_spec(module);
  bind_ref(module);
  bind_prompts(module);
  py::class_<FeatureHandle>(module, "FeatureHandle", "Which lease on which bytes: what get gives and release takes.")
      .def(py::init([](const std::string& sample_id, std::uint64_t generation, std::string token) {
             return FeatureHandle{.sample_id = SampleId(sample_id), .generation = generation, .lease_token = std::move(token)};
           }),
           py::arg("sample_id"), py::arg("generation"), py::arg("lease_token"))
      .def_property_readonly("sample_id", [](const FeatureHandle& handle) { return handle.sample_id.str(); })
      .def_readonly("generation", &FeatureHandle::generation)
      .def_readonly("lease_token", &FeatureHandle::lease_token);
  module.attr("SCHEMA_VERSION") = kSchemaVersion;
  module.def(
      "dp_partition", [](const std::string& id, std::int64_t n) { return dp_partition(id, n); }, py::arg("sample_id"),
      py::arg("n"), "Which of n consumers a sample belongs to: the SHA-1 of the id as a number, modulo n; 0 for n <= 1.");
  module.def(
      "read_ref_manifest",
      [](const std::filesystem::path& path) {
        const Unlocked unlocked;
        return read_ref_manifest(path);
      },
      py::arg("path"), "The refs of a manifest file. NotFound, Corrupt naming the ref's place.");
  module.def(
      "write_ref_manifest",
      [](const std::filesystem::path& path, const std::vector<SampleRef>& refs) {
        const Unlocked unlocked;
        write_ref_manifest(path, refs);
      },
      py::arg("path"), py::arg("refs"), "In one step: a file that is there is replaced or stays as it was.");
}

}  // namespace draftflow::python
