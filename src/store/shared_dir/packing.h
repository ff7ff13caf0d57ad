// SPDX-License-Identifier: Apache-2.0
//
// Packing: the tensors of a sample as they lie in a generation's file, where the store has a codec, and what the file says
// about those that the codec changed (docs/formats/shared_dir.md). Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "draftflow/formats/codec.h"
#include "draftflow/formats/tensor.h"
#include "draftflow/formats/torch_zip.h"
#include "draftflow/records/sample_ref.h"

namespace draftflow::store {

// A tensor of a file, as it is when it is unpacked.
struct StoredTensor {
  std::string name;
  Codec codec = Codec::kRaw;
  DType dtype = DType::kUInt8;
  std::vector<std::int64_t> shape;
};

struct PackedSample {
  TensorMap parts;                   // as they go into the file, largest element first, so that each is aligned there
  std::vector<StoredTensor> packed;  // the tensors that are not as they came: never kRaw
  TorchPickle torch_pickle;          // what torch's zip says of the parts, where the file is one
};

const StoredTensor* find_stored(const std::vector<StoredTensor>& tensors, std::string_view name);  // nullptr if absent

// Raw shares the tensors' bytes. InvalidArgument as `encode`, and for a tensor whose name ends like the scales of another.
PackedSample pack(Codec codec, const TensorMap& tensors);

// {"hidden": {"codec": "int8", "dtype": "bfloat16", "shape": [1, 8]}}
std::string packed_to_json(const std::vector<StoredTensor>& packed);

// Corrupt, without the object's name, for anything but what packed_to_json writes.
std::vector<StoredTensor> packed_from_json(std::string_view text);

// The ref tells which tensors a codec changed, so that whoever trains on them can know.
void add_codecs(SampleRef& ref, const std::vector<StoredTensor>& tensors);

}  // namespace draftflow::store
