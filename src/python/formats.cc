// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <pybind11/stl/filesystem.h>
#include <unistd.h>

#include <cerrno>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/random.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/formats/torch_zip.h"
#include "python/tensors.h"

namespace draftflow::python {
namespace {

TensorMap load_unlocked(const std::filesystem::path& path) {
  const Unlocked unlocked;
  return load_feature_file(path);
}

py::tuple read_mixed(const std::filesystem::path& path) {
  const FeatureFile file = [&] {
    const Unlocked unlocked;
    return read_feature_file(path);
  }();
  py::dict types;
  for (const auto& [name, type] : file.values) types[py::str(name)] = type;
  return py::make_tuple(tensors_to(file.tensors, false, Framework::kTorch, py::none()), types);
}

void save_torch(const std::filesystem::path& path, const TensorMap& tensors) {
  std::filesystem::path temporary = path;
  temporary += "." + random_hex128().substr(0, 12) + ".tmp";
  try {
    {
      const UniqueFd fd = open_file(temporary, O_WRONLY | O_CREAT | O_EXCL);
      write_torch_zip(fd.get(), temporary, tensors);
      if (::fsync(fd.get()) != 0) throw_errno(errno, "syncing " + temporary.string());
    }
    std::filesystem::rename(temporary, path);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
}

void save(const std::filesystem::path& path, const py::dict& tensors) {
  const TensorMap map = tensors_from(tensors);
  const Unlocked unlocked;
  if (path.extension() == ".safetensors") {
    write_safetensors(path, map);
  } else {
    save_torch(path, map);
  }
}

}  // namespace

void bind_formats(py::module_& module) {
  module.def(
      "load_feature_file",
      [](const std::filesystem::path& path, const std::string& framework) {
        const Framework wanted = framework_from(framework);
        return tensors_to(load_unlocked(path), false, wanted, py::none());
      },
      py::arg("path"), py::kw_only(), py::arg("framework") = "torch",
      "The tensors of a .ckpt, .ckpt.gz or .safetensors file, by name, in the file's order. Nothing in it is executed: torch's "
      "files are read as data. InvalidArgument for a value that is no tensor, Corrupt for a damaged file.");
  module.def(
      "_read_feature_file", &read_mixed, py::arg("path"),
      "As load_feature_file, of a file with other values, too: {name: torch tensor}, and {name: type} of what is no tensor.");
  module.def("save_feature_file", &save, py::arg("path"), py::arg("tensors"),
             "Writes {name: tensor} in one step, as .safetensors or, for another ending, as torch.save does: "
             "torch.load(path, weights_only=True) reads it.");
  module.def(
      "list_feature_files",
      [](const std::filesystem::path& folder) {
        const Unlocked unlocked;
        return list_feature_files(folder);
      },
      py::arg("folder"), "Every feature file below the folder, sorted by absolute path.");
}

}  // namespace draftflow::python
