// SPDX-License-Identifier: Apache-2.0
#include "cli/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <nlohmann/json.hpp>
#include <set>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"
#include "draftflow/flow/backpressure.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {
namespace {

constexpr std::uint64_t kMaxConfigBytes = 1 << 20;

struct Section {
  std::string name;  // "" = top level
  Fields fields;
};

Fields top_fields(RunConfig& c) {
  return {{"run", &c.run, ""},         {"target", &c.target, ""},       {"tokenizer", &c.tokenizer, ""},
          {"prompts", &c.prompts, ""}, {"held_out", &c.held_out, ""},   {"out", &c.out, ""},
          {"ledger", &c.ledger, ""},   {"restarts", &c.restarts, "", 0}};
}

// The sections and keys of a run's configuration, bound to `c`.
std::vector<Section> sections_of(RunConfig& c) {
  const Fields train = train_fields(c.train);
  Fields capture{{"workers", &c.workers, "", 1}};
  for (const Field& field : select_fields(train, {"ahead_samples"})) capture.push_back(field);
  for (const Field& field :
       select_fields(capture_fields(c.capture), {"max_length", "layers", "dtype", "high_watermark", "low_watermark", "lease_ms",
                                                 "lease_tasks", "max_attempts", "threads", "durable", "secret_file"})) {
    capture.push_back(field);
  }
  return {{"", top_fields(c)},
          {"capture", capture},
          {"train", select_fields(train, {"ranks",
                                          "window",
                                          "batch",
                                          "ttt_length",
                                          "max_length",
                                          "learning_rate",
                                          "warmup_ratio",
                                          "max_grad_norm",
                                          "loss_decay",
                                          "loss",
                                          "kl_scale",
                                          "kl_decay",
                                          "loss_normalization",
                                          "dtype",
                                          "draft_vocab",
                                          "heads",
                                          "kv_heads",
                                          "head_dim",
                                          "intermediate",
                                          "init_draft",
                                          "seed",
                                          "total_steps",
                                          "checkpoint_every",
                                          "resumable_checkpoints",
                                          "checkpoint_on_pressure",
                                          "prefetch",
                                          "max_window_tokens",
                                          "threads"})},
          {"eval", select_fields(eval_fields(c.eval), {"new_tokens", "depth", "limit", "threads"})}};
}

// Where a value stands, for messages: "demo.yaml line 7: capture.workers".
struct Place {
  const std::filesystem::path& file;
  const std::string& section;

