// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <set>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/gather_writer.h"
#include "draftflow/base/text.h"
#include "draftflow/formats/torch_zip.h"
#include "formats/pickle.h"
#include "formats/zip.h"
#include "formats/zip_writer.h"

namespace draftflow {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are stored and used little-endian");

constexpr std::size_t kMaxDimensions = 64;  // as torch
constexpr std::string_view kFolder = "archive/", kVersion = "3\n";

[[noreturn]] void refuse(std::string_view name, const std::string& problem) {
  throw InvalidArgument(fmt::format("torch zip: tensor '{}' {}", printable(name), problem));
}

// data.pkl as docs/formats/torch_zip.md says. No memo: nothing in it refers to anything else in it.
class PickleWriter {
 public:
  PickleWriter() { text_ = "\x80\x02}("; }

  void add(std::string_view name, const Tensor& tensor, std::size_t storage) {
    string(name);
    global("torch._utils", "_rebuild_tensor_v2");
    text_ += "((";
    string("storage");
    global("torch", formats::torch_storage_class(tensor.dtype));
    string(std::to_string(storage));
    string("cpu");
    number(static_cast<std::int64_t>(tensor.bytes.size() / dtype_bytes(tensor.dtype)));
    text_ += "tQ";
    number(0);
    tuple(tensor.shape);
    tuple(strides_of(name, tensor.shape));
    text_ += '\x89';  // requires no gradient
    global("collections", "OrderedDict");
    text_ += ")RtR";
  }

  std::size_t bytes() const { return text_.size(); }

  std::string finish() {
    text_ += "u.";
    return std::move(text_);
  }

 private:
  // Row-major, and as torch where an extent is 0: there the stride counts it as 1.
  static std::vector<std::int64_t> strides_of(std::string_view name, const std::vector<std::int64_t>& shape) {
    std::vector<std::int64_t> strides(shape.size());
    std::int64_t stride = 1;
    for (std::size_t i = shape.size(); i-- > 0;) {
      strides[i] = stride;
      if (i > 0 && __builtin_mul_overflow(stride, std::max<std::int64_t>(shape[i], 1), &stride)) {
        refuse(name,
               fmt::format("of shape {} is empty, but its strides pass 2^63: give it smaller extents", shape_text(shape)));
      }
    }
    return strides;
  }

  void raw(std::int64_t value, std::size_t bytes) { text_.append(reinterpret_cast<const char*>(&value), bytes); }

  void string(std::string_view text) {
    text_ += 'X';
    raw(static_cast<std::int64_t>(text.size()), 4);
    text_ += text;
  }

  void global(std::string_view module, std::string_view attribute) {
    text_ += 'c';
    text_ += module;
    text_ += '\n';
    text_ += attribute;
    text_ += '\n';
  }

  // The shortest form that Python would choose; the value is not negative.
  void number(std::int64_t value) {
    if (value <= 0xff) {
      text_ += 'K';
      raw(value, 1);
    } else if (value <= 0xffff) {
      text_ += 'M';
      raw(value, 2);
    } else if (value <= INT32_MAX) {
      text_ += 'J';
      raw(value, 4);
    } else {
      const auto bytes = static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(value)) / 8 + 1);  // and its sign
      text_ += '\x8a';
      raw(static_cast<std::int64_t>(bytes), 1);
      raw(value, bytes);
    }
  }

  void tuple(const std::vector<std::int64_t>& values) {
    if (values.size() > 3) text_ += '(';
    for (const std::int64_t value : values) number(value);
    constexpr char ends[] = {')', '\x85', '\x86', '\x87', 't'};
    text_ += ends[std::min<std::size_t>(values.size(), 4)];
  }

  std::string text_;
};

void check(std::string_view name, const Tensor& tensor) {
  const std::size_t at = find_invalid_utf8(name);
  if (at != std::string_view::npos) refuse(name, fmt::format("has a name that is not UTF-8 at byte {}", at));
  if (tensor.shape.size() > kMaxDimensions) {
    refuse(name, fmt::format("has {} dimensions: at most {} are allowed", tensor.shape.size(), kMaxDimensions));
  }
  if (tensor_bytes(tensor.dtype, tensor.shape) != tensor.bytes.size()) {
    refuse(name, fmt::format("of dtype {} and shape {} has {} bytes, which does not fit", dtype_name(tensor.dtype),
                             shape_text(tensor.shape), tensor.bytes.size()));
  }
}

}  // namespace

TorchPickle make_torch_pickle(const TensorMap& tensors) {
  PickleWriter pickle;
  std::set<std::string_view> names;
  std::size_t storage = 0;
  for (const auto& [name, tensor] : tensors) {
    check(name, tensor);
    if (!names.insert(name).second) refuse(name, "is given twice");
    pickle.add(name, tensor, storage++);
    if (pickle.bytes() + 2 > formats::kMaxPickleBytes) {
      throw InvalidArgument(
          fmt::format("torch zip: the names and shapes of the first {} tensors of {} take over {} bytes, the most that is "
                      "read: write fewer "
                      "tensors to one file",
                      storage, tensors.size(), formats::kMaxPickleBytes));
    }
  }
  return {pickle.finish()};
}

namespace {

void write(const TensorMap& tensors, const TorchPickle& pickle, const ByteSink& sink, const std::optional<std::string>& note) {
  const std::string folder(kFolder);
  if (note && note->size() > kMaxTorchNoteBytes) {
    throw InvalidArgument(fmt::format("torch zip: the note has {} bytes: {} are allowed", note->size(), kMaxTorchNoteBytes));
  }
  formats::ZipWriter zip(sink);
  if (note) zip.add(folder + std::string(formats::kNoteEntry), std::as_bytes(std::span(*note)));
  zip.add(folder + "data.pkl", std::as_bytes(std::span(pickle.bytes)));
  std::size_t storage = 0;
  for (const auto& [name, tensor] : tensors) zip.add(folder + "data/" + std::to_string(storage++), tensor.bytes);
  zip.add(folder + "version", std::as_bytes(std::span(kVersion)));
  zip.finish();
}

}  // namespace

void write_torch_zip(const TensorMap& tensors, const ByteSink& sink, const std::optional<std::string>& note) {
  if (!sink) throw InvalidArgument("torch zip: there is no sink to write to");
  write(tensors, make_torch_pickle(tensors), sink, note);
}

void write_torch_zip(int fd, const std::string& path, const TensorMap& tensors, const std::optional<std::string>& note) {
  write_torch_zip(fd, path, tensors, make_torch_pickle(tensors), note);
}

void write_torch_zip(int fd, const std::string& path, const TensorMap& tensors, const TorchPickle& pickle,
                     const std::optional<std::string>& note) {
  constexpr std::size_t kCopiedBytes = 64 << 10;  // headers and small tensors, which would be a call each
  GatherWriter out(fd, path);
  const auto sink = [&](std::span<const std::byte> bytes) {
    if (bytes.size() < kCopiedBytes) return out.add_copy(bytes);
    out.add(bytes);
    out.flush();
  };
  write(tensors, pickle, sink, note);
  out.flush();
}

}  // namespace draftflow
