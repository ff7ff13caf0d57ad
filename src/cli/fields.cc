// SPDX-License-Identifier: Apache-2.0
#include "cli/fields.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <stdexcept>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

struct Unit {
  std::string_view name;
  std::uint64_t bytes;
};

// The greatest first, so that the shortest exact text is found first.
constexpr std::array<Unit, 9> kUnits{{{"TiB", 1ULL << 40},
                                      {"GiB", 1ULL << 30},
                                      {"MiB", 1ULL << 20},
                                      {"KiB", 1ULL << 10},
                                      {"TB", 1'000'000'000'000ULL},
                                      {"GB", 1'000'000'000ULL},
                                      {"MB", 1'000'000ULL},
                                      {"KB", 1'000ULL},
                                      {"B", 1ULL}}};

template <class T>
bool parse_number(std::string_view text, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

[[noreturn]] void refuse(const Field& field, std::string_view text) {
  throw InvalidArgument(fmt::format("'{}' is not {}", printable(text, 80), expected_of(field)));
}

struct Setter {
  const Field& field;
  std::string_view text;

  template <class T>
  void number(T& out) const {
    T parsed{};
    if (!parse_number(text, parsed) || static_cast<double>(parsed) < field.minimum) refuse(field, text);
    out = parsed;
  }
  void operator()(int* out) const { number(*out); }
  void operator()(std::int64_t* out) const { number(*out); }
  void operator()(std::uint64_t* out) const { number(*out); }
  void operator()(double* out) const {
    double parsed = 0;
    if (!parse_number(text, parsed) || !std::isfinite(parsed) || parsed < field.minimum) refuse(field, text);
    *out = parsed;
  }
  void operator()(ByteSize out) const { *out.bytes = parse_byte_size(text); }
  void operator()(std::filesystem::path* out) const { *out = std::filesystem::path(text); }
  void operator()(std::string* out) const { *out = std::string(text); }
  void operator()(bool* out) const {
    if (text != "true" && text != "false") refuse(field, text);
    *out = text == "true";
  }
  void operator()(std::vector<int>* out) const {
    std::vector<int> parsed;
    std::string_view rest = text;
    while (!rest.empty()) {
      const std::size_t comma = std::min(rest.find(','), rest.size());
      int item = 0;
      if (!parse_number(rest.substr(0, comma), item) || item < 0) refuse(field, text);
      parsed.push_back(item);
      rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
    *out = parsed;
  }
};

struct Writer {
  std::string operator()(const std::filesystem::path* value) const { return value->string(); }
  std::string operator()(const std::string* value) const { return *value; }
  std::string operator()(const int* value) const { return fmt::to_string(*value); }
  std::string operator()(const std::int64_t* value) const { return fmt::to_string(*value); }
  std::string operator()(const std::uint64_t* value) const { return fmt::to_string(*value); }
  std::string operator()(const double* value) const { return fmt::format("{}", *value); }
  std::string operator()(const bool* value) const { return *value ? "true" : "false"; }
  std::string operator()(ByteSize value) const { return byte_size_text(*value.bytes); }
  std::string operator()(const std::vector<int>* value) const { return fmt::format("{}", fmt::join(*value, ",")); }
};

struct Expectation {
  double minimum;
  std::string operator()(const std::filesystem::path*) const { return "a path"; }
  std::string operator()(const std::string*) const { return "text"; }
  std::string operator()(const double*) const { return fmt::format("a number of {} or more", minimum); }
  std::string operator()(const bool*) const { return "true or false"; }
  std::string operator()(ByteSize) const { return "a size such as 256MiB"; }
  std::string operator()(const std::vector<int>*) const { return "a list of whole numbers such as 1,3,5"; }
  template <class T>
  std::string operator()(const T*) const {
    return fmt::format("a whole number of {} or more", minimum);
  }
};

}  // namespace

Fields capture_fields(CaptureOptions& o) {
  return {
      {"target", &o.target, "the target: a Hugging Face model folder", 0, true},
      {"tokenizer", &o.tokenizer, "sentencepiece model; default: tokenizer.model in the target's folder"},
      {"prompts", &o.prompts, "prompts to put on the books first: .jsonl or .txt"},
      {"ledger", &o.ledger, "the run's ledger (SQLite file)", 0, true},
      {"store", &o.store, "the feature store's folder, {root}/{store id}", 0, true},
      {"run_id", &o.run_id, "id of the run"},
      {"layers", &o.layers, "decoder layers to capture, counted from 0; default: {1, L/2 - 1, L - 4}"},
      {"max_length", &o.max_length, "longer prompts are failed, tokens; 0: the target's context"},
      {"dtype", &o.dtype, "of the stored features: bfloat16 or float32"},
      {"ingest_only", &o.ingest_only, "only put the prompts on the books, then close them"},
      {"keep_open", &o.keep_open, "do not close the prompts after adding them: more will come"},
      {"high_watermark", ByteSize{&o.high_watermark_bytes}, "pause when this many bytes are resident"},
      {"low_watermark", ByteSize{&o.low_watermark_bytes}, "go on when they have come down to this"},
      {"lease_ms", &o.lease_ms, "a dead worker's prompts return after this, milliseconds", 100},
      {"lease_tasks", &o.lease_tasks, "prompts leased at a time", 1},
      {"max_attempts", &o.max_attempts, "tries before a prompt is failed for good", 1},
      {"threads", &o.threads, "CPU threads", 1},
      {"durable", &o.durable, "sync each sample to disk before it is committed"},
      {"secret_file", &o.secret_file, "of a store with a secret; default: the environment's DRAFTFLOW_STORE_SECRET"},
  };
}

Fields train_fields(TrainOptions& o) {
  return {
      {"target", &o.target, "the target: a Hugging Face model folder", 0, true},
      {"ledger", &o.ledger, "the run's ledger (SQLite file)", 0, true},
      {"store", &o.store, "the feature store's folder; leave out for an ingested folder"},
      {"secret_file", &o.secret_file, "of a store with a secret; default: the environment's DRAFTFLOW_STORE_SECRET"},
      {"out", &o.out, "folder for checkpoints and the draft", 0, true},
      {"init_draft", &o.init_draft, "start from this draft folder; default: seeded random weights"},
      {"group", &o.group, "consumer group"},
      {"window", &o.window, "samples per optimizer step", 1},
      {"max_window_tokens", &o.max_window_tokens, "of a step's samples together, which may then be fewer; 0: no cap"},
      {"ranks", &o.ranks, "trainer processes that share each window; ranks x batch divides it", 1},
      {"batch", &o.batch, "samples per forward pass", 1},
      {"ttt_length", &o.ttt_length, "unrolled steps", 1},
      {"max_length", &o.max_length, "longer samples are cut, tokens", 1},
      {"learning_rate", &o.learning_rate, "peak learning rate"},
      {"warmup_ratio", &o.warmup_ratio, "share of the steps that warm up"},
      {"max_grad_norm", &o.max_grad_norm, "gradient clipping"},
      {"loss_decay", &o.loss_decay, "weight of unrolled step i is loss_decay^i"},
      {"loss", &o.loss, "kl, alpha or lambda"},
      {"kl_scale", &o.kl_scale, "of the lambda loss"},
      {"kl_decay", &o.kl_decay, "of the lambda loss"},
      {"loss_normalization", &o.loss_normalization, "tokens or reference"},
      {"dtype", &o.dtype, "compute type: float32, bfloat16 or float64"},
      {"draft_vocab", &o.draft_vocab, "the draft's vocabulary; 0: the target's"},
      {"heads", &o.heads, "attention heads of the draft; 0: as the target"},
      {"kv_heads", &o.kv_heads, "key and value heads of the draft; 0: as the target"},
      {"head_dim", &o.head_dim, "width of a head of the draft; 0: as the target"},
      {"intermediate", &o.intermediate, "width of the draft's feed-forward layer; 0: as the target"},
      {"seed", &o.seed, "of the draft's first weights and the order of offline sets"},
      {"epochs", &o.epochs, "passes over the samples; a stream keeps its bytes until the last one", 1},
      {"total_steps", &o.total_steps, "length of the schedule, optimizer steps; 0: from the number of samples"},
      {"checkpoint_every", &o.checkpoint_every, "optimizer steps between checkpoints", 1},
      {"resumable_checkpoints", &o.resumable_checkpoints, "newest checkpoints that pin their samples", 1},
      {"checkpoint_on_pressure", &o.checkpoint_on_pressure, "save when data stays away for 2 s, so that bytes can go", 0, false,
       true},
      {"prefetch", &o.prefetch, "windows fetched ahead"},
      {"ahead_samples", &o.ahead_samples, "wait for this many committed samples before the first step"},
      {"threads", &o.threads, "CPU threads", 1},
  };
}

Fields eval_fields(EvalOptions& o) {
  return {
      {"target", &o.target, "the target: a Hugging Face model folder", 0, true},
      {"tokenizer", &o.tokenizer, "sentencepiece model; default: tokenizer.model in the target's folder"},
      {"draft", &o.draft, "the draft's folder (Hugging Face layout)", 0, true},
      {"prompts", &o.prompts, "held-out prompts: .jsonl or .txt", 0, true},
      {"layers", &o.layers, "captured layers that the draft was trained on; default: from the draft's config"},
      {"new_tokens", &o.new_tokens, "tokens decoded per prompt", 1},
      {"depth", &o.depth, "tokens drafted per target pass", 1},
      {"limit", &o.limit, "prompts; 0: all"},
      {"threads", &o.threads, "CPU threads", 1},
  };
}

std::string flag_of(const Field& field) {
  std::string flag = "--" + field.key;
  std::replace(flag.begin() + 2, flag.end(), '_', '-');
  return flag;
}

void set_field(const Field& field, std::string_view text) {
  std::visit(Setter{field, text}, field.value);
}

std::string field_text(const Field& field) {
  return std::visit(Writer{}, field.value);
}

std::string expected_of(const Field& field) {
  return std::visit(Expectation{field.minimum}, field.value);
}

Field& find_field(Fields& fields, std::string_view key) {
  const auto at = std::find_if(fields.begin(), fields.end(), [&](const Field& field) { return field.key == key; });
  if (at == fields.end()) throw std::logic_error(fmt::format("there is no field '{}'", key));
  return *at;
}

Fields select_fields(const Fields& fields, const std::vector<std::string>& keys) {
  Fields all = fields;
  Fields selected;
  for (const std::string& key : keys) selected.push_back(find_field(all, key));
  return selected;
}

std::vector<std::string> to_arguments(const Fields& fields) {
  std::vector<std::string> arguments;
  for (const Field& field : fields) {
    const std::string text = field_text(field);
    if (std::holds_alternative<bool*>(field.value)) {
      if (text == "true") arguments.push_back(flag_of(field));
      if (text == "false" && field.on) arguments.push_back(flag_of(field) + "=false");
    } else if (!text.empty()) {
      arguments.push_back(flag_of(field) + "=" + text);
    }
  }
  return arguments;
}

std::uint64_t parse_byte_size(std::string_view text) {
  std::string_view number = text;
  std::uint64_t scale = 1;
  for (const Unit& unit : kUnits) {
    if (number.ends_with(unit.name)) {
      number.remove_suffix(unit.name.size());
      scale = unit.bytes;
      break;
    }
  }
  while (!number.empty() && number.back() == ' ') number.remove_suffix(1);
  std::uint64_t whole = 0;
  if (parse_number(number, whole) && whole <= (1ULL << 53) / scale) return whole * scale;
  double value = 0;
  if (!parse_number(number, value) || !(value >= 0) || value * static_cast<double>(scale) > 9e15) {
    throw InvalidArgument(
        fmt::format("'{}' is not a size such as 256MiB, 1.5GiB or 4096 (units: B, KiB, MiB, GiB, TiB, KB, MB, "
                    "GB, TB; at most 8192TiB)",
                    printable(text, 80)));
  }
  return static_cast<std::uint64_t>(value * static_cast<double>(scale));
}

std::string byte_size_text(std::uint64_t bytes) {
  for (const Unit& unit : kUnits) {
    if (bytes != 0 && unit.bytes > 1 && bytes % unit.bytes == 0) return fmt::format("{}{}", bytes / unit.bytes, unit.name);
  }
  return fmt::to_string(bytes);
}

}  // namespace draftflow::cli
