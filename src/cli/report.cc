// SPDX-License-Identifier: Apache-2.0
#include "cli/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/chart.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr double kRateWindowSeconds = 10;

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --bg:#f6f7f9; --card:#fff; --text:#1c2330; --soft:#5d6778; --rule:#e3e7ed; --good:#1a7f4b;
  --bad:#c0342b; --s0:#2563eb; --s1:#e07a1f; --s2:#12a08b; --s3:#9c4fd6; --s4:#d63d74; --s5:#6f8f1d; --s6:#4aa3df; --s7:#8a7d6b; }
@media (prefers-color-scheme: dark) { :root { --bg:#12151b; --card:#1b2029; --text:#e6eaf0; --soft:#9aa5b6; --rule:#2d3542;
  --good:#48c78e; --bad:#ff7b72; --s0:#6ea2ff; --s1:#ffab5e; --s2:#4fd1bd; --s3:#c58bf2; --s4:#f57ba6; --s5:#b3d356; --s6:#8fd0ff;
  --s7:#c2b5a2; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--bg); color:var(--text); font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif; }
main { max-width:1360px; margin:0 auto; padding:28px 20px 60px; }
h1 { font-size:26px; margin:0 0 4px; } h2 { font-size:18px; margin:34px 0 12px; } p { margin:6px 0; color:var(--soft); }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,270px),1fr)); gap:14px; margin-top:20px; }
.tile,figure,.card { background:var(--card); border:1px solid var(--rule); border-radius:10px; padding:14px 16px; margin:0; }
.tile b { display:block; font-size:28px; line-height:1.2; font-weight:650; } .tile span { color:var(--soft); font-size:13px; }
.good { color:var(--good); } .bad { color:var(--bad); }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr)); gap:14px; }
figure { padding:10px 8px 4px; } svg { display:block; width:100%; height:auto; }
svg text { fill:var(--text); font-size:12px; } svg .title { font-size:15px; font-weight:600; }
svg .tick,svg .label,svg .legend,svg .value { fill:var(--soft); font-size:11.5px; } svg .value { fill:var(--text); }
.grid { stroke:var(--rule); } .axis { stroke:var(--soft); } .mark { stroke:var(--bad); stroke-dasharray:6 4; }
.line { fill:none; stroke-width:1.4; stroke-linejoin:round; } .strong { stroke-width:2.4; }
.s0{stroke:var(--s0)}.s1{stroke:var(--s1)}.s2{stroke:var(--s2)}.s3{stroke:var(--s3)}
.s4{stroke:var(--s4)}.s5{stroke:var(--s5)}.s6{stroke:var(--s6)}.s7{stroke:var(--s7)}
.f0{fill:var(--s0)}.f1{fill:var(--s1)}.f2{fill:var(--s2)}.f3{fill:var(--s3)}
.f4{fill:var(--s4)}.f5{fill:var(--s5)}.f6{fill:var(--s6)}.f7{fill:var(--s7)}
pre { white-space:pre-wrap; overflow-wrap:anywhere; font:13px/1.5 ui-monospace,monospace; margin:6px 0 0; }
.prompt { color:var(--soft); } table { border-collapse:collapse; width:100%; font-size:13.5px; }
td { padding:3px 14px 3px 0; border-bottom:1px solid var(--rule); vertical-align:top; overflow-wrap:anywhere; }
td:first-child { color:var(--soft); white-space:nowrap; width:1%; }
)";

std::string tile(const std::string& value, const std::string& name, const char* style = "") {
  return fmt::format("<div class=\"tile\"><b class=\"{}\">{}</b><span>{}</span></div>\n", style, escape_html(value),
                     escape_html(name));
}

Points step_points(const RunRecords& records, const char* key, double factor = 1) {
  Points points;
  for (const auto& [step, record] : records.train) points.emplace_back(step, factor * number_or(record, key, NAN));
  return points;
}

// The first step waits for the samples captured ahead: it would dwarf the others.
Points later_milliseconds(const RunRecords& records, const char* key) {
  Points points = step_points(records, key, 1e3);
  if (!points.empty()) points.erase(points.begin());
  return points;
}

// One series for each unrolled position of an array in the step records.
std::vector<Series> position_series(const RunRecords& records, const char* key) {
  std::vector<Series> series;
  for (const auto& [step, record] : records.train) {
    const auto at = record.find(key);
    if (at == record.end() || !at->is_array()) continue;
    const std::size_t positions = std::min<std::size_t>(at->size(), 16);
    while (series.size() < positions) series.push_back({fmt::format("pos {}", series.size() + 1), {}});
    for (std::size_t i = 0; i < positions; ++i) {
      series[i].points.emplace_back(step, (*at)[i].is_number() ? (*at)[i].get<double>() : NAN);
    }
  }
  return series;
}

