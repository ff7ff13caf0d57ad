// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/feature_file.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/formats/torch_zip.h"
#include "formats/gzip.h"

namespace draftflow {
namespace {

enum class FileKind { kTorch, kTorchGzip, kSafetensors, kOther };

FileKind kind_of(std::string_view name) {
  if (name.ends_with(".ckpt")) return FileKind::kTorch;
  if (name.ends_with(".ckpt.gz")) return FileKind::kTorchGzip;
  if (name.ends_with(".safetensors")) return FileKind::kSafetensors;
  return FileKind::kOther;
}

constexpr formats::GzipLimits kGzipLimits{
    .max_bytes = kMaxUnpackedBytes, .any_bytes = kAnyUnpackedBytes, .max_ratio = kMaxUnpackedRatio};

Tensor read_whole(const std::filesystem::path& path) {
  const UniqueFd fd = open_file(path, O_RDONLY | O_NONBLOCK);  // a pipe with this name must not hang us
  const std::uint64_t size = file_size(fd.get(), path);
  auto [tensor, out] = Tensor::allocate(DType::kUInt8, {static_cast<std::int64_t>(size)});
  read_exact(fd.get(), out, 0, path);
  return tensor;
}

FeatureFile parse_torch(const Tensor& file, const std::filesystem::path& path) {
  TorchFile torch = parse_torch_zip(file.bytes, file.owner, path.string());
  return {std::move(torch.tensors), std::move(torch.values)};
}

}  // namespace

std::vector<std::filesystem::path> list_feature_files(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::file_status status = fs::status(folder, error);
  if (status.type() == fs::file_type::not_found) throw NotFound(fmt::format("the folder {} does not exist", folder.string()));
  if (error) throw_errno(error.value(), "looking at the folder " + folder.string());
  if (status.type() != fs::file_type::directory) throw InvalidArgument(folder.string() + " is not a folder");
  std::vector<fs::path> files;
  fs::recursive_directory_iterator at(fs::absolute(folder).lexically_normal(), error);
  for (; !error && at != fs::recursive_directory_iterator(); at.increment(error)) {
    if (kind_of(at->path().native()) == FileKind::kOther) continue;
    // A link to nothing is listed too, so that the reader reports it by name.
    std::error_code ignored;
    const fs::file_type type = at->status(ignored).type();
    if (type == fs::file_type::regular || type == fs::file_type::not_found) files.push_back(at->path());
  }
  if (error) throw_errno(error.value(), "listing the folder " + folder.string());
  // Not path's own order, which compares component by component.
  std::sort(files.begin(), files.end(), [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
  return files;
}

FeatureFile read_feature_file(const std::filesystem::path& path) {
  switch (kind_of(path.native())) {
    case FileKind::kTorch: return parse_torch(read_whole(path), path);
    case FileKind::kTorchGzip: return parse_torch(formats::gunzip_file(path, kGzipLimits), path);
    case FileKind::kSafetensors: return {read_safetensors(path), {}};
    case FileKind::kOther: break;
  }
  throw InvalidArgument(path.string() + " is no feature file: .ckpt, .ckpt.gz and .safetensors are read");
}

TensorMap load_feature_file(const std::filesystem::path& path) {
  FeatureFile file = read_feature_file(path);
  if (!file.values.empty()) {
    const auto& [name, type] = file.values.front();
    throw InvalidArgument(
        fmt::format("{}: '{}' is a {}: every value of a feature file is a tensor", path.string(), printable(name), type));
  }
  return std::move(file.tensors);
}

}  // namespace draftflow
