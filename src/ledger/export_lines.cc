// SPDX-License-Identifier: Apache-2.0
#include "ledger/export_lines.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

using Json = nlohmann::ordered_json;

template <class T>
void put_if(Json& object, const char* field, const std::optional<T>& value) {
  if (value) object[field] = *value;
}

Json to_json(const ExportedHeader& header) {
  const LedgerStatus& s = header.status;
  return {{"kind", "ledger"},
          {"version", kExportVersion},
          {"ledger_id", s.ledger_id},
          {"run_id", s.run_id},
          {"prompts", s.prompts},
          {"prompts_pending", s.prompts_pending},
          {"prompts_done", s.prompts_done},
          {"prompts_failed", s.prompts_failed},
          {"prompts_closed", s.prompts_closed},
          {"committed", s.committed},
          {"committed_tokens", s.committed_tokens},
          {"resident_bytes", s.resident_bytes},
          {"freed", s.freed}};
}

Json to_json(const ExportedFact& fact) {
  return {{"kind", "fact"}, {"key", fact.key}, {"value", fact.value}};
}

Json to_json(const ExportedTokens& tokens) {
  Json counts = Json::array();
  for (const TokenCount& one : tokens.counts) counts.push_back(Json::array({one.token, one.count, one.first_row}));
  return {{"kind", "tokens"}, {"counts", std::move(counts)}};
}

Json to_json(const ExportedPrompt& prompt) {
  Json object = {{"kind", "prompt"}, {"state", prompt.state}, {"attempts", prompt.attempts}, {"expiries", prompt.expiries}};
  put_if(object, "ended_token", prompt.ended_token);
  put_if(object, "reason", prompt.reason);
  object["task"] = Json::parse(prompt.task);
  return object;
}

Json to_json(const ExportedGroup& group) {
  Json object = {{"kind", "group"},
                 {"group", group.config.group.str()},
                 {"of", group.config.kind == GroupKind::kWindows ? "windows" : "queue"},
                 {"window", group.config.window},
                 {"resumable_checkpoints", group.config.resumable_checkpoints},
                 {"tail", group.config.tail == TailPolicy::kDrop ? "drop" : "carry"},
                 {"max_attempts", group.config.max_attempts},
                 {"open", group.open},
                 {"next_row", group.next_row},
                 {"durable_windows", group.durable_windows},
                 {"released_windows", group.released_windows},
                 {"timeline", group.timeline},
                 {"width", group.width},
                 {"trained_step", group.trained_step},
                 {"durable_step", group.durable_step},
                 {"passes", group.config.passes},
                 {"pass_windows", group.pass_windows}};
  if (group.config.max_window_tokens > 0) object["max_window_tokens"] = group.config.max_window_tokens;
  return object;
}

Json to_json(const ExportedTimeline& t) {
  Json ranks = Json::array();
  for (const auto& [rank, holder] : t.ranks) ranks.push_back(Json::array({rank, holder}));
  return {{"kind", "timeline"},       {"group", t.group},           {"number", t.number},
          {"parent", t.parent},       {"first_step", t.first_step}, {"first_window", t.first_window},
          {"width", t.width},         {"launch", t.launch},         {"lost", t.lost},
          {"ranks", std::move(ranks)}};
}

Json to_json(const ExportedCheckpoint& c) {
  return {{"kind", "checkpoint"}, {"group", c.group}, {"timeline", c.timeline}, {"step", c.step}, {"abandoned", c.abandoned}};
}

Json to_json(const ExportedWindow& window) {
  Json object = {{"kind", "window"}, {"group", window.group}, {"number", window.number}};
  put_if(object, "timeline", window.timeline);
  put_if(object, "step", window.step);
  return object;
}

Json to_json(const ExportedSample& sample) {
  Json groups = Json::object();
  for (const auto& [name, place] : sample.groups) {
    Json& object = groups[name] = {{"state", place.state}};
    put_if(object, "window", place.window);
    put_if(object, "position", place.position);
    if (place.attempts != 0) object["attempts"] = place.attempts;
    put_if(object, "ended_token", place.ended_token);
    put_if(object, "reason", place.reason);
    for (const auto& [window, reason] : place.later_failures) {
      object["later_failures"].push_back(Json::array({window, reason}));
    }
  }
  return {{"kind", "sample"}, {"state", sample.state}, {"groups", std::move(groups)}, {"ref", Json::parse(sample.ref)}};
}

Json to_json(const ExportedEnd& end) {
  return {{"kind", "end"}, {"lines", end.lines}};
}

// Reads a line's fields; what is left over at the end is refused, so that nothing that a line says is passed over.
class Fields {
 public:
  Fields(std::string what, const Json& object) : what_(std::move(what)), object_(object) {
    if (!object.is_object()) throw Corrupt(what_ + " is not a JSON object");
  }
  void done() const {
    if (taken_ == object_.size()) return;
    throw Corrupt(fmt::format("{} has fields that this program does not know: {}", what_, printable(object_.dump(), 400)));
  }

