// SPDX-License-Identifier: Apache-2.0
#include "store/fuzz/generation_body.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <xxhash.h>

#include <cstring>
#include <stdexcept>
#include <string_view>

#include "draftflow/base/error.h"
#include "store/shared_dir/torch_generation.h"

namespace draftflow::fuzz {
namespace {

constexpr std::string_view kChecksumKey = "\"header_xxh3_64\":\"";
constexpr std::size_t kDigits = 16;

void mend_checksum(std::string& file) {
  std::uint64_t length = 0;
  if (file.size() < sizeof(length)) return;
  std::memcpy(&length, file.data(), sizeof(length));
  if (length > file.size() - sizeof(length)) return;
  const std::string_view header(file.data(), sizeof(length) + length);
  const std::size_t key = header.find(kChecksumKey);
  if (key == std::string_view::npos || key + kChecksumKey.size() + kDigits > header.size()) return;
  const std::size_t at = key + kChecksumKey.size();
  file.replace(at, kDigits, std::string(kDigits, '0'));
  file.replace(at, kDigits, fmt::format("{:016x}", XXH3_64bits(file.data(), header.size())));
}

}  // namespace

store::Identity generation_identity() {
  return {"st", "0123456789abcdef0123456789abcdef", "a", (1ULL << 24) + 1};
}

bool generation_body(std::span<const std::byte> input) {
  std::string file(reinterpret_cast<const char*>(input.data()), input.size());
  mend_checksum(file);
  UniqueFd fd(::memfd_create("fuzz", MFD_CLOEXEC));
  write_all(fd.get(), std::as_bytes(std::span(file)), "fuzz");
  bool all = true;
  if (file.starts_with("PK")) {
    store::find_torch_facts(fd.get(), "fuzz");
    BufferPool pool(0);
    try {
      store::TorchGeneration generation(fd.get(), "fuzz", generation_identity(), /*mapped=*/false, pool);
      for (const store::StoredTensor& stored : generation.tensors()) {
        FeatureSpec spec;
        spec.name = stored.name;
        spec.dtype = stored.dtype;
        spec.shape = stored.shape;
        generation.read(spec);
      }
      return true;
    } catch (const Error&) {
      return false;
    }
  }
  try {
    const store::GenerationReader reader(std::move(fd), "fuzz", generation_identity());
    BufferPool pool(0);
    for (const store::StoredTensor& stored : reader.tensors()) {
      FeatureSpec spec;
      spec.name = stored.name;
      spec.dtype = stored.dtype;
      spec.shape = stored.shape;
      try {
        const Tensor tensor = reader.read(spec, pool);
        if (tensor.bytes.size() != tensor_bytes(tensor.dtype, tensor.shape)) throw std::logic_error("bytes fit the shape");
        if (tensor.dtype != spec.dtype || tensor.shape != spec.shape) throw std::logic_error("the tensor is the one listed");
      } catch (const Error&) {
        all = false;
      }
    }
  } catch (const Error&) {
    return false;
  }
  return all;
}

}  // namespace draftflow::fuzz
