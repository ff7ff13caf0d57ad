// SPDX-License-Identifier: Apache-2.0
//
// Small charts as inline SVG: no script, no network, readable in light and dark (colours are CSS variables of the page,
// --s0 to --s7). All text is escaped. Pure functions.
//
//   line_chart_svg({.title = "Loss", .x_label = "optimizer step", .y_label = "nats", .series = {{"total", points}}});
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace draftflow::cli {

using Points = std::vector<std::pair<double, double>>;  // in order of x; points that are not finite are left out

struct Series {
  std::string name;
  Points points;
  bool strong = false;  // a thicker line
};

struct Mark {
  std::string name;
  double value = 0;  // a dashed horizontal line
};

enum class AxisUnit { kPlain, kBytes, kPercent };  // percent: values are shares, 1.0 = 100 %

struct LineChart {
  std::string title, x_label, y_label;
  std::vector<Series> series;
  std::vector<Mark> marks;
  AxisUnit y_unit = AxisUnit::kPlain;
  bool y_from_zero = true;
  std::optional<double> y_max;
};

struct BarGroup {
  std::string name;            // one colour
  std::vector<double> values;  // one per category
};

struct BarChart {
  std::string title, x_label, y_label;
  std::vector<std::string> categories;
  std::vector<BarGroup> groups;
  AxisUnit y_unit = AxisUnit::kPlain;
};

std::string line_chart_svg(const LineChart& chart);
std::string bar_chart_svg(const BarChart& chart);

// & < > " ' as entities; invalid UTF-8 and control bytes escaped (line breaks and tabs stay).
std::string escape_html(std::string_view text);

// At most `count` points: each is the mean of a run of neighbours.
Points thin_out(const Points& points, std::size_t count);

// Round values that cover [low, high]: steps of 1, 2 or 5 times a power of ten.
std::vector<double> nice_ticks(double low, double high, int about);
// For bytes: steps of a power of two.
std::vector<double> byte_ticks(double high, int about);

}  // namespace draftflow::cli