double trained_of(const Json& record) {
  return number_or(record, "trained", 0) + number_or(record, "durable", 0);
}

// Growth of a counter a second, over a sliding window of active time.
template <class Counter>
Points rate_points(const RunRecords& records, const ActiveClock& clock, Counter counter) {
  Points points;
  std::size_t begin = 0;
  const double window = std::max(kRateWindowSeconds, clock.total() / 60);
  for (std::size_t i = 0; i < records.ledger.size(); ++i) {
    const double now = clock.seconds(number_or(records.ledger[i], "time", 0));
    while (begin < i && clock.seconds(number_or(records.ledger[begin], "time", 0)) < now - window) ++begin;
    const double seconds = now - clock.seconds(number_or(records.ledger[begin], "time", 0));
    const double grown = counter(records.ledger[i]) - counter(records.ledger[begin]);
    if (seconds > 0) points.emplace_back(now, std::max(0.0, grown / seconds));
  }
  return points;
}

template <class Value>
Points time_points(const RunRecords& records, const ActiveClock& clock, Value value) {
  Points points;
  for (const Json& record : records.ledger) points.emplace_back(clock.seconds(number_or(record, "time", 0)), value(record));
  return points;
}

std::string learning_charts(const RunRecords& records) {
  std::vector<Series> loss{{"total", step_points(records, "loss_total"), true}};
  for (Series& series : position_series(records, "loss")) loss.push_back(std::move(series));
  std::vector<Series> acceptance = position_series(records, "acceptance");
  if (!acceptance.empty()) acceptance.front().strong = true;
  return line_chart_svg({.title = "Loss against steps (total: weighted sum over positions)",
                         .x_label = "optimizer step",
                         .y_label = "loss (nats)",
                         .series = loss}) +
         line_chart_svg({.title = "Acceptance by position against steps (training windows)",
                         .x_label = "optimizer step",
                         .y_label = "expected acceptance",
                         .series = acceptance,
                         .y_unit = AxisUnit::kPercent});
}

std::string flow_charts(const RunConfig& config, const RunRecords& records) {
  const ActiveClock clock(records.ledger);
  const Points queue =
      time_points(records, clock, [](const Json& r) { return number_or(r, "available", 0) + number_or(r, "windowed", 0); });
  const Points resident = time_points(records, clock, [](const Json& r) { return number_or(r, "resident_bytes", 0); });
  const Points producers = rate_points(records, clock, [](const Json& r) { return number_or(r, "committed", 0); });
  const Points trainer = rate_points(records, clock, trained_of);
  return line_chart_svg({.title = "Queue depth: samples committed, not yet trained",
                         .x_label = "run time (s)",
                         .y_label = "samples",
                         .series = {{"waiting", queue, true}}}) +
         line_chart_svg({.title = "Resident bytes in the feature store",
                         .x_label = "run time (s)",
                         .y_label = "bytes",
                         .series = {{"resident", resident, true}},
                         .marks = {{"high watermark", static_cast<double>(config.capture.high_watermark_bytes)},
                                   {"low watermark", static_cast<double>(config.capture.low_watermark_bytes)}},
                         .y_unit = AxisUnit::kBytes}) +
         line_chart_svg({.title = "Producer and trainer rates",
                         .x_label = "run time (s)",
                         .y_label = "samples per second",
                         .series = {{"producers", producers, true}, {"trainer", trainer, true}}}) +
         line_chart_svg({.title = "Where a step's time goes (after the first)",
                         .x_label = "optimizer step",
                         .y_label = "milliseconds",
                         .series = {{"waiting for data", later_milliseconds(records, "wait_seconds"), true},
                                    {"whole step", later_milliseconds(records, "step_seconds")}}});
}

std::vector<double> numbers_of(const Json& array) {
  std::vector<double> numbers;
  for (const Json& item : array) numbers.push_back(item.is_number() ? item.get<double>() : NAN);
  return numbers;
}

