// SPDX-License-Identifier: Apache-2.0
#include "cli/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "cli/summary.h"
#include "draftflow/base/random.h"

namespace draftflow::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

// Two starts of a run of 120 s each, as a metrics folder would tell it.
RunRecords synthetic_records() {
  RunRecords records;
  Random random(1);
  for (int second = 0; second < 240; ++second) {
    const double committed = std::min(2000.0, 18.0 * second);
    const double trained = std::min(committed, std::floor(std::max(0, second - 12) * 9.0 / 16) * 16);
    records.ledger.push_back({{"time", 1e9 + second + (second > 120 ? 5000 : 0)},
                              {"committed", committed},
                              {"prompts", 2000},
                              {"available", committed - trained},
                              {"windowed", 0},
                              {"trained", trained},
                              {"resident_bytes", std::min(240e6, (committed - 0.8 * trained) * 300e3)}});
  }
  for (int step = 1; step <= 125; ++step) {
    std::vector<double> loss, acceptance;
    for (int i = 0; i < 7; ++i) {
      loss.push_back(6 * std::exp(-step / 40.0) + 1.2 + 0.15 * i + 0.1 * random.normal());
      acceptance.push_back((0.75 - 0.05 * i) * (1 - std::exp(-step / 30.0)) + 0.01 * random.normal());
    }
    records.add_train({{{"step", step},
                        {"process", "p"},
                        {"loss_total", loss[0] * 4},
                        {"loss", loss},
                        {"acceptance", acceptance},
                        {"wait_seconds", 0.002 * random.uniform()},
                        {"step_seconds", 1.7 + 0.1 * random.uniform()},
                        {"total_wait_seconds", 0.001 * step},
                        {"total_seconds", 1.7 * step},
                        {"samples", 16 * step}}});
  }
  records.untrained = {
      {"acceptance_length", 1.04}, {"lossless", true}, {"prompts", 40}, {"acceptance", {0.03, 0.02, 0.01, 0, 0}}};
  records.trained = {
      {"acceptance_length", 2.71},
      {"lossless", true},
      {"prompts", 40},
      {"acceptance", {0.71, 0.62, 0.55, 0.49, 0.41}},
      {"example_prompt", "It is a truth universally acknowledged, <script>alert('x')</script>"},
      {"example_text", "that a single man in possession of a good fortune \"must\" & will be in want of a wife."}};
  return records;
}

std::string synthetic_report(const std::string& run) {
  RunConfig config;
  config.run = run;
  config.capture.high_watermark_bytes = 256 << 20;
  config.capture.low_watermark_bytes = 192 << 20;
  const RunRecords records = synthetic_records();
  const Json summary = make_summary(config, records, {{}, {{"ingest", 1.2}, {"capture and train", 240.0}}}, 2000, 125);
  return report_html({config, records, summary});
}

TEST(Report, ShowsEveryChartOfTheRun) {
  const std::string html = synthetic_report("demo");
  for (const char* title : {"Loss against steps", "Acceptance by position against steps", "Queue depth", "Resident bytes",
                            "high watermark", "Producer and trainer rates", "waiting for data", "Tokens emitted per pass",
                            "lossless", "Configuration", "train.learning_rate"}) {
    EXPECT_THAT(html, HasSubstr(title));
  }
  EXPECT_THAT(html, Not(HasSubstr("no data")));
  // DRAFTFLOW_REPORT_OUT=file keeps the page, to be looked at.
  if (const char* out = std::getenv("DRAFTFLOW_REPORT_OUT"); out != nullptr) replace_file(out, html);
}

TEST(Report, HostileTextStaysText) {
  const std::string html = synthetic_report("<img src=x onerror=alert(1)>");
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, Not(HasSubstr("<img")));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;alert(&#39;x&#39;)"));
}

TEST(Report, NeedsNothingFromOutside) {
  std::string html = synthetic_report("demo");
  const std::string allowed = "http://www.w3.org/2000/svg";  // a name, never fetched
  for (std::size_t at = html.find(allowed); at != std::string::npos; at = html.find(allowed)) html.erase(at, allowed.size());
  for (const char* outside : {"http:", "https:", "src=", "href=", "url(", "@import"})
    EXPECT_THAT(html, Not(HasSubstr(outside)));
}

TEST(Report, ARunWithoutMetricsIsDrawnEmpty) {
  const Json summary = make_summary({}, {}, {}, 0, 0);
  EXPECT_THAT(report_html({RunConfig{}, RunRecords{}, summary}), HasSubstr("no data"));
}

}  // namespace
}  // namespace draftflow::cli
