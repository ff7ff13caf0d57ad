// SPDX-License-Identifier: Apache-2.0
#include "cli/models.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <string>

#include "draftflow/base/error.h"

namespace draftflow::cli {
namespace {

const Models& check_models(void* library, const std::filesystem::path& path) {
  using Entry = const Models* (*)();
  const auto entry = reinterpret_cast<Entry>(::dlsym(library, "draftflow_models"));
  if (entry == nullptr) throw Unavailable(path.string() + " exports no draftflow_models: build both again with 'make build'");
  const Models& models = *entry();
  if (std::string(models.version) != DRAFTFLOW_VERSION || models.options_bytes != kOptionsBytes) {
    throw Unavailable(fmt::format("{} is of another build (version {}, this program is {}): build both again with 'make build'",
                                  path.string(), models.version, DRAFTFLOW_VERSION));
  }
  return models;
}

}  // namespace

std::vector<std::filesystem::path> models_places() {
  constexpr const char* kName = "libdraftflow_models.so";
  std::vector<std::filesystem::path> places;
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) places.push_back((self.parent_path() / ".." / "lib" / kName).lexically_normal());
  places.push_back(std::filesystem::path(DRAFTFLOW_INSTALL_LIBDIR) / kName);
  return places;
}

const Models& load_models_from(const std::vector<std::filesystem::path>& places) {
  std::string looked;
  for (const std::filesystem::path& path : places) {
    looked += (looked.empty() ? "" : ", ") + path.string();
    if (!std::filesystem::exists(path)) continue;
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      throw Unavailable(
          fmt::format("{} could not be loaded: {}; 'make deps' installs what it needs", path.string(), ::dlerror()));
    }
    return check_models(library, path);
  }
  throw Unavailable(
      fmt::format("this command needs libdraftflow_models.so (libtorch), which is not there (looked for {}): build "
                  "it with 'make build', or configure with -DDRAFTFLOW_TORCH=ON",
                  looked));
}

const Models& load_models() {
  static const Models& models = load_models_from(models_places());
  return models;
}

}  // namespace draftflow::cli