std::string decoding_charts(const Json& summary) {
  const std::vector<double> before = numbers_of(summary.value("acceptance_untrained", Json()));
  const std::vector<double> after = numbers_of(summary.value("acceptance_trained", Json()));
  std::vector<std::string> positions;
  for (std::size_t i = 1; i <= std::max(before.size(), after.size()); ++i) positions.push_back(std::to_string(i));
  return bar_chart_svg({"Tokens emitted per pass of the target",
                        "",
                        "tokens per pass (1.0 = no help)",
                        {"held-out prompts"},
                        {{"untrained draft", {number_or(summary, "acceptance_length_untrained", NAN)}},
                         {"trained draft", {number_or(summary, "acceptance_length_trained", NAN)}}}}) +
         bar_chart_svg({"Drafted tokens accepted, by position",
                        "position in the draft",
                        "accepted",
                        positions,
                        {{"untrained draft", before}, {"trained draft", after}},
                        AxisUnit::kPercent});
}

std::string tiles(const Json& summary) {
  const double before = number_or(summary, "acceptance_length_untrained", 0);
  const double after = number_or(summary, "acceptance_length_trained", 0);
  const bool lossless = summary.value("lossless", false);
  const Json rates = summary.value("rates", Json::object());
  return "<div class=\"tiles\">\n" + tile(fmt::format("{:.2f}", after), "tokens per target pass, trained draft") +
         tile(fmt::format("{:.2f}", before), "tokens per target pass, untrained draft") +
         tile(before > 0 ? fmt::format("{:.2f} x", after / before) : "-", "trained over untrained") +
         tile(lossless ? "lossless" : "NOT lossless", "every token is the target's own greedy decoding",
              lossless ? "good" : "bad") +
         tile(fmt::format("{:.2f} %", 100 * number_or(summary, "data_wait_fraction", 0)),
              "of the trainer's time spent waiting for data") +
         tile(fmt::format("{:.0f}", number_or(summary, "samples", 0)),
              fmt::format("samples trained in {:.0f} steps", number_or(summary, "optimizer_steps", 0))) +
         tile(fmt::format("{:.1f} /s", number_or(rates, "train_samples_per_second", 0)),
              fmt::format("samples trained; captured {:.1f} /s", number_or(rates, "capture_samples_per_second", 0))) +
         tile(fmt::format("{:.0f}", number_or(summary, "processes", 0)), "processes took part") + "</div>\n";
}

std::string example(const Json& eval) {
  if (!eval.is_object()) return "";
  return fmt::format(
      "<h2>An example, decoded with the trained draft</h2><div class=\"card\"><pre "
      "class=\"prompt\">{}</pre><pre>{}</pre></div>\n",
      escape_html(eval.value("example_prompt", "")), escape_html(eval.value("example_text", "")));
}

std::string facts(const RunConfig& config, const Json& summary) {
  std::string html = "<h2>Figures</h2><div class=\"card\"><table>\n";
  for (const auto& [key, value] : summary.items()) {
    if (value.is_object()) {
      for (const auto& [inner, figure] : value.items()) {
        html += fmt::format("<tr><td>{}</td><td>{}</td></tr>\n", escape_html(key + "." + inner),
                            escape_html(figure.is_string() ? figure.get<std::string>() : figure.dump()));
      }
    } else {
      html += fmt::format("<tr><td>{}</td><td>{}</td></tr>\n", escape_html(key),
                          escape_html(value.is_string() ? value.get<std::string>() : value.dump()));
    }
  }
  html += "</table></div>\n<h2>Configuration</h2><div class=\"card\"><table>\n";
  for (const auto& [key, value] : flatten(config)) {
    html += fmt::format("<tr><td>{}</td><td>{}</td></tr>\n", escape_html(key), escape_html(value));
  }
  return html + "</table></div>\n";
}

}  // namespace

std::string report_html(const ReportInput& input) {
  const std::string title = "draftflow run " + escape_html(input.config.run);
  std::string html =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n";
  html += "<title>" + title + "</title>\n<style>" + kStyle + "</style></head>\n<body><main>\n<h1>" + title + "</h1>\n";
  html +=
      "<p>A draft model trained from the hidden states of its target, and what it is worth in real speculative decoding.</p>\n";
  html += tiles(input.summary);
  html += "<h2>Decoding held-out prompts</h2><div class=\"charts\">\n" + decoding_charts(input.summary) + "</div>\n";
  html += example(input.records.trained);
  html += "<h2>Learning</h2><div class=\"charts\">\n" + learning_charts(input.records) + "</div>\n";
  html += "<h2>Flow of samples</h2><div class=\"charts\">\n" + flow_charts(input.config, input.records) + "</div>\n";
  html += facts(input.config, input.summary);
  return html + "</main></body></html>\n";
}

}  // namespace draftflow::cli
