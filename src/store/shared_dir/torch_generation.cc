// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/torch_generation.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/formats/plain_json.h"
#include "store/ref_maker.h"
#include "store/shared_dir/names.h"

namespace draftflow::store {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "draftflow.generation.1";
constexpr const char* kFormatKey = "format";
constexpr const char* kGenerationKey = "generation";
constexpr const char* kTensorBytesKey = "tensor_bytes";

// As it is written, after the format: the name of each field with what comes before its value.
constexpr std::string_view kNoteBegin = R"({"format":"draftflow.generation.1","store_id":)",
                           kNoteIncarnation = R"(,"incarnation":)", kNoteSampleId = R"(,"sample_id":)",
                           kNoteGeneration = R"(,"generation":)", kNoteTensorBytes = R"(,"tensor_bytes":)";

std::string note_of(const Identity& identity, const TensorMap& tensors) {
  std::string note(kNoteBegin);
  append_json_text(note, identity.store_id);
  append_json_text(note += kNoteIncarnation, identity.incarnation);
  append_json_text(note += kNoteSampleId, identity.sample_id);
  append_json_number(note += kNoteGeneration, identity.generation);
  append_json_number(note += kNoteTensorBytes, bytes_of(tensors));
  return note += '}';
}

// Of a note that stands as note_of writes it, without what JSON escapes.
std::optional<TorchFacts> scan_note(std::string_view note) {
  PlainJson json(note);
  TorchFacts facts;
  const auto text = [&](std::string_view before, std::string& into) {
    const auto found = json.take(before) && json.take("\"") ? json.text() : std::nullopt;
    if (found) into = *found;
    return found.has_value();
  };
  Identity& identity = facts.identity;
  const bool plain = text(kNoteBegin, identity.store_id) && text(kNoteIncarnation, identity.incarnation) &&
                     text(kNoteSampleId, identity.sample_id) && json.take(kNoteGeneration) &&
                     json.number(identity.generation) && json.take(kNoteTensorBytes) && json.number(facts.tensor_bytes) &&
                     json.rest() == "}";
  return plain ? std::optional(std::move(facts)) : std::nullopt;
}

std::optional<TorchFacts> parse_note(const std::string& note) {
  if (auto facts = scan_note(note)) return facts;
  const Json value = Json::parse(note, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object() || !value.contains(kFormatKey) || value[kFormatKey] != kFormat) return std::nullopt;
  TorchFacts facts;
  for (const auto& [field, text] :
       {std::pair("store_id", &facts.identity.store_id), std::pair("incarnation", &facts.identity.incarnation),
        std::pair("sample_id", &facts.identity.sample_id)}) {
    if (!value.contains(field) || !value[field].is_string()) return std::nullopt;
    *text = value[field].get<std::string>();
  }
  for (const auto& [field, number] :
       {std::pair(kGenerationKey, &facts.identity.generation), std::pair(kTensorBytesKey, &facts.tensor_bytes)}) {
    if (!value.contains(field) || !value[field].is_number_unsigned()) return std::nullopt;
    *number = value[field].get<std::uint64_t>();
  }
  return facts;
}

}  // namespace

void write_torch_generation(int fd, const std::string& path, const Identity& identity, const PackedSample& sample) {
  write_torch_zip(fd, path, sample.parts, sample.torch_pickle, note_of(identity, sample.parts));
}

std::optional<TorchFacts> find_torch_facts(int fd, const std::string& path) {
  try {
    const auto note = read_torch_note(fd, path);
    auto facts = note ? parse_note(*note) : std::nullopt;
    if (facts && facts->tensor_bytes > file_size(fd, path)) return std::nullopt;
    return facts;
  } catch (const Corrupt&) {
    return std::nullopt;
  }
}

Identity read_identity(int fd, const std::string& path) {
  if (const auto facts = find_torch_facts(fd, path)) return facts->identity;
  if (read_torch_note(fd, path)) throw Corrupt(path + ": the note in front of torch's zip is not one of draftflow's");
  const SafetensorsHeader header = read_safetensors_header(fd, path);
  const auto text = [&](const char* key) {
    if (const std::string* found = header.find_metadata(key)) return *found;
    throw Corrupt(fmt::format("{}: the file's metadata has no '{}'", path, key));
  };
  const auto generation = parse_number(text(kGenerationKey));
  if (!generation) throw Corrupt(fmt::format("{}: the file's metadata says no number as its generation", path));
  return {text("store_id"), text("incarnation"), text("sample_id"), *generation};
}

TorchZip open_torch_file(int fd, const std::string& path, const std::string& what, bool mapped, BufferPool& pool) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw_errno(errno, "fstat of " + path);
  if (!S_ISREG(status.st_mode)) throw Corrupt(fmt::format("{} is not a regular file: remove it", path));
  TorchZip file(fd, path, what, mapped, pool);
  if (file.values().empty()) return file;
  throw Corrupt(fmt::format("{}: '{}' is of type {}, not a tensor: a store does not write that", what,
                            printable(file.values()[0].first), file.values()[0].second));
}

namespace {

// A file that is sound, but not what a put writes.
template <class Do>
auto as_corrupt(Do do_it) {
  try {
    return do_it();
  } catch (const InvalidArgument& error) {
    throw Corrupt(error.what());
  }
}

}  // namespace

TorchGeneration::TorchGeneration(int fd, const std::string& path, const Identity& identity, bool mapped, BufferPool& pool)
    : what_(fmt::format("{} ({})", describe(identity), path)),
      zip_(as_corrupt([&] { return open_torch_file(fd, path, what_, mapped, pool); })) {
  const auto fail = [&](const std::string& problem) {
    throw Corrupt(fmt::format("{}: {}; drop this sample or capture it again", what_, problem));
  };
  const auto facts = zip_.note() ? parse_note(*zip_.note()) : std::nullopt;
  if (!facts) fail("the file has no note of draftflow's: another program put it there");
  const Identity& found = facts->identity;
  if (found != identity) {
    fail(fmt::format("the file says it is {} of incarnation '{}', not '{}': it is another one's file", describe(found),
                     printable(found.incarnation), identity.incarnation));
  }
  std::uint64_t bytes = 0;
  for (const TorchZip::Entry& entry : zip_.tensors()) bytes += tensor_bytes(entry.dtype, entry.shape);
  if (facts->tensor_bytes != bytes) {
    fail(fmt::format("its note says that it holds {} tensor bytes, but it holds {}", facts->tensor_bytes, bytes));
  }
}

Tensor TorchGeneration::read(const FeatureSpec& spec) {
  for (const TorchZip::Entry& entry : zip_.tensors()) {
    if (entry.name == spec.name) check_against_spec(spec, entry.dtype, entry.shape, what_);  // before its bytes are read
  }
  const std::optional<Tensor> found = as_corrupt([&] { return zip_.read(spec.name); });
  return tensor_of(spec, found ? &*found : nullptr, what_);
}

std::vector<StoredTensor> TorchGeneration::tensors() const {
  std::vector<StoredTensor> tensors;
  for (const TorchZip::Entry& entry : zip_.tensors()) tensors.push_back({entry.name, Codec::kRaw, entry.dtype, entry.shape});
  return tensors;
}

}  // namespace draftflow::store