  [[noreturn]] void refuse(const YAML::Mark& mark, const std::string& key, const std::string& message) const {
    const std::string dotted = section.empty() ? key : key.empty() ? section : section + "." + key;
    throw InvalidArgument(fmt::format("{} line {}: {}: {}", file.string(), mark.line + 1, printable(dotted), message));
  }
};

std::string allowed_keys(const Section& section) {
  std::vector<std::string> names;
  for (const Field& field : section.fields) names.push_back(field.key);
  if (section.name.empty()) names.insert(names.end(), {"capture", "train", "eval"});
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string scalar_text(const YAML::Node& node, const YAML::Mark& mark, const Field& field, const Place& place) {
  if (node.IsScalar()) return node.Scalar();
  if (node.IsSequence() && std::holds_alternative<std::vector<int>*>(field.value)) {
    std::vector<std::string> items;
    for (const YAML::Node& item : node) {
      if (!item.IsScalar()) place.refuse(item.Mark(), field.key, "an item is not a number; expected is " + expected_of(field));
      items.push_back(item.Scalar());
    }
    return fmt::format("{}", fmt::join(items, ","));
  }
  const char* found = node.IsNull() ? "nothing" : node.IsSequence() ? "a list" : "a section";
  place.refuse(mark, field.key, fmt::format("has {} where {} is expected", found, expected_of(field)));
}

// `mark` is the key's: an empty value has its own on the next line.
void read_field(const YAML::Node& node, const YAML::Mark& mark, const Field& field, const Place& place) {
  const std::string text = scalar_text(node, mark, field, place);
  try {
    set_field(field, text);
  } catch (const InvalidArgument& error) {
    place.refuse(mark, field.key, error.what());
  }
  if (auto* const* path = std::get_if<std::filesystem::path*>(&field.value); path != nullptr && !text.empty()) {
    const std::filesystem::path base = std::filesystem::absolute(place.file).parent_path();
    **path = (base / text).lexically_normal();
  }
}

// Reads one mapping; keys that name a section are left to the caller.
void read_section(const YAML::Node& node, const Section& section, const std::filesystem::path& file) {
  const Place place{file, section.name};
  if (node.IsNull()) return;
  if (!node.IsMap()) place.refuse(node.Mark(), "", "keys and values are expected: " + allowed_keys(section));
  std::set<std::string> seen;
  for (const auto& member : node) {
    const std::string key = member.first.IsScalar() ? member.first.Scalar() : "?";
    if (!seen.insert(key).second) place.refuse(member.first.Mark(), key, "is there twice");
    if (section.name.empty() && (key == "capture" || key == "train" || key == "eval")) continue;
    const auto field = std::find_if(section.fields.begin(), section.fields.end(), [&](const Field& f) { return f.key == key; });
    if (field == section.fields.end()) {
      place.refuse(member.first.Mark(), key, "unknown key; allowed are " + allowed_keys(section));
    }
    read_field(member.second, member.first.Mark(), *field, place);
  }
}

YAML::Node parse_yaml(const std::string& text, const std::filesystem::path& file) {
  try {
    return YAML::Load(text);
  } catch (const YAML::Exception& error) {
    throw InvalidArgument(fmt::format("{} line {}: not YAML: {}", file.string(), error.mark.line + 1, printable(error.msg)));
  }
}

void require(const RunConfig& config, const std::filesystem::path& file) {
  const std::pair<const char*, const std::filesystem::path*> needed[] = {
      {"target", &config.target}, {"prompts", &config.prompts}, {"held_out", &config.held_out}};
  for (const auto& [key, value] : needed) {
    if (value->empty()) throw InvalidArgument(fmt::format("{}: '{}' is missing", file.string(), key));
  }
}

// What several sections share is written once in the file and copied to each command's options.
void share(RunConfig& config) {
  config.capture.target = config.train.target = config.eval.target = config.target;
  config.capture.tokenizer = config.eval.tokenizer = config.tokenizer;
  config.capture.prompts = config.prompts;
  config.eval.prompts = config.held_out;
  config.capture.run_id = config.run;
}

void must_exist(const char* key, const std::filesystem::path& path) {
  std::error_code ignored;
  if (!path.empty() && !std::filesystem::exists(path, ignored)) {
    throw NotFound(fmt::format("{}: {} is not there; paths are relative to the configuration's folder", key, path.string()));
  }
}

void check_memory(const RunConfig& c) {
  const Watermarks marks{c.capture.high_watermark_bytes, c.capture.low_watermark_bytes};
  if (marks.low_bytes == 0 || marks.low_bytes > marks.high_bytes) {
    throw InvalidArgument(fmt::format("capture.low_watermark is {} and capture.high_watermark {}: 0 < low <= high is needed",
                                      human_bytes(marks.low_bytes), human_bytes(marks.high_bytes)));
  }
  const std::uint64_t largest = sample_bytes(c, c.capture.max_length);
  if (largest == 0) return;
  check_progress(marks, {.checkpoint_every = c.train.checkpoint_every,
                         .resumable_checkpoints = c.train.resumable_checkpoints,
                         .prefetch_windows = c.train.prefetch,
                         .window = c.train.window,
                         .largest_sample_bytes = largest});
  if (const auto ahead = static_cast<std::uint64_t>(c.train.ahead_samples); ahead > marks.high_bytes / largest) {
    throw InvalidArgument(fmt::format(
        "capture.ahead_samples {} x the largest sample {} = {} is more than capture.high_watermark {}: producers would pause "
        "before training starts; raise the watermark, or lower ahead_samples or capture.max_length",
        ahead, human_bytes(largest), human_bytes(ahead * largest), human_bytes(marks.high_bytes)));
  }
}

std::string yaml_of(const std::vector<Section>& sections) {
  YAML::Emitter out;
  out << YAML::BeginMap;
  for (const Section& section : sections) {
    if (!section.name.empty()) out << YAML::Key << section.name << YAML::Value << YAML::BeginMap;
    for (const Field& field : section.fields) {
      const std::string text = field_text(field);
      if (text.empty()) continue;
      out << YAML::Key << field.key << YAML::Value;
      if (std::holds_alternative<std::string*>(field.value) || std::holds_alternative<std::filesystem::path*>(field.value)) {
        out << YAML::DoubleQuoted;
      }
      out << text;
    }
    if (!section.name.empty()) out << YAML::EndMap;
  }
  out << YAML::EndMap;
  return std::string(out.c_str()) + "\n";
}

}  // namespace

RunConfig load_run_config(const std::filesystem::path& file) {
  return parse_run_config(read_text_file(file, kMaxConfigBytes), file);
}

RunConfig parse_run_config(const std::string& text, const std::filesystem::path& file) {
  if (const std::size_t bad = find_invalid_utf8(text); bad != std::string::npos) {
    throw InvalidArgument(fmt::format("{} is not UTF-8 at byte {}", file.string(), bad));
  }
  const YAML::Node root = parse_yaml(text, file);
  RunConfig config;
  for (const Section& section : sections_of(config)) {
    if (section.name.empty()) {
      read_section(root, section, file);
    } else if (root.IsMap() && root[section.name].IsDefined()) {
      read_section(root[section.name], section, file);
    }
  }
  require(config, file);
  share(config);
  return config;
}

void check_run_config(const RunConfig& config) {
  must_exist("target", config.target);
  must_exist("tokenizer", config.tokenizer);
  must_exist("prompts", config.prompts);
  must_exist("held_out", config.held_out);
  must_exist("train.init_draft", config.train.init_draft);
  if (!config.ledger.empty() && !is_ledger_url(config.ledger)) {
    throw InvalidArgument(
        fmt::format("ledger is '{}': postgresql://host/database is needed, or no ledger for a file in the run's "
                    "folder",
                    printable(config.ledger)));
  }
  if (config.workers > 64) throw InvalidArgument(fmt::format("capture.workers is {}: at most 64 are allowed", config.workers));
  if (config.train.ranks > 64)
    throw InvalidArgument(fmt::format("train.ranks is {}: at most 64 are allowed", config.train.ranks));
  if (config.train.window % (config.train.ranks * config.train.batch) != 0) {
    throw InvalidArgument(fmt::format("train.ranks {} x train.batch {} does not divide train.window {}: choose ones that do",
                                      config.train.ranks, config.train.batch, config.train.window));
  }
  if (config.train.max_window_tokens > 0 && config.train.total_steps == 0) {
    throw InvalidArgument(
        fmt::format("train.max_window_tokens is {}: how many steps the samples make depends on their lengths; give "
                    "train.total_steps, the schedule's length",
                    config.train.max_window_tokens));
  }
  check_memory(config);
}

std::uint64_t sample_bytes(const RunConfig& config, std::int64_t tokens) {
  const std::filesystem::path path = config.target / "config.json";
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return 0;
  const auto json = nlohmann::json::parse(read_text_file(path, 16 << 20), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return 0;
  const auto number = [&](const char* key) {
    const auto at = json.find(key);
    return at != json.end() && at->is_number_unsigned() ? at->get<std::uint64_t>() : 0;
  };
  const std::uint64_t context = number("max_position_embeddings");
  std::uint64_t length = tokens > 0 ? static_cast<std::uint64_t>(tokens) : context;
  if (context > 0) length = std::min(length, context);
  const std::uint64_t hidden = number("hidden_size");
  if (hidden == 0 || hidden > (1U << 24) || length > (1U << 28)) return 0;
  const std::uint64_t layers = config.capture.layers.empty() ? 3 : config.capture.layers.size();
  const std::uint64_t element = config.capture.dtype == "float32" ? 4 : 2;
  constexpr std::uint64_t kIdAndMask = 16;  // two int64 a token
  return length * ((layers + 1) * hidden * element + kIdAndMask);
}

std::map<std::string, std::string> flatten(const RunConfig& config) {
  RunConfig copy = config;
  std::map<std::string, std::string> flat;
  for (const Section& section : sections_of(copy)) {
    for (const Field& field : section.fields)
      flat[section.name.empty() ? field.key : section.name + "." + field.key] = field_text(field);
  }
  return flat;
}

std::string to_yaml(const RunConfig& config) {
  RunConfig copy = config;
  return yaml_of(sections_of(copy));
}

std::string differences(const RunConfig& there, const RunConfig& here) {
  const auto old_values = flatten(there);
  std::string text;
  for (const auto& [key, value] : flatten(here)) {
    const std::string& before = old_values.at(key);
    // How many processes do the work, and how often they are started, changes no sample.
    if (key == "out" || key == "restarts" || key == "train.ranks" || before == value) continue;
    text += fmt::format("{}{} is '{}' there and '{}' here", text.empty() ? "" : "; ", key, before, value);
  }
  return text;
}

}  // namespace draftflow::cli
