// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"
#include "draftflow/formats/plain_json.h"
#include "formats/plain_header.h"
#include "formats/safetensors_codes.h"

namespace draftflow {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are stored and used little-endian");

using Json = nlohmann::json;
using formats::code_of;
using formats::kMetadataName;

constexpr std::size_t kLengthBytes = 8;
constexpr std::size_t kDataAlignment = 64;

// The header as a stream of JSON events: the one way to see duplicate keys, and to refuse nesting before it costs
// anything. The members without underscore are what nlohmann's SAX interface calls.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view what) : what_(what) {}

  std::vector<SafetensorsEntry> entries;
  std::vector<std::pair<std::string, std::string>> metadata;

  bool null() { unexpected("null"); }
  bool boolean(bool) { unexpected("a boolean"); }
  bool number_integer(std::int64_t value) { unexpected(fmt::format("the number {}", value)); }
  bool number_float(double, const std::string& text) { unexpected("the number " + printable(text, 40)); }
  bool binary(Json::binary_t&) { unexpected("binary data"); }

  bool number_unsigned(std::uint64_t value) {
    if (place_ == Place::kShape) {
      if (value > INT64_MAX) fail(fmt::format("has an extent of {}", value));
      entries.back().shape.push_back(static_cast<std::int64_t>(value));
    } else if (place_ == Place::kOffsets && offsets_ < 2) {
      (offsets_++ == 0 ? entries.back().begin : entries.back().end) = value;
    } else {
      unexpected(fmt::format("the number {}", value));
    }
    return true;
  }

