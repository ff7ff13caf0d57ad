// SPDX-License-Identifier: Apache-2.0
//
// A Hugging Face model folder: config.json with model.safetensors, or with model.safetensors.index.json and its shards.
// Opening reads headers only. Errors name the folder, the file and the tensor. Thread-safe for reading once opened.
//
//   ModelFolder folder("examples/target");
//   Tensor weight = folder.read("model.norm.weight");
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "draftflow/formats/safetensors.h"

namespace draftflow {

class ModelFolder {
 public:
  // NotFound for a missing folder or file, Corrupt for a damaged header or an index that contradicts its shards (a tensor
  // listed but absent, a shard missing, a shard path that leaves the folder).
  explicit ModelFolder(std::filesystem::path folder);

  const std::filesystem::path& path() const { return folder_; }
  const std::string& config_json() const { return config_json_; }
  const SafetensorsEntry* find(std::string_view name) const;  // nullptr if absent
  std::vector<std::string> names() const;                     // sorted
  Tensor read(const std::string& name) const;                 // NotFound, listing near names

 private:
  struct Place {
    std::filesystem::path file;
    SafetensorsEntry entry;
    std::uint64_t data_offset;
  };
  std::filesystem::path folder_;
  std::string config_json_;
  std::map<std::string, Place, std::less<>> places_;
};

}  // namespace draftflow
