// SPDX-License-Identifier: Apache-2.0
#include "cli/summary.h"

#include <fmt/format.h>

#include <set>

#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

double sum_of(const std::map<std::string, Json>& last_records, const char* key) {
  double sum = 0;
  for (const auto& [process, record] : last_records) sum += number_or(record, key, 0);
  return sum;
}

double per_second(double amount, double seconds) {
  return seconds > 0 ? amount / seconds : 0;
}

// Active seconds until the last sample was committed.
double capture_seconds(const RunRecords& records) {
  if (records.ledger.empty()) return 0;
  const double all = number_or(records.ledger.back(), "committed", 0);
  for (const Json& record : records.ledger) {
    if (number_or(record, "committed", 0) >= all) return ActiveClock(records.ledger).seconds(number_or(record, "time", 0));
  }
  return 0;
}

Json rates_of(const RunRecords& records) {
  const Json nothing = Json::object();
  const Json& last_ledger = records.ledger.empty() ? nothing : records.ledger.back();
  const double capturing = capture_seconds(records);
  double training = 0, samples = 0, tokens = 0;
  const Json* before = nullptr;
  for (const auto& [step, record] : records.train) {
    if (before != nullptr) {
      training += number_or(record, "step_seconds", 0);
      samples += std::max(0.0, number_or(record, "samples", 0) - number_or(*before, "samples", 0));
      tokens += std::max(0.0, number_or(record, "tokens", 0) - number_or(*before, "tokens", 0));
    }
    before = &record;
  }
  return {{"capture_samples_per_second", per_second(number_or(last_ledger, "committed", 0), capturing)},
          {"capture_tokens_per_second", per_second(number_or(last_ledger, "committed_tokens", 0), capturing)},
          {"capture_bytes_per_second", per_second(sum_of(records.producers, "bytes"), capturing)},
          {"train_samples_per_second", per_second(samples, training)},
          {"train_tokens_per_second", per_second(tokens, training)},
          {"train_steps_per_second",
           per_second(records.train.empty() ? 0 : static_cast<double>(records.train.size() - 1), training)}};
}

Json eval_field(const Json& eval, const char* key) {
  return eval.is_object() && eval.contains(key) ? eval[key] : Json(nullptr);
}

bool is_lossless(const Json& eval) {
  return eval_field(eval, "lossless") == true && eval.is_object() && number_or(eval, "prompts", 0) > 0;
}

std::int64_t count_processes(const RunRecords& records) {
  std::set<std::pair<std::int64_t, std::int64_t>> distinct;  // pid, start time
  for (const Json& record : records.processes) {
    distinct.emplace(static_cast<std::int64_t>(number_or(record, "pid", 0)),
                     static_cast<std::int64_t>(1000 * number_or(record, "time", 0)));
  }
  return static_cast<std::int64_t>(distinct.size());
}

Json versions_of(const RunRecords& records) {
  Json versions{{"draftflow", DRAFTFLOW_VERSION}, {"compiler", __VERSION__}};
  const Json libtorch = eval_field(records.trained, "libtorch");
  if (!libtorch.is_null()) versions["libtorch"] = libtorch;
  return versions;
}

std::string position_row(const Json& untrained, const Json& trained, std::size_t i) {
  const auto cell = [&](const Json& values) {
    return values.is_array() && i < values.size() && values[i].is_number()
               ? fmt::format("{:.1f} %", 100 * values[i].get<double>())
               : std::string("-");
  };
  return fmt::format("  accepted at position {:<5} {:>12} {:>12}\n", i + 1, cell(untrained), cell(trained));
}

}  // namespace

double data_wait_fraction(const RunRecords& records) {
  const double seconds = sum_of(records.trainers, "total_seconds");
  return seconds > 0 ? sum_of(records.trainers, "total_wait_seconds") / seconds : 0;
}

Json make_summary(const RunConfig& config, const RunRecords& records, const RunState& state, std::int64_t samples,
                  std::int64_t optimizer_steps) {
  Json summary{{"run", config.run},
               {"acceptance_length_untrained", eval_field(records.untrained, "acceptance_length")},
               {"acceptance_length_trained", eval_field(records.trained, "acceptance_length")},
               {"lossless", is_lossless(records.untrained) && is_lossless(records.trained)},
               {"samples", samples},
               {"optimizer_steps", optimizer_steps},
               {"data_wait_fraction", data_wait_fraction(records)},
               {"processes", count_processes(records)}};
  summary["acceptance_untrained"] = eval_field(records.untrained, "acceptance");
  summary["acceptance_trained"] = eval_field(records.trained, "acceptance");
  summary["held_out_prompts"] = eval_field(records.trained, "prompts");
  if (!records.train.empty()) summary["final_loss"] = number_or(records.train.rbegin()->second, "loss_total", 0);
  if (!records.ledger.empty()) {
    summary["prompts_failed"] = static_cast<std::int64_t>(number_or(records.ledger.back(), "prompts_failed", 0));
    summary["samples_failed"] = static_cast<std::int64_t>(number_or(records.ledger.back(), "failed", 0));
    summary["samples_dropped"] = static_cast<std::int64_t>(number_or(records.ledger.back(), "dropped", 0));
  }
  summary["rates"] = rates_of(records);
  summary["seconds"] = state.seconds;
  summary["versions"] = versions_of(records);
  return summary;
}

std::string summary_table(const Json& summary, const std::filesystem::path& report) {
  const double untrained = number_or(summary, "acceptance_length_untrained", 0);
  const double trained = number_or(summary, "acceptance_length_trained", 0);
  std::string text = fmt::format("\n  {:<26} {:>12} {:>12}\n", "decoding held-out prompts", "untrained", "trained");
  text += fmt::format("  {:<26} {:>12.3f} {:>12.3f}", "tokens per target pass", untrained, trained);
  text += untrained > 0 ? fmt::format("   {:.2f} x\n", trained / untrained) : "\n";
  const Json before = summary.value("acceptance_untrained", Json()), after = summary.value("acceptance_trained", Json());
  for (std::size_t i = 0; i < std::max(before.size(), after.size()); ++i) text += position_row(before, after, i);
  text += fmt::format("  {:<26} {}\n\n", "lossless",
                      summary.value("lossless", false) ? "yes: every token is the target's own greedy decoding" : "NO");
  text += fmt::format("  {:<26} {:.0f}\n  {:<26} {:.0f}\n", "samples trained", number_or(summary, "samples", 0),
                      "optimizer steps", number_or(summary, "optimizer_steps", 0));
  text += fmt::format("  {:<26} {:.2f} % of the trainer's time\n", "waiting for data",
                      100 * number_or(summary, "data_wait_fraction", 0));
  text += fmt::format("  {:<26} {:.0f}\n", "processes", number_or(summary, "processes", 0));
  const Json rates = summary.value("rates", Json::object());
  text += fmt::format("  {:<26} capture {:.1f}, train {:.1f}\n", "samples a second",
                      number_or(rates, "capture_samples_per_second", 0), number_or(rates, "train_samples_per_second", 0));
  const Json stages = summary.value("seconds", Json::object());
  for (const auto& [stage, seconds] : stages.items()) {
    if (seconds.is_number()) text += fmt::format("  {:<26} {}\n", "time, " + stage, human_seconds(seconds.get<double>()));
  }
  return text + fmt::format("  {:<26} {}\n", "report", report.string());
}

}  // namespace draftflow::cli
