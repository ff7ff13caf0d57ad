// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/torch_zip.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <set>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"
#include "formats/pickle.h"
#include "formats/zip.h"

namespace draftflow {
namespace {

using formats::Pickle;
using formats::PickleKind;
using formats::PickleValue;

static_assert(std::endian::native == std::endian::little, "tensors are stored and used little-endian");

constexpr std::size_t kMaxDimensions = 64;                              // as torch
constexpr std::uint64_t kMaxNoteHeadBytes = kMaxTorchNoteBytes + 1024;  // and the zip's header before it

// Copies of strided tensors may not pass this: a stride of 0 would let a small file fill memory. Small, because the file may
// itself have come out of a gzip that was a hundred times smaller.
std::uint64_t copy_budget(std::uint64_t file_bytes) {
  return std::max<std::uint64_t>(16ULL << 20, 8 * file_bytes);
}

struct Layout {
  std::int64_t offset = 0;
  std::vector<std::int64_t> shape, strides;  // in elements
};

// Row-major, dimensions of extent 1 aside (their stride means nothing).
bool is_contiguous(const Layout& layout) {
  std::int64_t expected = 1;
  for (std::size_t i = layout.shape.size(); i-- > 0;) {
    if (layout.shape[i] == 1) continue;
    if (layout.strides[i] != expected) return false;
    expected *= layout.shape[i];
  }
  return true;
}

template <std::size_t kBytes>
void copy_row(std::byte* out, const std::byte* in, std::int64_t count, std::int64_t stride) {
  for (std::int64_t i = 0; i < count; ++i)
    std::memcpy(out + i * kBytes, in + i * stride * static_cast<std::int64_t>(kBytes), kBytes);
}

// Gathers a strided tensor (every index checked before) into row-major order.
void copy_strided(const Layout& layout, std::size_t element, const std::byte* storage, std::span<std::byte> out) {
  Layout real{layout.offset, {}, {}};
  for (std::size_t i = 0; i < layout.shape.size(); ++i) {
    if (layout.shape[i] == 1) continue;
    real.shape.push_back(layout.shape[i]);
    real.strides.push_back(layout.strides[i]);
  }
  const std::size_t outer = real.shape.empty() ? 0 : real.shape.size() - 1;
  const std::int64_t count = real.shape.empty() ? 1 : real.shape.back(), stride = real.shape.empty() ? 1 : real.strides.back();
  const auto row = element == 1 ? copy_row<1> : element == 2 ? copy_row<2> : element == 4 ? copy_row<4> : copy_row<8>;
  std::vector<std::int64_t> index(outer, 0);
  std::int64_t at = real.offset;
  for (std::size_t done = 0; done < out.size(); done += static_cast<std::size_t>(count) * element) {
    row(out.data() + done, storage + at * static_cast<std::int64_t>(element), count, stride);
    for (std::size_t i = outer; i-- > 0;) {
      at += real.strides[i];
      if (++index[i] < real.shape[i]) break;
      at -= real.strides[i] * real.shape[i];
      index[i] = 0;
    }
  }
}

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, std::shared_ptr<const void> owner, std::string_view what)
      : bytes_(bytes), owner_(std::move(owner)), what_(what), budget_(copy_budget(bytes.size())) {}