  bool has(const char* field) const { return object_.contains(field); }
  const Json& raw(const char* field) {
    const auto at = object_.find(field);
    if (at == object_.end()) throw Corrupt(fmt::format("{} has no field '{}'", what_, field));
    ++taken_;
    return *at;
  }
  std::string text(const char* field) {
    const Json& value = raw(field);
    if (!value.is_string()) refuse(field, value, "a string");
    const auto& text = value.get_ref<const std::string&>();
    if (text.find('\0') != std::string::npos) refuse(field, value, "text without U+0000");
    return text;
  }
  // Numbers of a ledger are not negative; this bound keeps sums of them from running over.
  std::int64_t number(const char* field) { return number_of(field, raw(field)); }
  std::int64_t number_of(const char* field, const Json& value) const {
    constexpr std::uint64_t kMost = 1ULL << 60;
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kMost) refuse(field, value, "a whole number, 0 to 2^60");
    return value.get<std::int64_t>();
  }
  bool flag(const char* field) {
    const Json& value = raw(field);
    if (!value.is_boolean()) refuse(field, value, "true or false");
    return value.get<bool>();
  }
  std::string one_of(const char* field, const std::vector<std::string>& allowed) {
    std::string value = text(field), all;
    for (const std::string& one : allowed) {
      if (one == value) return value;
      all += (all.empty() ? "'" : ", '") + one + "'";
    }
    refuse(field, object_.at(field), all);
  }
  std::optional<std::string> text_if(const char* field) { return has(field) ? std::optional(text(field)) : std::nullopt; }
  std::optional<std::int64_t> number_if(const char* field) { return has(field) ? std::optional(number(field)) : std::nullopt; }
  [[noreturn]] void refuse(const char* field, const Json& found, const std::string& allowed) const {
    throw Corrupt(
        fmt::format("{} has the field '{}' as {}: it must be {}", what_, field, printable(found.dump(), 80), allowed));
  }

 private:
  std::string what_;
  const Json& object_;
  std::size_t taken_ = 0;
};

ExportedHeader read_header(Fields& f) {
  if (const std::int64_t version = f.number("version"); version != kExportVersion) {
    throw InvalidArgument(
        fmt::format("the export has version {}: this program knows {}; import it with the draftflow that wrote it", version,
                    kExportVersion));
  }
  LedgerStatus s;
  s.ledger_id = f.text("ledger_id");
  if (s.ledger_id.size() != 32 || s.ledger_id.find_first_not_of("0123456789abcdef") != std::string::npos) {
    f.refuse("ledger_id", Json(s.ledger_id), "32 hexadecimal digits");
  }
  s.run_id = f.text("run_id");
  s.prompts = f.number("prompts");
  s.prompts_pending = f.number("prompts_pending");
  s.prompts_done = f.number("prompts_done");
  s.prompts_failed = f.number("prompts_failed");
  s.prompts_closed = f.flag("prompts_closed");
  s.committed = f.number("committed");
  s.committed_tokens = f.number("committed_tokens");
  s.resident_bytes = static_cast<std::uint64_t>(f.number("resident_bytes"));
  s.freed = f.number("freed");
  return {std::move(s)};
}

ExportedTokens read_tokens(Fields& f) {
  const Json& all = f.raw("counts");
  if (!all.is_array()) f.refuse("counts", all, "a list of [token, count, first row]");
  ExportedTokens tokens;
  for (const Json& one : all) {
    if (!one.is_array() || one.size() != 3) f.refuse("counts", one, "a list of [token, count, first row]");
    tokens.counts.push_back({f.number_of("counts", one[0]), f.number_of("counts", one[1]), f.number_of("counts", one[2])});
  }
  return tokens;
}

ExportedPrompt read_prompt(Fields& f) {
  ExportedPrompt prompt;
  prompt.state = f.one_of("state", {"pending", "done", "failed"});
  prompt.attempts = f.number("attempts");
  prompt.expiries = f.number("expiries");
  prompt.ended_token = f.text_if("ended_token");
  prompt.reason = f.text_if("reason");
  prompt.task = f.raw("task").dump();
  return prompt;
}

