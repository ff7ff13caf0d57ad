// SPDX-License-Identifier: Apache-2.0
#include "cli/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <limits>
#include <span>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr std::uint64_t kReadBytes = 64ULL << 20;  // of one read_new, so that a huge file cannot fill memory

bool ends_in_torn_line(int fd, const std::filesystem::path& path) {
  const std::uint64_t size = file_size(fd, path);
  if (size == 0) return false;
  char last = 0;
  read_exact(fd, std::as_writable_bytes(std::span(&last, 1)), size - 1, path);
  return last != '\n';
}

}  // namespace

double wall_clock_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

MetricsWriter::MetricsWriter(std::filesystem::path path) : path_(std::move(path)), process_(random_hex128().substr(0, 16)) {
  if (path_.has_parent_path()) make_folders(path_.parent_path());
  file_ = open_file(path_, O_RDWR | O_CREAT | O_APPEND);
  if (ends_in_torn_line(file_.get(), path_)) write_all(file_.get(), std::as_bytes(std::span("\n", 1)), path_);
}

void MetricsWriter::append(const Json& record) {
  Json line = Json::object();
  line["time"] = wall_clock_seconds();
  line["process"] = process_;
  line.update(record);
  const std::string text = line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  write_all(file_.get(), std::as_bytes(std::span(text)), path_);
}

std::vector<Json> MetricsReader::read_new() {
  std::vector<Json> records;
  if (!std::filesystem::exists(path_)) return records;
  const UniqueFd file = open_file(path_, O_RDONLY);
  const std::uint64_t size = file_size(file.get(), path_);
  if (size <= offset_) return records;
  std::string text(std::min(size - offset_, kReadBytes), '\0');
  read_exact(file.get(), std::as_writable_bytes(std::span(text)), offset_, path_);
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    Json record = Json::parse(text.begin() + static_cast<std::ptrdiff_t>(begin),
                              text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, /*allow_exceptions=*/false);
    if (record.is_object()) records.push_back(std::move(record));
    begin = end + 1;
  }
  offset_ += begin;
  return records;
}

std::vector<Json> read_metrics(const std::filesystem::path& path) {
  MetricsReader reader(path);
  std::vector<Json> all;
  for (std::vector<Json> some = reader.read_new(); !some.empty(); some = reader.read_new()) {
    std::move(some.begin(), some.end(), std::back_inserter(all));
  }
  return all;
}

Json to_json(const CaptureProgress& p) {
  return {{"captured", p.captured},
          {"failed", p.failed},
          {"tokens", p.tokens},
          {"total", p.total},
          {"done", p.done},
          {"bytes", p.bytes},
          {"busy_seconds", p.busy_seconds},
          {"paused_seconds", p.paused_seconds},
          {"paused", p.paused}};
}

Json to_json(const TrainProgress& p) {
  return {{"step", p.step},
          {"total_steps", p.total_steps},
          {"samples", p.samples},
          {"tokens", p.tokens},
          {"failed", p.failed},
          {"loss_total", p.loss_total},
          {"grad_norm", p.grad_norm},
          {"learning_rate", p.learning_rate},
          {"loss", p.loss},
          {"accuracy", p.accuracy},
          {"acceptance", p.acceptance},
          {"wait_seconds", p.wait_seconds},
          {"step_seconds", p.step_seconds},
          {"total_wait_seconds", p.total_wait_seconds},
          {"total_seconds", p.total_seconds},
          {"resumed", p.resumed}};
}

Json to_json(const EvalReport& r) {
  return {{"prompts", r.prompts},
          {"skipped", r.skipped},
          {"tokens", r.tokens},
          {"target_passes", r.target_passes},
          {"acceptance_length", r.acceptance_length},
          {"acceptance", r.acceptance},
          {"lossless", r.lossless},
          {"mismatched_prompts", r.mismatched_prompts},
          {"plain_seconds", r.plain_seconds},
          {"speculative_seconds", r.speculative_seconds},
          {"example_prompt", json_text(r.example_prompt)},
          {"example_text", json_text(r.example_text)}};
}

GroupStatus first_group(const LedgerStatus& status) {
  return status.groups.empty() ? status.of(GroupId("train")) : status.groups.front();
}

Json to_json(const GroupStatus& g) {
  return {{"group", json_text(g.group)},
          {"kind", g.kind == GroupKind::kWindows ? "windows" : "queue"},
          {"leased", g.leased},
          {"window", g.window},
          {"max_window_tokens", g.max_window_tokens},
          {"passes", g.passes},
          {"open", g.open},
          {"width", g.width},
          {"available", g.available},
          {"windowed", g.windowed},
          {"trained", g.trained},
          {"durable", g.durable},
          {"dropped", g.dropped},
          {"failed", g.failed},
          {"timeline", g.timeline},
          {"trained_step", g.trained_step},
          {"durable_step", g.durable_step},
          {"pinned", g.pinned}};
}

Json to_json(const LedgerStatus& s) {
  Json groups = Json::array();
  for (const GroupStatus& group : s.groups) groups.push_back(to_json(group));
  const Json first = to_json(first_group(s));
  Json all = {{"ledger_id", s.ledger_id},
              {"run_id", json_text(s.run_id)},
              {"prompts", s.prompts},
              {"prompts_pending", s.prompts_pending},
              {"prompts_leased", s.prompts_leased},
              {"prompts_done", s.prompts_done},
              {"prompts_failed", s.prompts_failed},
              {"prompts_closed", s.prompts_closed},
              {"committed", s.committed},
              {"freed", s.freed},
              {"resident_bytes", s.resident_bytes},
              {"committed_tokens", s.committed_tokens},
              {"groups", groups}};
  for (const char* const key :
       {"available", "windowed", "trained", "durable", "dropped", "failed", "timeline", "trained_step", "durable_step"}) {
    all[key] = first[key];
  }
  return all;
}

double number_or(const Json& record, const char* key, double otherwise) {
  const auto at = record.find(key);
  return at != record.end() && at->is_number() ? at->get<double>() : otherwise;
}

std::string json_text(const std::string& text) {
  if (find_invalid_utf8(text) == std::string::npos) return text;
  return printable(text, text.size() * 4);
}

}  // namespace draftflow::cli
