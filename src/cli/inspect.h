// SPDX-License-Identifier: Apache-2.0
//
// Looking into the things a run makes: feature files, model and draft folders, ledgers, run folders. Reading only; memory
// stays within the largest tensor (model folders) or the file (feature files). Thread-safe.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/app.h"
#include "draftflow/formats/tensor.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {

// The least, the greatest and the number of NaN among the elements; min and max leave NaN out.
struct TensorStats {
  double min = 0, max = 0;
  std::int64_t nan_count = 0, infinite_count = 0, count = 0;
};
TensorStats tensor_stats(const Tensor& tensor);

// {"kind": "feature file" | "model folder" | "ledger" | "run folder", ...}. InvalidArgument, listing the kinds, for
// anything else; NotFound if there is nothing.
nlohmann::ordered_json inspect_path(const std::filesystem::path& path, bool with_values);

// {"name", "dtype", "shape"}, with values "min", "max", "nan_count" and "infinite_count" too; and a line for each of these.
// An entry with "checksum" shows that as well.
nlohmann::ordered_json tensor_entry(const std::string& name, DType dtype, const std::vector<std::int64_t>& shape);
nlohmann::ordered_json tensor_entry(const std::string& name, const Tensor& tensor, bool with_values);
std::string tensor_rows(const nlohmann::ordered_json& entries);

std::filesystem::path ledger_path(const std::filesystem::path& where);                  // of a run folder, or the file itself
void show_failed_prompts(const std::filesystem::path& ledger, const Console& console);  // the first few, with their reasons

}  // namespace draftflow::cli
