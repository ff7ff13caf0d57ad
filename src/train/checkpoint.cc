// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/model/bridge.h"

namespace draftflow {
namespace {

using Json = nlohmann::ordered_json;
constexpr int kStateVersion = 1;
constexpr const char* kPrefix = "step-";
constexpr const char* kTemporary = ".tmp-";

std::string state_to_json(const TrainerState& state) {
  Json object = Json::object();
  object["state_version"] = kStateVersion;
  object["ledger_id"] = state.mark.ledger_id;
  object["group"] = state.mark.group.str();
  object["timeline"] = state.mark.timeline;
  object["step"] = state.mark.step;
  object["windows"] = state.windows;
  object["samples"] = state.samples;
  object["tokens"] = state.tokens;
  object["failed"] = state.failed;
  object["total_steps"] = state.total_steps;
  object["options"] = state.options;
  return object.dump(1) + "\n";
}

TrainerState state_from_json(const std::filesystem::path& file) {
  const Json object = Json::parse(read_text_file(file), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) throw Corrupt(file.string() + " is not a JSON object");
  try {
    if (object.at("state_version") != kStateVersion) {
      throw InvalidArgument(fmt::format("{} has state_version {}: this program knows {}", file.string(),
                                        object.at("state_version").dump(), kStateVersion));
    }
    TrainerState state;
    state.mark.ledger_id = object.at("ledger_id");
    state.mark.group = GroupId(object.at("group").get<std::string>());
    state.mark.timeline = object.at("timeline");
    state.mark.step = object.at("step");
    state.windows = object.at("windows");
    state.samples = object.at("samples");
    state.tokens = object.at("tokens");
    state.failed = object.at("failed");
    state.total_steps = object.at("total_steps");
    state.options = object.at("options").get<std::map<std::string, std::string>>();
    return state;
  } catch (const Json::exception& error) {
    throw Corrupt(fmt::format("{}: {}", file.string(), error.what()));
  }
}

}  // namespace

CheckpointFolder::CheckpointFolder(std::filesystem::path folder) : folder_(std::move(folder)) {
  make_folders(folder_);
}

void CheckpointFolder::clear_unfinished() const {
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    if (entry.path().filename().string().starts_with(kTemporary)) std::filesystem::remove_all(entry.path());
  }
}

std::vector<std::filesystem::path> CheckpointFolder::steps() const {
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    if (entry.path().filename().string().starts_with(kPrefix)) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::optional<FoundCheckpoint> CheckpointFolder::newest() const {
  const auto found = steps();
  if (found.empty()) return std::nullopt;
  return FoundCheckpoint{found.back(), state_from_json(found.back() / "state.json")};
}

std::filesystem::path CheckpointFolder::save(const TrainerState& state, const Eagle3Draft& draft,
                                             const Optimizer& optimizer) const {
  const std::filesystem::path temporary = folder_ / fmt::format("{}{:010}", kTemporary, state.mark.step);
  const std::filesystem::path final_path = folder_ / fmt::format("{}{:010}", kPrefix, state.mark.step);
  std::filesystem::remove_all(temporary);
  try {
    make_folders(temporary);
    draft.save(temporary / "draft");
    TensorMap tensors;
    for (const auto& [name, tensor] : optimizer.state()) tensors.emplace_back(name, from_torch(tensor));
    write_safetensors(temporary / "optimizer.safetensors", tensors);
    replace_file(temporary / "state.json", state_to_json(state));
    std::filesystem::remove_all(final_path);  // the same step, trained again after a resume
    std::filesystem::rename(temporary, final_path);
    sync_folder(folder_);
  } catch (const std::filesystem::filesystem_error& error) {
    std::error_code ignored;
    std::filesystem::remove_all(temporary, ignored);
    throw_errno(error.code().value(), "writing checkpoint " + final_path.string());
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove_all(temporary, ignored);
    throw;
  }
  return final_path;
}

void CheckpointFolder::restore(const FoundCheckpoint& found, Optimizer& optimizer) const {
  NamedTensors state;
  for (const auto& [name, tensor] : read_safetensors(found.folder / "optimizer.safetensors")) {
    state.emplace_back(name, to_torch(tensor));
  }
  optimizer.restore(state, found.state.mark.step);
}

void CheckpointFolder::prune(int keep) const {
  const auto found = steps();
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < found.size(); ++i) std::filesystem::remove_all(found[i]);
}

void check_same_options(const TrainerState& state, const std::map<std::string, std::string>& options,
                        const std::filesystem::path& checkpoint) {
  std::string differing;
  for (const auto& [name, value] : options) {
    const auto at = state.options.find(name);
    const std::string before = at == state.options.end() ? "(absent)" : at->second;
    if (before != value) differing += fmt::format("{}{}: {} then, {} now", differing.empty() ? "" : "; ", name, before, value);
  }
  if (!differing.empty()) {
    throw InvalidArgument(
        fmt::format("checkpoint {} was trained with other options ({}): go on with the same ones, or train "
                    "into another folder",
                    checkpoint.string(), differing));
  }
}

}  // namespace draftflow
