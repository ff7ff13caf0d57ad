// SPDX-License-Identifier: Apache-2.0
//
// Reads the zip that torch.save writes for a dict {name: tensor} (docs/formats/torch_zip.md) as data: the handful of
// pickle opcodes and globals it needs are interpreted, anything else is refused by name, nothing is ever executed.
// Plain values (strings, numbers, None, lists, dicts) are recognised and reported as such. Memory is bounded by the file's
// size. It writes the same kind of zip for torch.load(path, weights_only=True). Thread-safe.
//
//   UniqueFd fd = open_file("a.ckpt.tmp", O_WRONLY | O_CREAT | O_EXCL);
//   write_torch_zip(fd.get(), "a.ckpt.tmp", tensors);
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "draftflow/formats/buffer_pool.h"
#include "draftflow/formats/tensor.h"

namespace draftflow {

struct TorchFile {
  TensorMap tensors;                                        // views into the input, strided ones copied contiguous
  std::vector<std::pair<std::string, std::string>> values;  // top-level entries that are no tensor: name -> "str", "int", ...
  std::optional<std::string> note;                          // the writer's, if there is one
};

// `bytes` is the whole file; the tensors keep `owner` alive. Corrupt for a damaged file, InvalidArgument for one that is
// sound but refused (a compressed entry, a global off the list: named).
TorchFile parse_torch_zip(std::span<const std::byte> bytes, std::shared_ptr<const void> owner, std::string_view what);

// An open file of torch.save, read in part: the constructor reads what the directory and the pickle say of the tensors, `read`
// the bytes of one. Checksums are verified of what is read. Errors as in parse_torch_zip; a copy survives that the file is cut
// short meanwhile, as Corrupt. Used by one thread.
class TorchZip {
 public:
  struct Entry {
    std::string name;
    DType dtype = DType::kUInt8;
    std::vector<std::int64_t> shape;
  };

  // `mapped`: tensors are views of a mapping, for local file systems; else copies in memory of the pool's. `fd` stays open
  // while this lives, `pool` lives longer.
  TorchZip(int fd, const std::string& path, std::string what, bool mapped, BufferPool& pool);
  TorchZip(TorchZip&&) noexcept;
  ~TorchZip();

  const std::vector<Entry>& tensors() const;
  const std::vector<std::pair<std::string, std::string>>& values() const;  // as TorchFile::values
  const std::optional<std::string>& note() const;
  std::optional<Tensor> read(std::string_view name);  // nothing for a name that it has not

 private:
  struct Body;
  std::unique_ptr<Body> body_;
};

// Gets the bytes of a file piece by piece, in order. A piece lives until the call returns.
using ByteSink = std::function<void(std::span<const std::byte>)>;

// Writes the tensors as a file of torch.save: the same bytes for the same tensors, front to back without seeking (a pipe
// will do), each tensor straight from where it lies; what grows with the file is some 100 bytes a tensor. InvalidArgument,
// before the first byte, for a name that is not UTF-8 or is given twice, a tensor whose bytes do not fit its shape, more
// than 64 dimensions, or so many tensors that parse_torch_zip would refuse the file. A sink that throws ends the writing;
// what it has got by then is no whole file, and never reads as one. A note is a text of the writer's own: the file's first
// entry, where torch does not look.
void write_torch_zip(const TensorMap& tensors, const ByteSink& sink, const std::optional<std::string>& note = {});
void write_torch_zip(int fd, const std::string& path, const TensorMap& tensors, const std::optional<std::string>& note = {});

// The same in two steps, of which the first says what the tensors are, and refuses; the pickle is of these very tensors.
struct TorchPickle {
  std::string bytes;
};
TorchPickle make_torch_pickle(const TensorMap& tensors);
void write_torch_zip(int fd, const std::string& path, const TensorMap& tensors, const TorchPickle& pickle,
                     const std::optional<std::string>& note = {});

// The note of an open file, from its first bytes alone; nothing if it has none. Its CRC-32 is checked: Corrupt.
constexpr std::size_t kMaxTorchNoteBytes = 8 << 10;
std::optional<std::string> read_torch_note(int fd, const std::string& path);

}  // namespace draftflow
