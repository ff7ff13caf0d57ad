// SPDX-License-Identifier: Apache-2.0
//
// The file of one generation where the reference runtime reads it too (layout=specforge): the zip of torch.save, with a note
// in front that says whose bytes these are (docs/formats/reference.md). The zip's CRC-32s are the checksums. Functions are
// thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/base/file.h"
#include "draftflow/formats/buffer_pool.h"
#include "draftflow/formats/tensor.h"
#include "draftflow/formats/torch_zip.h"
#include "store/shared_dir/generation_file.h"
#include "store/shared_dir/packing.h"

namespace draftflow::store {

// What torch cannot hold has been refused by whoever made the sample's pickle.
void write_torch_generation(int fd, const std::string& path, const Identity& identity, const PackedSample& sample);

// What the note says.
struct TorchFacts {
  Identity identity;
  std::uint64_t tensor_bytes = 0;
};

// By the file's first bytes alone; nothing if it is no such zip, or damaged there. Reads a few KiB.
std::optional<TorchFacts> find_torch_facts(int fd, const std::string& path);

// What a generation's file, this kind or safetensors, says of itself, by its first bytes alone and not held against its
// checksums. Corrupt or InvalidArgument if it says nothing of the sort.
Identity read_identity(int fd, const std::string& path);

// A file of torch.save that holds nothing but tensors, to be read in part. Corrupt, naming it, for anything else.
TorchZip open_torch_file(int fd, const std::string& path, const std::string& what, bool mapped, BufferPool& pool);

// The file of one generation. Corrupt for damage, and for a file that is not the one `identity` means. `fd` and `pool` outlive
// it.
class TorchGeneration {
 public:
  TorchGeneration(int fd, const std::string& path, const Identity& identity, bool mapped, BufferPool& pool);

  Tensor read(const FeatureSpec& spec);
  std::vector<StoredTensor> tensors() const;

 private:
  std::string what_;
  TorchZip zip_;
};

}  // namespace draftflow::store