  bool string(std::string& value) {
    if (place_ == Place::kMetadata) {
      metadata.emplace_back(key_, value);
    } else if (place_ == Place::kEntry && key_ == "dtype") {
      const auto dtype = formats::dtype_of_code(value);
      if (!dtype) refuse_dtype(value);
      entries.back().dtype = *dtype;
    } else {
      unexpected(fmt::format("the string '{}'", printable(value, 40)));
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (place_ == Place::kStart) {
      place_ = Place::kTop;
    } else if (place_ == Place::kTop) {
      place_ = key_ == kMetadataName ? Place::kMetadata : Place::kEntry;
      if (place_ == Place::kEntry) entries.push_back({.name = key_, .dtype = DType::kUInt8});
      fields_.clear();
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(std::string& text) {
    const bool fresh = (place_ == Place::kTop ? names_ : fields_).insert(text).second;
    if (!fresh) {
      if (place_ == Place::kTop)
        throw Corrupt(fmt::format("{}: the name '{}' appears twice in the header", what_, printable(text)));
      fail(fmt::format("has the field '{}' twice", printable(text, 40)));
    }
    if (place_ == Place::kEntry && text != "dtype" && text != "shape" && text != "data_offsets") {
      fail(fmt::format("has a field '{}': only dtype, shape and data_offsets may be there", printable(text, 40)));
    }
    if (place_ == Place::kTop) name_ = text;
    key_ = std::move(text);
    return true;
  }

  bool end_object() {
    if (place_ == Place::kEntry && fields_.size() != 3) {
      for (const char* field : {"dtype", "shape", "data_offsets"}) {
        if (!fields_.contains(field)) fail(fmt::format("has no '{}'", field));
      }
    }
    place_ = place_ == Place::kTop ? Place::kStart : Place::kTop;
    return true;
  }

  bool start_array(std::size_t) {
    const bool shape = key_ == "shape";
    if (place_ != Place::kEntry || (!shape && key_ != "data_offsets")) unexpected("a list");
    place_ = shape ? Place::kShape : Place::kOffsets;
    offsets_ = 0;
    return true;
  }

  bool end_array() {
    if (place_ == Place::kOffsets && offsets_ != 2) fail(fmt::format("has {} data_offsets: two are needed", offsets_));
    place_ = Place::kEntry;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const Json::exception&) {
    throw Corrupt(fmt::format("{}: the header is not valid JSON at byte {}", what_, kLengthBytes + position));
  }

 private:
  enum class Place { kStart, kTop, kMetadata, kEntry, kShape, kOffsets };

  [[noreturn]] void fail(const std::string& problem) const {
    throw Corrupt(
        fmt::format("{}: {} '{}' {}", what_, name_ == kMetadataName ? "the entry" : "tensor", printable(name_), problem));
  }

  [[noreturn]] void unexpected(const std::string& found) const {
    if (place_ == Place::kStart) throw Corrupt(fmt::format("{}: the header is {}, not a JSON object", what_, found));
    if (place_ == Place::kTop) fail(fmt::format("is {} in the header, not an object", found));
    if (place_ == Place::kMetadata) fail(fmt::format("has {} at '{}': only strings may be there", found, printable(key_, 40)));
    fail(fmt::format("has {} where its {} should be", found, key_));
  }

  [[noreturn]] void refuse_dtype(const std::string& found) const {
    std::string known;
    for (const formats::DTypeCode& code : formats::kDTypeCodes) known += (known.empty() ? "" : ", ") + std::string(code.name);
    throw InvalidArgument(
        fmt::format("{}: tensor '{}' has dtype '{}', which draftflow does not read (it reads {}): convert the file first",
                    what_, printable(name_), printable(found, 40), known));
  }

  std::string_view what_;
  Place place_ = Place::kStart;
  std::string name_, key_;
  std::set<std::string> names_, fields_;
  int offsets_ = 0;
};

void check_length(std::uint64_t length, std::uint64_t file_bytes, std::string_view what) {
  if (length > kMaxSafetensorsHeaderBytes) {
    throw Corrupt(fmt::format("{}: the header claims {} bytes: at most {} are allowed; this is no safetensors file", what,
                              length, kMaxSafetensorsHeaderBytes));
  }
  if (length > file_bytes - kLengthBytes) {
    throw Corrupt(
        fmt::format("{}: the header claims {} bytes, but the file has {} in all: it is truncated or no safetensors file", what,
                    length, file_bytes));
  }
}

std::uint64_t read_length(std::span<const std::byte> head, std::uint64_t file_bytes, std::string_view what) {
  if (file_bytes < kLengthBytes || head.size() < kLengthBytes) {
    throw Corrupt(
        fmt::format("{}: {} bytes are too few for a safetensors file", what, std::min<std::uint64_t>(file_bytes, head.size())));
  }
  std::uint64_t length = 0;
  std::memcpy(&length, head.data(), kLengthBytes);
  check_length(length, file_bytes, what);
  return length;
}

// One entry's bytes fit its shape and dtype and start where the bytes before it end.
void check_entry(const SafetensorsEntry& entry, std::uint64_t expected_begin, std::uint64_t data_bytes, std::string_view what) {
  const auto fail = [&](const std::string& problem) {
    throw Corrupt(fmt::format("{}: tensor '{}' {}", what, printable(entry.name), problem));
  };
  if (entry.begin > entry.end || entry.end > data_bytes) {
    fail(fmt::format("claims data bytes {} to {}, but the file has {} of them: it is truncated or damaged", entry.begin,
                     entry.end, data_bytes));
  }
  if (entry.begin > expected_begin)
    fail(fmt::format("leaves a hole: data bytes {} to {} belong to nobody", expected_begin, entry.begin));
  if (entry.begin < expected_begin)
    fail(fmt::format("overlaps another: it starts at data byte {}, before {}", entry.begin, expected_begin));
  std::uint64_t needed = 0;
  try {
    needed = tensor_bytes(entry.dtype, entry.shape);
  } catch (const InvalidArgument& error) {
    fail(fmt::format("is impossible: {}", error.what()));
  }
  if (needed != entry.end - entry.begin) {
    fail(fmt::format("of dtype {} and shape {} needs {} bytes, but its data_offsets span {}", code_of(entry.dtype),
                     shape_text(entry.shape), needed, entry.end - entry.begin));
  }
}

SafetensorsHeader parse_json(std::string_view json, std::string_view what) {
  HeaderReader reader(what);
  Json::sax_parse(json, &reader);
  return {.entries = std::move(reader.entries), .metadata = std::move(reader.metadata)};
}

std::string known_names(const SafetensorsHeader& header) {
  constexpr std::size_t most = 20;
  std::string text;
  for (std::size_t i = 0; i < std::min(most, header.entries.size()); ++i) {
    text += (i == 0 ? "" : ", ") + printable(header.entries[i].name, 80);
  }
  if (header.entries.size() > most) text += fmt::format(" and {} more", header.entries.size() - most);
  return text.empty() ? "no tensors at all" : text;
}

void require_utf8(std::string_view text, std::string_view role) {
  const std::size_t at = find_invalid_utf8(text);
  if (at != std::string_view::npos) {
    throw InvalidArgument(fmt::format("safetensors: the {} '{}' is not UTF-8 at byte {}", role, printable(text), at));
  }
}

void append_metadata(std::string& json, const std::vector<std::pair<std::string, std::string>>& metadata) {
  std::set<std::string_view> seen;
  append_json_text(json, kMetadataName);
  json += ":{";
  for (const auto& [key, value] : metadata) {
    require_utf8(key, "metadata key");
    require_utf8(value, "metadata value");
    if (!seen.insert(key).second)
      throw InvalidArgument(fmt::format("safetensors: metadata key '{}' is given twice", printable(key)));
    if (seen.size() > 1) json += ',';
    append_json_text(json, key);
    json += ':';
    append_json_text(json, value);
  }
  json += '}';
}

void append_entry(std::string& json, std::string_view name, const Tensor& tensor, std::uint64_t at) {
  append_json_text(json, name);
  json += R"(:{"dtype":")";
  json += code_of(tensor.dtype);
  json += R"(","shape":[)";
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    if (i > 0) json += ',';
    append_json_number(json, static_cast<std::uint64_t>(tensor.shape[i]));
  }
  json += R"(],"data_offsets":[)";
  append_json_number(json, at);
  json += ',';
  append_json_number(json, at + tensor.bytes.size());
  json += "]}";
}

}  // namespace

