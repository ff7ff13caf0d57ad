// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/model_folder.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMaxConfigBytes = 16U << 20;
constexpr std::uint64_t kMaxIndexBytes = 100'000'000;  // as a safetensors header
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

// Parses a JSON object; a name given twice is Corrupt, because the two may disagree.
Json parse_object(const std::filesystem::path& path, std::string_view text) {
  std::vector<std::set<std::string>> names;
  const auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) names.emplace_back();
    if (event == Json::parse_event_t::object_end) names.pop_back();
    if (event == Json::parse_event_t::key && !names.back().insert(parsed.get<std::string>()).second) {
      throw Corrupt(fmt::format("{} gives '{}' twice in one object", path.string(), printable(parsed.get<std::string>())));
    }
    return true;
  };
  Json value = Json::parse(text, watch, /*allow_exceptions=*/false);
  if (!value.is_object()) throw Corrupt(path.string() + " is not a JSON object: it is truncated or damaged");
  return value;
}

bool stays_inside(const std::filesystem::path& shard) {
  if (shard.empty() || shard.is_absolute() || shard.native().find('\0') != std::string::npos) return false;
  return std::none_of(shard.begin(), shard.end(), [](const std::filesystem::path& part) { return part == ".."; });
}

// Levenshtein distance, in bytes.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t corner = row[0]++;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t changed = corner + (a[i - 1] == b[j - 1] ? 0 : 1);
      corner = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, changed});
    }
  }
  return row.back();
}

std::string near_names(const std::string& wanted, const std::vector<std::string>& names) {
  constexpr std::size_t most = 5, longest = 256;
  std::vector<std::pair<std::size_t, std::string_view>> ranked;
  for (const std::string& name : names) {
    if (name.size() <= longest && wanted.size() <= longest) ranked.emplace_back(distance(wanted, name), name);
  }
  std::sort(ranked.begin(), ranked.end());
  std::string text;
  for (std::size_t i = 0; i < std::min(most, ranked.size()); ++i) text += (i == 0 ? "" : ", ") + printable(ranked[i].second);
  return text.empty() ? fmt::format("it has {} tensors", names.size())
                      : fmt::format("the nearest of {} are {}", names.size(), text);
}

SafetensorsHeader header_of(const std::filesystem::path& path) {
  const UniqueFd fd = open_file(path, O_RDONLY | O_NONBLOCK);
  return read_safetensors_header(fd.get(), path);
}

// shard -> the tensors that the index places there.
std::map<std::string, std::vector<std::string>> read_index(const std::filesystem::path& path) {
  const Json index = parse_object(path, read_text_file(path, kMaxIndexBytes));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) throw Corrupt(path.string() + " has no object 'weight_map'");
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string()) throw Corrupt(fmt::format("{} places '{}' in no file", path.string(), printable(name)));
    if (!stays_inside(shard.get_ref<const std::string&>())) {
      throw Corrupt(fmt::format("{} places '{}' in '{}', outside the model's folder", path.string(), printable(name),
                                printable(shard.get_ref<const std::string&>())));
    }
    shards[shard.get<std::string>()].push_back(name);
  }
  return shards;
}

}  // namespace

ModelFolder::ModelFolder(std::filesystem::path folder) : folder_(std::move(folder)) {
  std::error_code ignored;
  if (!std::filesystem::exists(folder_, ignored))
    throw NotFound(fmt::format("the model folder {} does not exist", folder_.string()));
  if (!std::filesystem::is_directory(folder_, ignored)) {
    throw InvalidArgument(
        fmt::format("{} is not a folder: a model is a folder with config.json and {}", folder_.string(), kSingleFile));
  }
  config_json_ = read_text_file(folder_ / "config.json", kMaxConfigBytes);
  parse_object(folder_ / "config.json", config_json_);

  if (std::filesystem::exists(folder_ / kSingleFile, ignored)) {
    const std::filesystem::path file = folder_ / kSingleFile;
    SafetensorsHeader header = header_of(file);
    for (SafetensorsEntry& entry : header.entries) {
      std::string name = entry.name;
      places_.emplace(std::move(name), Place{file, std::move(entry), header.data_offset});
    }
    return;
  }
  if (!std::filesystem::exists(folder_ / kIndexFile, ignored)) {
    throw NotFound(
        fmt::format("the model folder {} has neither {} nor {}: other weight files (.bin, .gguf) must be converted first",
                    folder_.string(), kSingleFile, kIndexFile));
  }
  for (const auto& [shard, names] : read_index(folder_ / kIndexFile)) {
    const std::filesystem::path file = folder_ / shard;
    if (!std::filesystem::exists(file, ignored)) {
      throw Corrupt(fmt::format("{} lists the shard {}, which is missing: download the rest of the model",
                                (folder_ / kIndexFile).string(), printable(shard)));
    }
    SafetensorsHeader header = header_of(file);
    std::map<std::string_view, SafetensorsEntry*> entries;
    for (SafetensorsEntry& entry : header.entries) entries.emplace(entry.name, &entry);
    for (const std::string& name : names) {
      const auto at = entries.find(name);
      if (at == entries.end()) {
        throw Corrupt(fmt::format("{} places '{}' in {}, which has no such tensor", (folder_ / kIndexFile).string(),
                                  printable(name), printable(shard)));
      }
      places_.emplace(name, Place{file, *at->second, header.data_offset});
    }
  }
}

const SafetensorsEntry* ModelFolder::find(std::string_view name) const {
  const auto at = places_.find(name);
  return at == places_.end() ? nullptr : &at->second.entry;
}

std::vector<std::string> ModelFolder::names() const {
  std::vector<std::string> result;
  for (const auto& [name, place] : places_) result.push_back(name);
  return result;
}

Tensor ModelFolder::read(const std::string& name) const {
  const auto at = places_.find(name);
  if (at == places_.end()) {
    throw NotFound(
        fmt::format("the model {} has no tensor '{}': {}", folder_.string(), printable(name), near_names(name, names())));
  }
  const Place& place = at->second;
  const UniqueFd fd = open_file(place.file, O_RDONLY);
  auto [tensor, out] = Tensor::allocate(place.entry.dtype, place.entry.shape);
  read_exact(fd.get(), out, place.data_offset + place.entry.begin, place.file);
  return tensor;
}

}  // namespace draftflow