  TorchFile parse() {
    refuse_other_formats();
    read_entries();
    check_byte_order();
    pickle_ = formats::read_pickle(need("data.pkl"), what_);
    const PickleValue& top = pickle_[pickle_.top];
    if (top.kind != PickleKind::kDict) {
      throw InvalidArgument(
          fmt::format("{}: the file holds a {}: a dict of tensors by name is needed", what_, python_type(top.kind)));
    }
    TorchFile file;
    std::set<std::string_view> names;
    for (std::size_t i = 0; i < top.items.size(); i += 2) {
      const PickleValue &key = pickle_[top.items[i]], &value = pickle_[top.items[i + 1]];
      if (key.kind != PickleKind::kStr) {
        throw InvalidArgument(
            fmt::format("{}: the dict has a key of type {}: names are strings", what_, python_type(key.kind)));
      }
      name_ = key.text;
      if (!names.insert(name_).second) fail("is in the dict twice");
      if (value.kind == PickleKind::kTensor) {
        file.tensors.emplace_back(name_, make_tensor(value));
      } else {
        file.values.emplace_back(name_, python_type(value.kind));
      }
    }
    const auto note = entries_.find(formats::kNoteEntry);
    if (note != entries_.end()) file.note.emplace(reinterpret_cast<const char*>(note->second.data()), note->second.size());
    return file;
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const {
    throw Corrupt(fmt::format("{}: '{}' {}", what_, printable(name_), problem));
  }

  void refuse_other_formats() const {
    constexpr std::string_view legacy("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14);
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()), bytes_.size());
    if (text.starts_with(legacy)) {
      throw InvalidArgument(
          fmt::format("{}: this is torch's format from before version 1.6: load it in PyTorch and save it again", what_));
    }
    if (!text.starts_with("PK\x03\x04")) {
      throw Corrupt(
          fmt::format("{}: this is no file of torch.save: it has {} bytes and does not begin as a zip", what_, bytes_.size()));
    }
  }

  void read_entries() {
    for (const formats::ZipEntry& entry : formats::read_stored_zip(bytes_, what_)) {
      const std::size_t slash = entry.name.find('/');
      const std::string_view folder = entry.name.substr(0, slash);
      if (slash == std::string_view::npos || (!entries_.empty() && folder != folder_)) {
        throw Corrupt(fmt::format("{}: the zip entry '{}' is not in the one top folder", what_, printable(entry.name)));
      }
      folder_ = folder;
      entries_.emplace(entry.name.substr(slash + 1), entry.data);
    }
  }

  std::span<const std::byte> need(const std::string& name) const {
    const auto at = entries_.find(name);
    if (at == entries_.end()) {
      throw Corrupt(fmt::format("{}: the zip has no entry '{}/{}'", what_, printable(folder_), printable(name)));
    }
    return at->second;
  }

  void check_byte_order() const {
    const auto at = entries_.find("byteorder");
    if (at == entries_.end()) return;
    const std::string_view order(reinterpret_cast<const char*>(at->second.data()), at->second.size());
    if (order == "little") return;
    throw InvalidArgument(fmt::format(
        "{}: the tensors are in '{}' byte order: only little is read; save the file again on a little-endian machine", what_,
        printable(order, 20)));
  }

  std::vector<std::int64_t> numbers(const PickleValue& tuple, const char* role) const {
    if (tuple.kind != PickleKind::kTuple) fail(fmt::format("has a {} that is a {}", role, python_type(tuple.kind)));
    if (tuple.items.size() > kMaxDimensions)
      fail(fmt::format("has {} dimensions: at most {} are allowed", tuple.items.size(), kMaxDimensions));
    std::vector<std::int64_t> result;
    for (const std::uint32_t item : tuple.items) result.push_back(number(pickle_[item], role));
    return result;
  }

  std::int64_t number(const PickleValue& value, const char* role) const {
    if (value.kind != PickleKind::kInt || value.wide || value.number < 0)
      fail(fmt::format("has as its {} something that is no size", role));
    return value.number;
  }

  std::uint64_t bytes_of(DType dtype, std::span<const std::int64_t> shape) const {
    try {
      return tensor_bytes(dtype, shape);
    } catch (const InvalidArgument& error) {
      fail(fmt::format("is impossible: {}", error.what()));
    }
  }

  std::span<const std::byte> storage_bytes(const PickleValue& storage) const {
    if (!storage.dtype) {
      throw InvalidArgument(
          fmt::format("{}: '{}' is a tensor over an untyped storage, which is not read: save it as a plain tensor", what_,
                      printable(name_)));
    }
    const auto data = need("data/" + std::string(storage.text));
    const std::int64_t count[] = {storage.number};
    if (bytes_of(*storage.dtype, count) != data.size()) {
      fail(fmt::format("has a storage of {} {} elements, but data/{} has {} bytes", storage.number, dtype_name(*storage.dtype),
                       printable(storage.text), data.size()));
    }
    return data;
  }

