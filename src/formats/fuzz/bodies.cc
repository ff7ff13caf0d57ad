// SPDX-License-Identifier: Apache-2.0
#include "formats/fuzz/bodies.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <string_view>

#include "draftflow/base/error.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/formats/torch_zip.h"
#include "formats/zip.h"
#include "formats/zip_builder.h"

namespace draftflow::fuzz {
namespace {

void require(bool kept, const char* promise) {
  if (!kept) throw std::logic_error(promise);
}

bool equal(const TensorMap& a, const TensorMap& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.first == y.first && x.second.dtype == y.second.dtype && x.second.shape == y.second.shape &&
           std::ranges::equal(x.second.bytes, y.second.bytes);
  });
}

// Views into the file; the entries are in the order of their bytes.
TensorMap tensors_of(const SafetensorsHeader& header, std::span<const std::byte> file) {
  TensorMap tensors;
  std::uint64_t at = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    require(entry.begin == at && entry.end >= at && entry.end <= file.size() - header.data_offset, "entries tile the data");
    at = entry.end;
    const auto bytes = file.subspan(header.data_offset + entry.begin, entry.end - entry.begin);
    tensors.emplace_back(entry.name, Tensor{entry.dtype, entry.shape, bytes, nullptr});
  }
  return tensors;
}

std::string written_torch_zip(const TensorMap& tensors) {
  std::string file;
  write_torch_zip(tensors, [&](std::span<const std::byte> piece) {
    file.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  });
  return file;
}

}  // namespace

bool safetensors_body(std::span<const std::byte> input) {
  SafetensorsHeader header;
  try {
    header = parse_safetensors_header(input, input.size(), "fuzz");
  } catch (const Error&) {
    return false;
  }
  const TensorMap tensors = tensors_of(header, input);
  std::string again = make_safetensors_header(tensors, header.metadata);
  for (const auto& [name, tensor] : tensors) {
    again.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  }
  const auto bytes = std::as_bytes(std::span(again));
  const SafetensorsHeader reread = parse_safetensors_header(bytes, bytes.size(), "written");
  require(reread.metadata == header.metadata, "metadata comes back");
  require(equal(tensors, tensors_of(reread, bytes)), "tensors come back");
  return true;
}

bool torch_zip_body(std::span<const std::byte> input) {
  std::string file(reinterpret_cast<const char*>(input.data()), input.size());
  if (!file.starts_with("PK")) {
    file = testing_support::ZipBuilder().add("a/data.pkl", file).add("a/data/0", std::string(64, '\1')).finish();
  }
  try {
    const auto bytes = std::as_bytes(std::span(file));
    if (const auto note = formats::first_stored_entry(bytes, "fuzz")) {
      require(note->data.data() >= bytes.data() && note->data.size() <= bytes.size(), "a note lies in the file");
    }
  } catch (const Corrupt&) {
  }
  TensorMap tensors;
  try {
    tensors = parse_torch_zip(std::as_bytes(std::span(file)), nullptr, "fuzz").tensors;
  } catch (const Error&) {
    return false;
  }
  std::string again;
  try {
    again = written_torch_zip(tensors);
  } catch (const InvalidArgument& error) {
    // The one thing that the reader takes and the writer does not; the pickle of a small input does not pass its limit.
    require(std::string_view(error.what()).find("strides pass 2^63") != std::string_view::npos, "what was read can be written");
    return true;
  }
  require(equal(tensors, parse_torch_zip(std::as_bytes(std::span(again)), nullptr, "written").tensors), "tensors come back");
  return true;
}

}  // namespace draftflow::fuzz