const SafetensorsEntry* SafetensorsHeader::find(std::string_view name) const {
  const auto at =
      std::find_if(entries.begin(), entries.end(), [&](const SafetensorsEntry& entry) { return entry.name == name; });
  return at == entries.end() ? nullptr : &*at;
}

const std::string* SafetensorsHeader::find_metadata(std::string_view key) const {
  const auto at = std::find_if(metadata.begin(), metadata.end(), [&](const auto& member) { return member.first == key; });
  return at == metadata.end() ? nullptr : &at->second;
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, std::uint64_t file_bytes, std::string_view what) {
  const std::uint64_t length = read_length(head, file_bytes, what);
  if (length > head.size() - kLengthBytes) {
    throw Corrupt(fmt::format("{}: the header has {} bytes, but only {} are here: it is truncated", what, length,
                              head.size() - kLengthBytes));
  }
  const std::string_view json(reinterpret_cast<const char*>(head.data()) + kLengthBytes, length);
  if (!json.starts_with('{')) throw Corrupt(fmt::format("{}: the header does not begin with '{{'", what));
  std::optional<SafetensorsHeader> plain = formats::scan_plain_header(json);
  SafetensorsHeader header = plain ? std::move(*plain) : parse_json(json, what);
  header.data_offset = kLengthBytes + length;
  const auto place = [](const SafetensorsEntry& entry) { return std::tie(entry.begin, entry.end); };
  std::stable_sort(header.entries.begin(), header.entries.end(),
                   [&](const SafetensorsEntry& a, const SafetensorsEntry& b) { return place(a) < place(b); });
  const std::uint64_t data_bytes = file_bytes - header.data_offset;
  std::uint64_t at = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    check_entry(entry, at, data_bytes, what);
    at = entry.end;
  }
  if (at != data_bytes) {
    throw Corrupt(fmt::format("{}: {} bytes after the last tensor belong to nobody", what, data_bytes - at));
  }
  return header;
}