ExportedGroup read_group(Fields& f) {
  constexpr std::int64_t kMost = 1 << 30;  // the ledger's own bounds are lower
  ExportedGroup group{.config = {.group = GroupId(f.text("group"))}};
  GroupConfig& config = group.config;
  config.kind = f.one_of("of", {"windows", "queue"}) == "windows" ? GroupKind::kWindows : GroupKind::kQueue;
  config.window = static_cast<int>(std::min(f.number("window"), kMost));
  config.resumable_checkpoints = static_cast<int>(std::min(f.number("resumable_checkpoints"), kMost));
  config.tail = f.one_of("tail", {"drop", "carry"}) == "drop" ? TailPolicy::kDrop : TailPolicy::kCarry;
  config.max_attempts = static_cast<int>(std::min(f.number("max_attempts"), kMost));
  group.open = f.flag("open");
  group.next_row = f.number("next_row");
  group.durable_windows = f.number("durable_windows");
  group.released_windows = f.number("released_windows");
  group.timeline = f.number("timeline");
  group.width = f.number("width");
  group.trained_step = f.number("trained_step");
  group.durable_step = f.number("durable_step");
  config.passes = static_cast<int>(std::min(f.number("passes"), kMost));
  group.pass_windows = f.number("pass_windows");
  config.max_window_tokens = f.number_if("max_window_tokens").value_or(0);
  return group;
}

std::vector<std::pair<std::int64_t, std::string>> numbered(Fields& f, const char* field, const char* allowed) {
  const Json& all = f.raw(field);
  if (!all.is_array()) f.refuse(field, all, allowed);
  std::vector<std::pair<std::int64_t, std::string>> read;
  for (const Json& one : all) {
    const bool fits = one.is_array() && one.size() == 2 && one[1].is_string();
    if (!fits || one[1].get_ref<const std::string&>().find('\0') != std::string::npos) f.refuse(field, one, allowed);
    read.emplace_back(f.number_of(field, one[0]), one[1].get<std::string>());
  }
  return read;
}

ExportedTimeline read_timeline(Fields& f) {
  ExportedTimeline t;
  t.group = f.text("group");
  t.number = f.number("number");
  t.parent = f.number("parent");
  t.first_step = f.number("first_step");
  t.first_window = f.number("first_window");
  t.width = f.number("width");
  t.launch = f.text("launch");
  t.lost = f.number("lost");
  t.ranks = numbered(f, "ranks", "a list of [rank, holder]");
  return t;
}

ExportedSample read_sample(Fields& f, const std::string& what) {
  ExportedSample sample;
  sample.state = f.one_of("state", {"needed", "may_go", "going", "freed"});
  const Json& groups = f.raw("groups");
  if (!groups.is_object()) f.refuse("groups", groups, "an object");
  for (const auto& [name, value] : groups.items()) {
    Fields g(fmt::format("{} in group '{}'", what, printable(name)), value);
    ExportedPlace place;
    place.state = g.one_of("state", {"available", "windowed", "trained", "durable", "acked", "failed", "dropped"});
    place.window = g.number_if("window");
    place.position = g.number_if("position");
    place.attempts = g.number_if("attempts").value_or(0);
    place.ended_token = g.text_if("ended_token");
    place.reason = g.text_if("reason");
    if (g.has("later_failures")) place.later_failures = numbered(g, "later_failures", "a list of [window, reason]");
    g.done();
    sample.groups.emplace_back(name, std::move(place));
  }
  sample.ref = f.raw("ref").dump();
  return sample;
}

ExportedLine read_line(Fields& f, const std::string& kind) {
  if (kind == "ledger") return read_header(f);
  if (kind == "fact") {
    std::string key = f.text("key");
    return ExportedFact{std::move(key), f.text("value")};
  }
  if (kind == "tokens") return read_tokens(f);
  if (kind == "prompt") return read_prompt(f);
  if (kind == "group") return read_group(f);
  if (kind == "timeline") return read_timeline(f);
  if (kind == "checkpoint") {
    ExportedCheckpoint c{.group = f.text("group"), .timeline = f.number("timeline"), .step = f.number("step")};
    c.abandoned = f.flag("abandoned");
    return c;
  }
  if (kind == "window") {
    ExportedWindow w{.group = f.text("group"), .number = f.number("number")};
    w.timeline = f.number_if("timeline");
    w.step = f.number_if("step");
    return w;
  }
  if (kind == "sample") return read_sample(f, "a line of kind 'sample'");
  if (kind == "end") return ExportedEnd{f.number("lines")};
  throw Corrupt(fmt::format("a line of kind '{}', which this program does not know", printable(kind, 40)));
}

}  // namespace

std::string to_line(const ExportedLine& line) {
  try {
    return std::visit([](const auto& one) { return to_json(one); }, line).dump();
  } catch (const Json::exception& error) {
    throw Corrupt(fmt::format("a record of the ledger cannot be written as JSON: {}; 'draftflow ledger check' finds which one",
                              printable(error.what())));
  }
}

ExportedLine parse_line(const std::string& text) {
  const Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  Fields kind_of("the line", object);
  const std::string kind = kind_of.text("kind");
  Fields fields(fmt::format("a line of kind '{}'", printable(kind, 40)), object);
  fields.raw("kind");
  ExportedLine line = read_line(fields, kind);
  fields.done();
  return line;
}

}  // namespace draftflow
