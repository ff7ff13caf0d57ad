// SPDX-License-Identifier: Apache-2.0
//
// draftflow inspect: what is in a file or a folder.
#include <fcntl.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <ostream>

#include "cli/app.h"
#include "cli/inspect.h"
#include "cli/metrics.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/formats/model_folder.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow inspect features/0000.ckpt\n"
    "  draftflow inspect out/demo/train/draft --json\n"
    "  draftflow inspect out/demo";

constexpr const char* kKinds =
    "a feature file (.ckpt, .ckpt.gz, .safetensors), a folder with config.json (model or draft), a ledger (SQLite file) or a "
    "run's folder";

double half_to_double(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 0x1F;
  const int mantissa = bits & 0x3FF;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 0x1F) return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(mantissa + 1024, exponent - 25);
}

double bfloat16_to_double(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

template <class T, class Convert>
TensorStats collect(const Tensor& tensor, Convert convert) {
  TensorStats stats;
  bool first = true;
  for (const T element : tensor.as<T>()) {
    const double value = convert(element);
    ++stats.count;
    if (std::isnan(value)) {
      ++stats.nan_count;
      continue;
    }
    if (std::isinf(value)) ++stats.infinite_count;
    stats.min = first ? value : std::min(stats.min, value);
    stats.max = first ? value : std::max(stats.max, value);
    first = false;
  }
  return stats;
}

template <class T>
TensorStats collect_plain(const Tensor& tensor) {
  return collect<T>(tensor, [](T element) { return static_cast<double>(element); });
}

Json inspect_feature_file(const std::filesystem::path& path, bool with_values) {
  Json tensors = Json::array();
  for (const auto& [name, tensor] : load_feature_file(path)) tensors.push_back(tensor_entry(name, tensor, with_values));
  return {{"kind", "feature file"}, {"path", json_text(path.string())}, {"tensors", tensors}};
}

Json inspect_model_folder(const std::filesystem::path& path, bool with_values) {
  const ModelFolder folder(path);
  Json tensors = Json::array();
  for (const std::string& name : folder.names()) {
    if (with_values) {
      tensors.push_back(tensor_entry(name, folder.read(name), true));
    } else {
      const SafetensorsEntry* entry = folder.find(name);
      tensors.push_back(tensor_entry(name, entry->dtype, entry->shape));
    }
  }
  const Json config = Json::parse(folder.config_json(), nullptr, false);
  return {{"kind", "model folder"}, {"path", json_text(path.string())}, {"config", config}, {"tensors", tensors}};
}

Json inspect_ledger(const std::filesystem::path& path) {
  return {{"kind", "ledger"},
          {"path", json_text(path.string())},
          {"status", to_json(open_sqlite_ledger_read_only(path)->status())}};
}

Json inspect_run_folder(const std::filesystem::path& path) {
  Json result{{"kind", "run folder"}, {"path", json_text(path.string())}};
  result["ledger"] = inspect_ledger(path / "ledger.sqlite3")["status"];
  result["finished"] = std::filesystem::exists(path / "summary.json");
  if (result["finished"]) result["summary"] = Json::parse(read_text_file(path / "summary.json", 16 << 20), nullptr, false);
  return result;
}

bool is_sqlite_file(const std::filesystem::path& path) {
  constexpr std::string_view kMagic("SQLite format 3\0", 16);
  const UniqueFd fd = open_file(path, O_RDONLY);
  if (file_size(fd.get(), path) < kMagic.size()) return false;
  char head[16];
  read_exact(fd.get(), std::as_writable_bytes(std::span(head)), 0, path);
  return std::memcmp(head, kMagic.data(), kMagic.size()) == 0;
}

bool has_feature_ending(const std::string& name) {
  return name.ends_with(".ckpt") || name.ends_with(".ckpt.gz") || name.ends_with(".safetensors");
}

std::string plain_text(const Json& found) {
  std::string text =
      fmt::format("{}: {}\n", found["kind"].get<std::string>(), printable(found["path"].get<std::string>(), 2000));
  if (found.contains("config")) text += printable_lines(found["config"].dump(2)) + "\n";
  if (found.contains("tensors")) text += tensor_rows(found["tensors"]);
  for (const char* key : {"status", "ledger", "summary"}) {
    if (found.contains(key)) text += std::string(key) + ": " + printable_lines(found[key].dump(2)) + "\n";
  }
  return text;
}

}  // namespace