  // The largest index that the tensor reaches lies inside its storage.
  void check_reach(const Layout& layout, std::int64_t elements) const {
    std::int64_t last = layout.offset;
    bool overflow = false;
    for (std::size_t i = 0; i < layout.shape.size(); ++i) {
      std::int64_t span = 0;
      overflow |=
          __builtin_mul_overflow(layout.shape[i] - 1, layout.strides[i], &span) || __builtin_add_overflow(last, span, &last);
    }
    if (overflow || last >= elements) {
      fail(fmt::format("of shape {}, strides {} and offset {} leaves its storage of {} elements", shape_text(layout.shape),
                       shape_text(layout.strides), layout.offset, elements));
    }
  }

  Tensor make_tensor(const PickleValue& value) {
    const PickleValue& storage = pickle_[value.items[0]];
    const std::span<const std::byte> data = storage_bytes(storage);
    const DType dtype = *storage.dtype;
    const Layout layout{number(pickle_[value.items[1]], "offset"), numbers(pickle_[value.items[2]], "shape"),
                        numbers(pickle_[value.items[3]], "stride")};
    if (layout.shape.size() != layout.strides.size()) {
      fail(fmt::format("has {} extents but {} strides", layout.shape.size(), layout.strides.size()));
    }
    const std::uint64_t bytes = bytes_of(dtype, layout.shape);
    if (bytes == 0) return Tensor{dtype, layout.shape, data.first(0), owner_};
    check_reach(layout, storage.number);
    const std::byte* begin = data.data() + static_cast<std::uint64_t>(layout.offset) * dtype_bytes(dtype);
    const bool aligned = reinterpret_cast<std::uintptr_t>(begin) % dtype_bytes(dtype) == 0;
    if (is_contiguous(layout) && aligned) return Tensor{dtype, layout.shape, {begin, bytes}, owner_};
    spend(bytes);
    auto [tensor, out] = Tensor::allocate(dtype, layout.shape);
    copy_strided(layout, dtype_bytes(dtype), data.data(), out);
    return tensor;
  }

  void spend(std::uint64_t bytes) {
    if (bytes > budget_) {
      throw InvalidArgument(
          fmt::format("{}: '{}' is a strided view that would unpack to {}, too much for a file of {}: make it contiguous "
                      "before saving it",
                      what_, printable(name_), human_bytes(bytes), human_bytes(bytes_.size())));
    }
    budget_ -= bytes;
  }

  std::span<const std::byte> bytes_;
  std::shared_ptr<const void> owner_;
  std::string_view what_;
  std::uint64_t budget_;
  std::string_view folder_, name_;
  std::map<std::string_view, std::span<const std::byte>> entries_;
  Pickle pickle_;
};

}  // namespace

TorchFile parse_torch_zip(std::span<const std::byte> bytes, std::shared_ptr<const void> owner, std::string_view what) {
  return Parser(bytes, std::move(owner), what).parse();
}

std::optional<std::string> read_torch_note(int fd, const std::filesystem::path& path) {
  std::string head(4, '\0');
  const std::uint64_t bytes = file_size(fd, path);
  if (bytes < head.size()) return std::nullopt;
  read_exact(fd, std::as_writable_bytes(std::span(head)), 0, path);
  if (head != "PK\x03\x04") return std::nullopt;  // most files that are asked have no zip
  head.resize(std::min(bytes, kMaxNoteHeadBytes));
  read_exact(fd, std::as_writable_bytes(std::span(head)), 0, path);
  const auto entry = formats::first_stored_entry(std::as_bytes(std::span(head)), path.string());
  if (!entry || entry->name.substr(entry->name.find('/') + 1) != formats::kNoteEntry) return std::nullopt;
  return std::string(reinterpret_cast<const char*>(entry->data.data()), entry->data.size());
}

}  // namespace draftflow
