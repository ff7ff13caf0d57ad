// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/torch_zip.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
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

constexpr std::string_view kPickleEntry = "data.pkl", kByteOrderEntry = "byteorder";
constexpr std::string_view kLegacyMark("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14);
constexpr std::size_t kMaxDimensions = 64;                              // as torch
constexpr std::uint64_t kSmallBytes = 64 << 10;                         // of a file that is read in one call
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

// Bytes that live as long as their owner.
struct Storage {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

class Parser {
 public:
  struct Item {  // of the dict
    std::string_view name;
    const PickleValue* value;
  };

  // Everything is there, and everything is verified.
  Parser(std::span<const std::byte> bytes, std::shared_ptr<const void> owner, std::string_view what)
      : bytes_(bytes), owner_(std::move(owner)), what_(what), budget_(copy_budget(bytes.size())) {
    refuse_other_formats();
    keep(formats::read_stored_zip(bytes_, what_));
    read_pickle();
  }

  // `fetch` brings what is not a tensor's, `storage` the bytes of one entry; both are used while the parser lives.
  Parser(std::span<const std::byte> bytes, std::string_view what, formats::Fetch fetch,
         std::function<Storage(const formats::ZipEntry&)> storage)
      : bytes_(bytes), what_(what), budget_(copy_budget(bytes.size())), fetch_(std::move(fetch)), storage_(std::move(storage)) {
    if (!bytes_.empty()) fetch_(0, std::min<std::uint64_t>(bytes_.size(), kLegacyMark.size()));
    refuse_other_formats();
    keep(formats::list_stored_zip(bytes_, what_, fetch_));
    for (const auto& [name, entry] : entries_) {
      if (name == kPickleEntry || name == kByteOrderEntry || name == formats::kNoteEntry) fetch_checked(entry);
    }
    read_pickle();
  }

  const std::vector<Item>& items() const { return items_; }

  std::optional<std::string> note() const {
    const auto note = entries_.find(formats::kNoteEntry);
    if (note == entries_.end()) return std::nullopt;
    const auto data = note->second.data;
    return std::string(reinterpret_cast<const char*>(data.data()), data.size());
  }

  // Of an item that is a tensor: what it is, by the pickle alone.
  std::pair<DType, std::vector<std::int64_t>> describe(const Item& item) {
    name_ = item.name;
    return {dtype_of(pickle_[item.value->items[0]]), numbers(pickle_[item.value->items[2]], "shape")};
  }

  Tensor make_tensor(const Item& item) {
    name_ = item.name;
    const PickleValue& value = *item.value;
    const PickleValue& storage = pickle_[value.items[0]];
    const DType dtype = dtype_of(storage);
    const Storage data = storage_bytes(storage, dtype);
    const Layout layout{number(pickle_[value.items[1]], "offset"), numbers(pickle_[value.items[2]], "shape"),
                        numbers(pickle_[value.items[3]], "stride")};
    if (layout.shape.size() != layout.strides.size()) {
      fail(fmt::format("has {} extents but {} strides", layout.shape.size(), layout.strides.size()));
    }
    const std::uint64_t bytes = bytes_of(dtype, layout.shape);
    if (bytes == 0) return Tensor{dtype, layout.shape, data.bytes.first(0), data.owner};
    check_reach(layout, storage.number);
    const std::byte* begin = data.bytes.data() + static_cast<std::uint64_t>(layout.offset) * dtype_bytes(dtype);
    const bool aligned = reinterpret_cast<std::uintptr_t>(begin) % dtype_bytes(dtype) == 0;
    if (is_contiguous(layout) && aligned) return Tensor{dtype, layout.shape, {begin, bytes}, data.owner};
    spend(bytes);
    auto [tensor, out] = Tensor::allocate(dtype, layout.shape);
    copy_strided(layout, dtype_bytes(dtype), data.bytes.data(), out);
    return tensor;
  }

 private:
  void read_pickle() {
    check_byte_order();
    pickle_ = formats::read_pickle(need(std::string(kPickleEntry)).data, what_);
    const PickleValue& top = pickle_[pickle_.top];
    if (top.kind != PickleKind::kDict) {
      throw InvalidArgument(
          fmt::format("{}: the file holds a {}: a dict of tensors by name is needed", what_, python_type(top.kind)));
    }
    std::set<std::string_view> names;
    for (std::size_t i = 0; i < top.items.size(); i += 2) {
      const PickleValue &key = pickle_[top.items[i]], &value = pickle_[top.items[i + 1]];
      if (key.kind != PickleKind::kStr) {
        throw InvalidArgument(
            fmt::format("{}: the dict has a key of type {}: names are strings", what_, python_type(key.kind)));
      }
      name_ = key.text;
      if (!names.insert(name_).second) fail("is in the dict twice");
      items_.push_back({name_, &value});
    }
  }

  [[noreturn]] void fail(const std::string& problem) const {
    throw Corrupt(fmt::format("{}: '{}' {}", what_, printable(name_), problem));
  }

  void refuse_other_formats() const {
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()), bytes_.size());
    if (text.starts_with(kLegacyMark)) {
      throw InvalidArgument(
          fmt::format("{}: this is torch's format from before version 1.6: load it in PyTorch and save it again", what_));
    }
    if (!text.starts_with("PK\x03\x04")) {
      throw Corrupt(
          fmt::format("{}: this is no file of torch.save: it has {} bytes and does not begin as a zip", what_, bytes_.size()));
    }
  }

  void keep(const std::vector<formats::ZipEntry>& entries) {
    for (const formats::ZipEntry& entry : entries) {
      const std::size_t slash = entry.name.find('/');
      const std::string_view folder = entry.name.substr(0, slash);
      if (slash == std::string_view::npos || (!entries_.empty() && folder != folder_)) {
        throw Corrupt(fmt::format("{}: the zip entry '{}' is not in the one top folder", what_, printable(entry.name)));
      }
      folder_ = folder;
      entries_.emplace(entry.name.substr(slash + 1), entry);
    }
  }

  void fetch_checked(const formats::ZipEntry& entry) const {
    fetch_(static_cast<std::uint64_t>(entry.data.data() - bytes_.data()), entry.data.size());
    formats::check_crc(entry, entry.data, what_);
  }

  const formats::ZipEntry& need(const std::string& name) const {
    const auto at = entries_.find(name);
    if (at == entries_.end()) {
      throw Corrupt(fmt::format("{}: the zip has no entry '{}/{}'", what_, printable(folder_), printable(name)));
    }
    return at->second;
  }

  void check_byte_order() const {
    const auto at = entries_.find(kByteOrderEntry);
    if (at == entries_.end()) return;
    const auto data = at->second.data;
    const std::string_view order(reinterpret_cast<const char*>(data.data()), data.size());
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

  DType dtype_of(const PickleValue& storage) const {
    if (storage.dtype) return *storage.dtype;
    throw InvalidArgument(fmt::format(
        "{}: '{}' is a tensor over an untyped storage, which is not read: save it as a plain tensor", what_, printable(name_)));
  }

  Storage storage_bytes(const PickleValue& storage, DType dtype) const {
    const formats::ZipEntry& entry = need("data/" + std::string(storage.text));
    const std::int64_t count[] = {storage.number};
    if (bytes_of(dtype, count) != entry.data.size()) {
      fail(fmt::format("has a storage of {} {} elements, but data/{} has {} bytes", storage.number, dtype_name(dtype),
                       printable(storage.text), entry.data.size()));
    }
    return storage_ ? storage_(entry) : Storage{entry.data, owner_};
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
  formats::Fetch fetch_;
  std::function<Storage(const formats::ZipEntry&)> storage_;
  std::map<std::string_view, formats::ZipEntry> entries_;
  Pickle pickle_;
  std::vector<Item> items_;
};

}  // namespace

TorchFile parse_torch_zip(std::span<const std::byte> bytes, std::shared_ptr<const void> owner, std::string_view what) {
  Parser parser(bytes, std::move(owner), what);
  TorchFile file;
  for (const Parser::Item& item : parser.items()) {
    if (item.value->kind == PickleKind::kTensor) {
      file.tensors.emplace_back(item.name, parser.make_tensor(item));
    } else {
      file.values.emplace_back(item.name, python_type(item.value->kind));
    }
  }
  file.note = parser.note();
  return file;
}

struct TorchZip::Body {
  Body(int fd, const std::string& path, std::string what, bool mapped, BufferPool& pool);

  void fetch(std::uint64_t at, std::uint64_t size) const;
  Storage load(const formats::ZipEntry& entry);

  int fd;
  std::string path;
  std::string what;
  bool mapped;
  BufferPool& pool;
  // Of the file; or the whole of a small one, read; or as much empty memory, in which only what is fetched takes place.
  MappedFile file;
  std::span<std::byte> unmapped;  // that memory
  std::map<std::string_view, Storage> loaded;
  std::optional<Parser> parser;
  std::vector<Entry> tensors;
  std::vector<std::pair<std::string, std::string>> values;
  std::optional<std::string> note;
};

TorchZip::Body::Body(int file_fd, const std::string& file_path, std::string file_what, bool is_mapped, BufferPool& buffers)
    : fd(file_fd), path(file_path), what(std::move(file_what)), mapped(is_mapped), pool(buffers) {
  if (mapped) {
    file = map_file(fd, path);
  } else if (const std::uint64_t size = file_size(fd, path); size > 0 && size <= kSmallBytes) {
    auto [whole, bytes] = pool.allocate(DType::kUInt8, {static_cast<std::int64_t>(size)});
    read_exact(fd, bytes, 0, path);
    file = {bytes, whole.owner};
  } else if (size > 0) {
    void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw_errno(errno, fmt::format("room to read {} of {}", human_bytes(size), path));
    unmapped = {static_cast<std::byte*>(memory), size};
    file = {unmapped, std::shared_ptr<const void>(memory, [size](void* begin) { ::munmap(begin, size); })};
  }
  parser.emplace(
      file.bytes, what, [this](std::uint64_t at, std::uint64_t size) { fetch(at, size); },
      [this](const formats::ZipEntry& entry) { return load(entry); });
  for (const Parser::Item& item : parser->items()) {
    if (item.value->kind == PickleKind::kTensor) {
      auto [dtype, shape] = parser->describe(item);
      tensors.push_back({std::string(item.name), dtype, std::move(shape)});
    } else {
      values.emplace_back(item.name, python_type(item.value->kind));
    }
  }
  note = parser->note();
}

void TorchZip::Body::fetch(std::uint64_t at, std::uint64_t size) const {
  if (!unmapped.empty()) read_exact(fd, unmapped.subspan(at, size), at, path);
}

// Of tensors that share a storage, one copy.
Storage TorchZip::Body::load(const formats::ZipEntry& entry) {
  const auto found = loaded.find(entry.name);
  if (found != loaded.end()) return found->second;
  Storage storage{entry.data, file.owner};
  // torch aligns entries; where another program has not, each tensor of the storage would be copied for itself.
  const bool aligned = reinterpret_cast<std::uintptr_t>(entry.data.data()) % alignof(std::max_align_t) == 0;
  if (!mapped && (!unmapped.empty() || !aligned)) {
    auto [tensor, bytes] = pool.allocate(DType::kUInt8, {static_cast<std::int64_t>(entry.data.size())});
    if (unmapped.empty()) {
      std::copy(entry.data.begin(), entry.data.end(), bytes.begin());
    } else {
      read_exact(fd, bytes, static_cast<std::uint64_t>(entry.data.data() - file.bytes.data()), path);
    }
    storage = {bytes, tensor.owner};
  }
  formats::check_crc(entry, storage.bytes, what);
  return loaded.emplace(entry.name, std::move(storage)).first->second;
}

TorchZip::TorchZip(int fd, const std::string& path, std::string what, bool mapped, BufferPool& pool)
    : body_(std::make_unique<Body>(fd, path, std::move(what), mapped, pool)) {}

TorchZip::TorchZip(TorchZip&&) noexcept = default;
TorchZip::~TorchZip() = default;

const std::vector<TorchZip::Entry>& TorchZip::tensors() const {
  return body_->tensors;
}

const std::vector<std::pair<std::string, std::string>>& TorchZip::values() const {
  return body_->values;
}

const std::optional<std::string>& TorchZip::note() const {
  return body_->note;
}

std::optional<Tensor> TorchZip::read(std::string_view name) {
  for (const Parser::Item& item : body_->parser->items()) {
    if (item.name == name && item.value->kind == PickleKind::kTensor) return body_->parser->make_tensor(item);
  }
  return std::nullopt;
}

std::optional<std::string> read_torch_note(int fd, const std::string& path) {
  std::string head(4, '\0');
  const std::uint64_t bytes = file_size(fd, path);
  if (bytes < head.size()) return std::nullopt;
  read_exact(fd, std::as_writable_bytes(std::span(head)), 0, path);
  if (head != "PK\x03\x04") return std::nullopt;  // most files that are asked have no zip
  head.resize(std::min(bytes, kMaxNoteHeadBytes));
  read_exact(fd, std::as_writable_bytes(std::span(head)), 0, path);
  const auto entry = formats::first_stored_entry(std::as_bytes(std::span(head)), path);
  if (!entry || entry->name.substr(entry->name.find('/') + 1) != formats::kNoteEntry) return std::nullopt;
  return std::string(reinterpret_cast<const char*>(entry->data.data()), entry->data.size());
}

}  // namespace draftflow