TensorStats tensor_stats(const Tensor& tensor) {
  switch (tensor.dtype) {
    case DType::kBool:
    case DType::kUInt8: return collect_plain<std::uint8_t>(tensor);
    case DType::kInt8: return collect_plain<std::int8_t>(tensor);
    case DType::kInt16: return collect_plain<std::int16_t>(tensor);
    case DType::kInt32: return collect_plain<std::int32_t>(tensor);
    case DType::kInt64: return collect_plain<std::int64_t>(tensor);
    case DType::kFloat16: return collect<std::uint16_t>(tensor, half_to_double);
    case DType::kBFloat16: return collect<std::uint16_t>(tensor, bfloat16_to_double);
    case DType::kFloat32: return collect_plain<float>(tensor);
    case DType::kFloat64: return collect_plain<double>(tensor);
  }
  return {};
}

Json tensor_entry(const std::string& name, DType dtype, const std::vector<std::int64_t>& shape) {
  return {{"name", json_text(name)}, {"dtype", std::string(dtype_name(dtype))}, {"shape", shape}};
}

Json tensor_entry(const std::string& name, const Tensor& tensor, bool with_values) {
  Json entry = tensor_entry(name, tensor.dtype, tensor.shape);
  if (!with_values) return entry;
  const TensorStats stats = tensor_stats(tensor);
  entry["min"] = stats.min;
  entry["max"] = stats.max;
  entry["nan_count"] = stats.nan_count;
  entry["infinite_count"] = stats.infinite_count;
  return entry;
}

std::string tensor_rows(const Json& tensors) {
  std::size_t width = 4;
  for (const Json& entry : tensors) width = std::max(width, entry["name"].get_ref<const std::string&>().size());
  width = std::min<std::size_t>(width, 60);
  std::string text;
  for (const Json& entry : tensors) {
    const auto shape = entry["shape"].get<std::vector<std::int64_t>>();
    text += fmt::format("  {:<{}}  {:<9} {:<18}", printable(entry["name"].get<std::string>()), width,
                        entry["dtype"].get<std::string>(), shape_text(shape));
    if (entry.contains("min")) {
      text += fmt::format(" min {:<12.6g} max {:<12.6g} NaN {}", entry["min"].get<double>(), entry["max"].get<double>(),
                          entry["nan_count"].get<std::int64_t>());
      if (entry["infinite_count"] != 0) text += fmt::format(" infinite {}", entry["infinite_count"].get<std::int64_t>());
    }
    if (entry.contains("checksum")) text += "  checksum " + entry["checksum"].get<std::string>();
    text += "\n";
  }
  return text;
}

Json inspect_path(const std::filesystem::path& path, bool with_values) {
  const std::filesystem::file_status status = std::filesystem::status(path);
  if (!std::filesystem::exists(status)) throw NotFound(path.string() + " is not there");
  if (std::filesystem::is_directory(status)) {
    if (std::filesystem::exists(path / "ledger.sqlite3")) return inspect_run_folder(path);
    if (std::filesystem::exists(path / "config.json")) return inspect_model_folder(path, with_values);
  } else if (std::filesystem::is_regular_file(status)) {
    if (has_feature_ending(path.filename().string())) return inspect_feature_file(path, with_values);
    if (is_sqlite_file(path)) return inspect_ledger(path);
  }
  throw InvalidArgument(fmt::format("{} is nothing that inspect knows: it takes {}", path.string(), kKinds));
}

void add_inspect_command(CommandLine& line) {
  struct Arguments {
    std::filesystem::path path;
    bool json = false, headers_only = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App& app = *line.app.add_subcommand("inspect", "Show what is in a file or a folder");
  app.add_option("path", arguments->path, kKinds)->required()->type_name("PATH");
  app.add_flag("--headers-only", arguments->headers_only, "read no tensor data: no least, greatest and NaN");
  app.add_flag("--json", arguments->json, "print JSON");
  app.footer(kExample);
  app.callback([&line, arguments] {
    line.action = [&line, arguments] {
      const Json found = inspect_path(arguments->path, !arguments->headers_only);
      line.console.out << (arguments->json ? found.dump() + "\n" : plain_text(found));
      return 0;
    };
  });
}

}  // namespace draftflow::cli
