// SPDX-License-Identifier: Apache-2.0
#include "cli/chart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace draftflow::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(Chart, EscapesEverythingThatHtmlObeys) {
  EXPECT_EQ(escape_html("<a href='x'>&\"\n"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\n");
  EXPECT_EQ(escape_html("\xFF\x01gr\xC3\xBC"), "\\xff\\x01gr\xC3\xBC");
  EXPECT_EQ(escape_html(""), "");
}

TEST(Chart, TitlesNamesAndLabelsAreEscaped) {
  const std::string svg = line_chart_svg(
      {.title = "<t>", .x_label = "<x>", .y_label = "<y>", .series = {{"<s>", {{0, 1}, {1, 2}}}}, .marks = {{"<m>", 1}}});
  for (const char* raw : {"<t>", "<x>", "<y>", "<s>", "<m>"}) EXPECT_THAT(svg, Not(HasSubstr(raw)));
  EXPECT_THAT(svg, HasSubstr("&lt;s&gt;"));
}

TEST(Chart, DrawsEachSeriesAndSkipsWhatIsNotFinite) {
  const std::string svg =
      line_chart_svg({.title = "t", .series = {{"a", {{0, 1}, {1, NAN}, {2, 3}}}, {"b", {{0, 2}, {2, 2}}}}});
  EXPECT_THAT(svg, HasSubstr("class=\"line s0\""));
  EXPECT_THAT(svg, HasSubstr("class=\"line s1\""));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

TEST(Chart, NothingToDrawSaysSo) {
  EXPECT_THAT(line_chart_svg({.title = "t"}), HasSubstr("no data"));
  EXPECT_THAT(line_chart_svg({.title = "t", .series = {{"a", {{0, NAN}}}}}), HasSubstr("no data"));
  EXPECT_THAT(bar_chart_svg({.title = "t"}), HasSubstr("no data"));
}

TEST(Chart, TicksAreRoundAndCoverTheRange) {
  EXPECT_EQ(nice_ticks(0, 1, 5), (std::vector<double>{0, 0.2, 0.4, 0.2 * 3, 0.8, 1}));
  EXPECT_EQ(nice_ticks(3, 17, 5), (std::vector<double>{0, 5, 10, 15, 20}));
  EXPECT_EQ(byte_ticks(3 << 20, 4), (std::vector<double>{0, 1 << 20, 2 << 20, 3 << 20}));
  for (const double same : {0.0, 5.0, -2.0}) {
    const auto ticks = nice_ticks(same, same, 5);
    ASSERT_GE(ticks.size(), 2u);
    EXPECT_LE(ticks.front(), same);
    EXPECT_GT(ticks.back(), ticks.front());
  }
}

TEST(Chart, ThinningKeepsTheMean) {
  Points points;
  for (int i = 0; i < 1000; ++i) points.emplace_back(i, i % 2);
  const Points thin = thin_out(points, 100);
  ASSERT_EQ(thin.size(), 100u);
  for (const auto& point : thin) EXPECT_DOUBLE_EQ(point.second, 0.5);
  EXPECT_EQ(thin_out(points, 1000), points);
}

}  // namespace
}  // namespace draftflow::cli