SafetensorsHeader read_safetensors_header(int fd, const std::string& path) {
  const std::uint64_t size = file_size(fd, path);
  const std::string& what = path;
  std::vector<std::byte> head(std::min<std::uint64_t>(size, kLengthBytes));
  read_exact(fd, head, 0, path);
  const std::uint64_t length = read_length(head, size, what);
  head.resize(kLengthBytes + length);
  read_exact(fd, std::span(head).subspan(kLengthBytes), kLengthBytes, path);
  return parse_safetensors_header(head, size, what);
}

TensorMap read_safetensors(const std::filesystem::path& path, const std::optional<std::vector<std::string>>& names) {
  const UniqueFd fd = open_file(path, O_RDONLY | O_NONBLOCK);  // a pipe with this name must not hang us
  const SafetensorsHeader header = read_safetensors_header(fd.get(), path);
  TensorMap tensors;
  const auto read = [&](const SafetensorsEntry& entry) {
    auto [tensor, out] = Tensor::allocate(entry.dtype, entry.shape);
    read_exact(fd.get(), out, header.data_offset + entry.begin, path);
    tensors.emplace_back(entry.name, std::move(tensor));
  };
  if (!names) {
    for (const SafetensorsEntry& entry : header.entries) read(entry);
    return tensors;
  }
  for (const std::string& name : *names) {
    const SafetensorsEntry* entry = header.find(name);
    if (entry == nullptr) {
      throw NotFound(fmt::format("{} has no tensor '{}': it has {}", path.string(), printable(name), known_names(header)));
    }
    if (find_tensor(tensors, name) != nullptr) {
      throw InvalidArgument(fmt::format("{}: tensor '{}' is asked for twice", path.string(), printable(name)));
    }
    read(*entry);
  }
  return tensors;
}

std::string make_safetensors_header(const TensorMap& tensors,
                                    const std::vector<std::pair<std::string, std::string>>& metadata) {
  std::set<std::string_view> seen;
  std::string header(kLengthBytes, '\0');
  header.reserve(1 << 10);
  header += '{';
  if (!metadata.empty()) append_metadata(header, metadata);
  std::uint64_t at = 0;
  for (const auto& [name, tensor] : tensors) {
    require_utf8(name, "tensor name");
    if (name == kMetadataName) throw InvalidArgument(fmt::format("safetensors: the tensor name '{}' is reserved", name));
    if (!seen.insert(name).second)
      throw InvalidArgument(fmt::format("safetensors: tensor '{}' is given twice", printable(name)));
    if (tensor_bytes(tensor.dtype, tensor.shape) != tensor.bytes.size()) {
      throw InvalidArgument(fmt::format("safetensors: {} tensor '{}' of shape {} has {} bytes, which does not fit",
                                        dtype_name(tensor.dtype), printable(name), shape_text(tensor.shape),
                                        tensor.bytes.size()));
    }
    if (header.back() == '}') header += ',';
    append_entry(header, name, tensor, at);
    at += tensor.bytes.size();
  }
  header += '}';
  header.resize((header.size() + kDataAlignment - 1) / kDataAlignment * kDataAlignment, ' ');
  const std::uint64_t length = header.size() - kLengthBytes;
  if (length > kMaxSafetensorsHeaderBytes) {
    throw InvalidArgument(
        fmt::format("safetensors: the header would have {} bytes: at most {} are allowed; write fewer tensors", length,
                    kMaxSafetensorsHeaderBytes));
  }
  std::memcpy(header.data(), &length, kLengthBytes);
  return header;
}

void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                       const std::vector<std::pair<std::string, std::string>>& metadata) {
  const std::string header = make_safetensors_header(tensors, metadata);
  std::vector<std::span<const std::byte>> parts{std::as_bytes(std::span(header))};
  for (const auto& [name, tensor] : tensors) parts.push_back(tensor.bytes);
  replace_file(path, parts);
}

}  // namespace draftflow
