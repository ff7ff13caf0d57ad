// SPDX-License-Identifier: Apache-2.0
#include "records/plain_ref.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace draftflow::records {
namespace {

constexpr std::size_t kMaxDigits = 18;   // any such number fits 64 bits
constexpr std::size_t kMaxMembers = 64;  // of an object whose names are compared one by one

bool is_plain_char(char c) {
  return c >= ' ' && c <= '~' && c != '"' && c != '\\';
}

// Reads from the front of the text. False: it goes on otherwise there, and no string, number or literal is passed.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  bool literal(std::string_view expected) {
    if (!text_.substr(at_).starts_with(expected)) return false;
    at_ += expected.size();
    return true;
  }
  bool end() const { return at_ == text_.size(); }

  bool string(std::string_view& found) {
    if (end() || text_[at_] != '"') return false;
    std::size_t to = at_ + 1;
    while (to < text_.size() && is_plain_char(text_[to])) ++to;
    if (to == text_.size() || text_[to] != '"') return false;
    found = text_.substr(at_ + 1, to - at_ - 1);
    at_ = to + 1;
    return true;
  }
  bool string(std::string& found) {
    std::string_view view;
    if (!string(view)) return false;
    found = view;
    return true;
  }
  bool string_or_null(std::optional<std::string>& found) {
    found.reset();
    return literal("null") || string(found.emplace());
  }

  // Whole, without a sign (but for `negative`), leading zeros, fraction or exponent.
  bool integer(std::int64_t& found, bool negative = false) {
    const std::size_t digits = at_ + (negative && text_.substr(at_).starts_with("-") ? 1 : 0);
    std::size_t to = digits;
    while (to < text_.size() && text_[to] >= '0' && text_[to] <= '9') ++to;
    const std::size_t count = to - digits;
    if (count == 0 || count > kMaxDigits || (text_[digits] == '0' && (count > 1 || digits > at_))) return false;
    if (to < text_.size() && text_[to] != ',' && text_[to] != '}' && text_[to] != ']') return false;
    std::from_chars(text_.data() + at_, text_.data() + to, found);
    at_ = to;
    return true;
  }
  bool boolean(bool& found) {
    found = literal("true");
    return found || literal("false");
  }

  // [item,item] or {"name":item,...}; the item is read by `use`.
  template <class Use>
  bool list(Use use) {
    if (!literal("[")) return false;
    if (literal("]")) return true;
    do {
      if (!use()) return false;
    } while (literal(","));
    return literal("]");
  }
  template <class Use>
  bool members(Use use) {
    if (!literal("{")) return false;
    return literal("}") || (more_members(use) && literal("}"));
  }
  template <class Use>
  bool more_members(Use use) {
    do {
      std::string_view name;
      if (!string(name) || !literal(":") || !use(name)) return false;
    } while (literal(","));
    return true;
  }

  // A scalar, a list of scalars, or {}.
  bool value(std::string_view& found) {
    const std::size_t from = at_;
    if (!literal("{}") && !scalar() && !list([&] { return scalar(); })) return false;
    found = text_.substr(from, at_ - from);
    return true;
  }

 private:
  bool scalar() {
    std::string_view text;
    std::int64_t number = 0;
    return literal("null") || literal("true") || literal("false") || string(text) || integer(number, true);
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

bool is_new(std::string_view name, const auto& members) {
  return members.size() < kMaxMembers &&
         std::none_of(members.begin(), members.end(), [&](const auto& member) { return member.first == name; });
}

bool read_other(Reader& in, std::string_view name, JsonMembers& members) {
  std::string_view text;
  if (!is_new(name, members) || !in.value(text)) return false;
  members.emplace_back(name, text);
  return true;
}

constexpr std::string_view kSpecFields[] = {"name", "shape", "dtype", "device_hint", "required", "target_repr", "target_meta"};
constexpr std::string_view kRefFields[] = {
    "sample_id",       "run_id",         "source_task_id",       "feature_store_uri",    "feature_keys",      "feature_specs",
    "strategy",        "schema_version", "target_model_version", "draft_weight_version", "tokenizer_version", "num_tokens",
    "estimated_bytes", "metadata"};

bool is_one_of(std::string_view name, const auto& fields) {
  return std::find(std::begin(fields), std::end(fields), name) != std::end(fields);
}

bool read_dtype(std::string_view name, DType& found) {
  for (int i = 0; i <= static_cast<int>(DType::kFloat64); ++i) {
    found = static_cast<DType>(i);
    if (dtype_name(found) == name) return true;
  }
  return false;
}

bool read_spec(Reader& in, FeatureSpec& spec) {
  std::string_view dtype, hint, meta;
  const auto extent = [&] { return in.integer(spec.shape.emplace_back()); };
  if (!in.literal("{\"name\":") || !in.string(spec.name) || !in.literal(",\"shape\":") || !in.list(extent) ||
      !in.literal(",\"dtype\":") || !in.string(dtype) || !read_dtype(dtype, spec.dtype) || !in.literal(",\"device_hint\":") ||
      !in.value(hint) || !in.literal(",\"required\":") || !in.boolean(spec.required) || !in.literal(",\"target_repr\":") ||
      !in.string_or_null(spec.target_repr) || !in.literal(",\"target_meta\":") || !in.value(meta)) {
    return false;
  }
  spec.other.emplace_back("device_hint", hint);
  spec.other.emplace_back("target_meta", meta);
  const auto other = [&](std::string_view name) { return !is_one_of(name, kSpecFields) && read_other(in, name, spec.other); };
  return in.literal("}") || (in.literal(",") && in.more_members(other) && in.literal("}"));
}

bool read_metadata(Reader& in, SampleRef& ref) {
  bool generation = false, incarnation = false;
  return in.members([&](std::string_view name) {
    if (name == "generation") {
      std::int64_t number = 0;
      if (std::exchange(generation, true) || !in.integer(number)) return false;
      ref.generation = static_cast<std::uint64_t>(number);
      return true;
    }
    if (name == "incarnation") return !std::exchange(incarnation, true) && in.string(ref.incarnation);
    return read_other(in, name, ref.metadata);
  });
}

bool read_fields(Reader& in, SampleRef& ref) {
  std::int64_t bytes = 0;
  const auto key = [&](std::string_view name) {
    std::string_view text;
    if (!is_new(name, ref.feature_keys) || !in.string(text)) return false;
    if (ref.feature_keys.empty()) ref.feature_keys.reserve(4, std::min<std::size_t>(4 * (2 * name.size() + text.size()), 4096));
    ref.feature_keys.emplace_back(name, text);
    return true;
  };
  std::vector<std::pair<std::string_view, bool>> names;
  std::vector<FeatureSpec> specs;
  const auto spec = [&](std::string_view name) {
    if (!is_new(name, names)) return false;
    names.emplace_back(name, true);
    return read_spec(in, specs.emplace_back());
  };
  if (!in.literal(",\"source_task_id\":") || !in.string_or_null(ref.source_task_id) || !in.literal(",\"feature_store_uri\":") ||
      !in.string(ref.feature_store_uri) || !in.literal(",\"feature_keys\":") || !in.members(key) ||
      !in.literal(",\"feature_specs\":") || !in.members(spec) || !in.literal(",\"strategy\":") || !in.string(ref.strategy) ||
      !in.literal(",\"schema_version\":1,\"target_model_version\":") || !in.string(ref.target_model_version) ||
      !in.literal(",\"draft_weight_version\":") || !in.string_or_null(ref.draft_weight_version) ||
      !in.literal(",\"tokenizer_version\":") || !in.string(ref.tokenizer_version) || !in.literal(",\"num_tokens\":") ||
      !in.integer(ref.num_tokens, true) || !in.literal(",\"estimated_bytes\":") || !in.integer(bytes) ||
      !in.literal(",\"metadata\":") || !read_metadata(in, ref)) {
    return false;
  }
  ref.feature_specs = std::move(specs);
  ref.estimated_bytes = static_cast<std::uint64_t>(bytes);
  const auto other = [&](std::string_view name) { return !is_one_of(name, kRefFields) && read_other(in, name, ref.other); };
  return (in.literal("}") || (in.literal(",") && in.more_members(other) && in.literal("}"))) && in.end();
}

// Writes at the end of a text, and remembers whether all of it was plain.
class Writer {
 public:
  Writer() { text_.reserve(1024); }

  Writer& operator<<(std::string_view text) {
    text_ += text;
    return *this;
  }
  Writer& string(std::string_view text) {
    require(std::all_of(text.begin(), text.end(), is_plain_char));
    return *this << "\"" << text << "\"";
  }
  Writer& string_or_null(const std::optional<std::string>& text) { return text ? string(*text) : *this << "null"; }
  template <class T>
  Writer& number(T value) {
    char digits[24];
    return *this << std::string_view(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
  }
  Writer& value(std::string_view text) {
    Reader in(text);
    std::string_view found;
    require(in.value(found) && in.end());
    return *this << text;
  }
  // ,"name":
  Writer& name(std::string_view name, bool first = false) {
    if (!first) *this << ",";
    return string(name) << ":";
  }

  void require(bool plain) { plain_ = plain_ && plain; }
  std::optional<std::string> take() {
    if (!plain_) return std::nullopt;
    return std::move(text_);
  }

 private:
  std::string text_;
  bool plain_ = true;
};

bool are_unlike(const auto& all, auto name_of) {
  if (all.size() > kMaxMembers) return false;
  for (auto one = all.begin(); one != all.end(); ++one) {
    if (std::any_of(all.begin(), one, [&](const auto& before) { return name_of(before) == name_of(*one); })) return false;
  }
  return true;
}

std::string_view first_of(const std::pair<std::string, std::string>& member) {
  return member.first;
}

void write_others(Writer& out, const JsonMembers& members, const auto& fields) {
  out.require(are_unlike(members, first_of));
  for (const auto& [name, text] : members) {
    out.require(!is_one_of(name, fields));
    out.name(name).value(text);
  }
}

void write_spec(Writer& out, const FeatureSpec& spec) {
  std::string_view hint = "null", meta = "{}";
  out.require(are_unlike(spec.other, first_of));
  for (const auto& [name, text] : spec.other) {
    if (name == "device_hint") hint = text;
    if (name == "target_meta") meta = text;
  }
  (out << "{\"name\":").string(spec.name) << ",\"shape\":[";
  for (std::size_t i = 0; i < spec.shape.size(); ++i) (out << (i > 0 ? "," : "")).number(spec.shape[i]);
  (out << "],\"dtype\":").string(dtype_name(spec.dtype)) << ",\"device_hint\":";
  out.value(hint) << ",\"required\":" << (spec.required ? "true" : "false") << ",\"target_repr\":";
  (out.string_or_null(spec.target_repr) << ",\"target_meta\":").value(meta);
  for (const auto& [name, text] : spec.other) {
    if (name == "device_hint" || name == "target_meta") continue;
    out.require(!is_one_of(name, kSpecFields));
    out.name(name).value(text);
  }
  out << "}";
}

void write_metadata(Writer& out, const SampleRef& ref) {
  out.require(are_unlike(ref.metadata, first_of));
  out << "{";
  bool first = true;
  for (const auto& [name, text] : ref.metadata) {
    out.require(name != "generation" && name != "incarnation");
    out.name(name, std::exchange(first, false)).value(text);
  }
  if (ref.generation != 0) out.name("generation", std::exchange(first, false)).number(ref.generation);
  if (!ref.incarnation.empty()) out.name("incarnation", first).string(ref.incarnation);
  out << "}";
}

}  // namespace

std::optional<std::string> write_plain_ref(const SampleRef& ref) {
  Writer out;
  out.require(are_unlike(ref.feature_keys, [](const FeatureKeys::value_type& key) { return key.first; }) &&
              are_unlike(ref.feature_specs, [](const FeatureSpec& spec) { return std::string_view(spec.name); }));
  (out << "{\"sample_id\":").string(ref.sample_id.str()).name("run_id").string(ref.run_id.str());
  out.name("source_task_id").string_or_null(ref.source_task_id).name("feature_store_uri").string(ref.feature_store_uri);
  out.name("feature_keys") << "{";
  bool first = true;
  for (const auto& [name, key] : ref.feature_keys) out.name(name, std::exchange(first, false)).string(key);
  (out << "}").name("feature_specs") << "{";
  for (std::size_t i = 0; i < ref.feature_specs.size(); ++i) {
    write_spec(out.name(ref.feature_specs[i].name, i == 0), ref.feature_specs[i]);
  }
  (out << "}").name("strategy").string(ref.strategy).name("schema_version").number(ref.schema_version);
  out.name("target_model_version").string(ref.target_model_version);
  out.name("draft_weight_version").string_or_null(ref.draft_weight_version);
  out.name("tokenizer_version").string(ref.tokenizer_version).name("num_tokens").number(ref.num_tokens);
  out.name("estimated_bytes").number(ref.estimated_bytes);
  write_metadata(out.name("metadata"), ref);
  write_others(out, ref.other, kRefFields);
  out << "}";
  return out.take();
}

std::optional<SampleRef> read_plain_ref(std::string_view text) {
  Reader in(text);
  std::string_view sample_id, run_id;
  if (!in.literal("{\"sample_id\":") || !in.string(sample_id) || !in.literal(",\"run_id\":") || !in.string(run_id)) {
    return std::nullopt;
  }
  const auto may_be_id = [](std::string_view id) { return !id.empty() && id.size() <= kMaxIdBytes; };
  if (!may_be_id(sample_id) || !may_be_id(run_id)) return std::nullopt;
  SampleRef ref{.sample_id = SampleId(std::string(sample_id)), .run_id = RunId(std::string(run_id))};
  if (!read_fields(in, ref)) return std::nullopt;
  return ref;
}

}  // namespace draftflow::records
