// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/packing.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "store/ref_maker.h"

namespace draftflow::store {
namespace {

using Json = nlohmann::ordered_json;

StoredTensor parse_one(const std::string& name, const Json& value) {
  const auto fail = [&](const std::string& problem) {
    throw Corrupt(fmt::format("what it says of the packed tensor '{}' {}", printable(name), problem));
  };
  if (!value.is_object() || !value.contains("codec") || !value.contains("dtype") || !value.contains("shape") ||
      !value["codec"].is_string() || !value["dtype"].is_string() || !value["shape"].is_array()) {
    fail("lacks a codec, a dtype or a shape");
  }
  StoredTensor packed{.name = name};
  try {
    packed.codec = codec_from_name(value["codec"].get<std::string>());
    packed.dtype = dtype_from_name(value["dtype"].get<std::string>());
    for (const Json& extent : value["shape"]) {
      if (!extent.is_number_unsigned()) fail("has a shape that is not of numbers");
      packed.shape.push_back(extent.get<std::int64_t>());
    }
    tensor_bytes(packed.dtype, packed.shape);  // throws for what cannot be
  } catch (const InvalidArgument& error) {
    fail(fmt::format("cannot be: {}", error.what()));
  }
  if (packed.codec == Codec::kRaw) fail("says that it is raw");
  return packed;
}

}  // namespace

const StoredTensor* find_stored(const std::vector<StoredTensor>& tensors, std::string_view name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const StoredTensor& one) { return one.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

PackedSample pack(Codec codec, const TensorMap& tensors) {
  PackedSample sample;
  for (const auto& [name, tensor] : tensors) {
    if (codec == Codec::kRaw) {
      sample.parts.emplace_back(name, tensor);
      continue;
    }
    if (name.ends_with(scale_name(""))) {
      throw InvalidArgument(
          fmt::format("the tensor name '{}' ends in '{}', which a store with codec {} keeps for scales: choose "
                      "another name",
                      printable(name), scale_name(""), codec_name(codec)));
    }
    EncodedTensor encoded = encode(codec, name, tensor);
    if (encoded.codec != Codec::kRaw) sample.packed.push_back({name, encoded.codec, tensor.dtype, tensor.shape});
    for (auto& part : encoded.parts) sample.parts.push_back(std::move(part));
  }
  std::stable_sort(sample.parts.begin(), sample.parts.end(),
                   [](const auto& a, const auto& b) { return dtype_bytes(a.second.dtype) > dtype_bytes(b.second.dtype); });
  return sample;
}

std::string packed_to_json(const std::vector<StoredTensor>& packed) {
  Json value = Json::object();
  for (const StoredTensor& one : packed) {
    value[one.name] = {{"codec", codec_name(one.codec)}, {"dtype", dtype_name(one.dtype)}, {"shape", one.shape}};
  }
  return value.dump();
}

std::vector<StoredTensor> packed_from_json(std::string_view text) {
  const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) throw Corrupt("what it says of packed tensors is not a JSON object");
  std::vector<StoredTensor> packed;
  for (const auto& [name, one] : value.items()) packed.push_back(parse_one(name, one));
  return packed;
}

void add_codecs(SampleRef& ref, const std::vector<StoredTensor>& tensors) {
  nlohmann::ordered_json codecs;
  for (const StoredTensor& tensor : tensors) {
    if (tensor.codec != Codec::kRaw) codecs[tensor.name] = codec_name(tensor.codec);
  }
  if (!codecs.is_null()) ref.metadata.emplace_back(kCodecsKey, codecs.dump());
}

}  // namespace draftflow::store
