// SPDX-License-Identifier: Apache-2.0
#include "cli/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr double kWidth = 640, kHeight = 320;
constexpr double kLeft = 84, kRight = 16, kTop = 48, kBottom = 50;
constexpr std::size_t kMostPoints = 300;
constexpr int kColours = 8;

struct Scale {
  double low, high, from, to;
  double operator()(double value) const { return from + (value - low) / (high - low) * (to - from); }
};

std::string number_text(double value) {
  const double size = std::abs(value);
  if (size >= 1e6) return fmt::format("{:g} M", value / 1e6);
  if (size >= 1e4) return fmt::format("{:g} k", value / 1e3);
  return fmt::format("{:g}", std::abs(value) < 1e-12 ? 0.0 : value);
}

std::string tick_text(double value, AxisUnit unit) {
  if (unit == AxisUnit::kPercent) return fmt::format("{:g} %", std::round(value * 1e4) / 100);
  if (unit == AxisUnit::kBytes) {
    std::string text = human_bytes(static_cast<std::uint64_t>(std::max(0.0, value)));
    if (const std::size_t zero = text.find(".0 "); zero != std::string::npos) text.erase(zero, 2);
    return text;
  }
  return number_text(value);
}

Points finite_points(const Points& points) {
  Points kept;
  for (const auto& point : points) {
    if (std::isfinite(point.first) && std::isfinite(point.second)) kept.push_back(point);
  }
  return kept;
}

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
};

std::string open_svg(const std::string& title) {
  return fmt::format(
      "<figure><svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">\n"
      "<text class=\"title\" x=\"{}\" y=\"18\">{}</text>\n",
      kWidth, kHeight, escape_html(title), 12, escape_html(title));
}

std::string close_svg() {
  return "</svg></figure>\n";
}

std::string axis_labels(const std::string& x_label, const std::string& y_label) {
  const double middle = kTop + (kHeight - kTop - kBottom) / 2;
  return fmt::format(
      "<text class=\"label\" text-anchor=\"middle\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n"
      "<text class=\"label\" text-anchor=\"middle\" transform=\"translate(14 {:.1f}) rotate(-90)\">{}</text>\n",
      kLeft + (kWidth - kLeft - kRight) / 2, kHeight - 10, escape_html(x_label), middle, escape_html(y_label));
}

std::string y_axis(const std::vector<double>& ticks, const Scale& y, AxisUnit unit) {
  std::string svg;
  for (const double tick : ticks) {
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>"
        "<text class=\"tick\" text-anchor=\"end\" x=\"{3}\" y=\"{4:.1f}\">{5}</text>\n",
        kLeft, kWidth - kRight, y(tick), kLeft - 6, y(tick) + 4, tick_text(tick, unit));
  }
  return svg;
}

std::string x_axis(const std::vector<double>& ticks, const Scale& x) {
  std::string svg = fmt::format("<line class=\"axis\" x1=\"{0}\" x2=\"{1}\" y1=\"{2}\" y2=\"{2}\"/>\n", kLeft, kWidth - kRight,
                                kHeight - kBottom);
  for (const double tick : ticks) {
    if (tick < x.low || tick > x.high) continue;
    svg += fmt::format("<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1f}\" y=\"{}\">{}</text>\n", x(tick),
                       kHeight - kBottom + 16, number_text(tick));
  }
  return svg;
}

// Names above the plot, each with a swatch of its colour.
std::string legend(const std::vector<std::pair<std::string, std::string>>& names_and_classes) {
  std::string svg;
  double at = kLeft;
  for (const auto& [name, style] : names_and_classes) {
    svg += fmt::format(
        "<rect class=\"{}\" x=\"{:.1f}\" y=\"31\" width=\"14\" height=\"4\" rx=\"2\"/>"
        "<text class=\"legend\" x=\"{:.1f}\" y=\"37\">{}</text>\n",
        style, at, at + 18, escape_html(name));
    at += 30 + 6.4 * static_cast<double>(name.size());
  }
  return svg;
}

std::string polyline(const Series& series, int colour, const Scale& x, const Scale& y) {
  std::string path;
  const Points points = thin_out(finite_points(series.points), kMostPoints);
  for (const auto& [px, py] : points) {
    path += fmt::format("{:.1f},{:.1f} ", x(px), std::clamp(y(py), kTop - 4, kHeight - kBottom + 0.0));
  }
  if (points.size() == 1) {
    return fmt::format("<circle class=\"f{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\"/>\n", colour, x(points[0].first),
                       y(points[0].second));
  }
  return fmt::format("<polyline class=\"line s{}{}\" points=\"{}\"><title>{}</title></polyline>\n", colour,
                     series.strong ? " strong" : "", path, escape_html(series.name));
}

std::string mark_line(const Mark& mark, const Scale& y) {
  return fmt::format(
      "<line class=\"mark\" x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>"
      "<text class=\"tick\" text-anchor=\"end\" x=\"{3}\" y=\"{4:.1f}\">{5}</text>\n",
      kLeft, kWidth - kRight, y(mark.value), kWidth - kRight - 4, y(mark.value) - 4, escape_html(mark.name));
}

std::string no_data() {
  return fmt::format("<text class=\"label\" text-anchor=\"middle\" x=\"{}\" y=\"{}\">no data</text>\n", kWidth / 2,
                     kHeight / 2);
}

Range y_range(const LineChart& chart) {
  Range range;
  for (const Series& series : chart.series) {
    for (const auto& point : thin_out(finite_points(series.points), kMostPoints)) range.add(point.second);
  }
  for (const Mark& mark : chart.marks) range.add(mark.value);
  if (chart.y_from_zero && !range.empty()) range.add(0);
  if (chart.y_max) range.high = *chart.y_max;
  return range;
}

std::vector<double> y_ticks(const Range& range, AxisUnit unit) {
  return unit == AxisUnit::kBytes ? byte_ticks(range.high, 5) : nice_ticks(range.low, range.high, 5);
}

}  // namespace

std::string line_chart_svg(const LineChart& chart) {
  std::string svg = open_svg(chart.title) + axis_labels(chart.x_label, chart.y_label);
  Range across;
  for (const Series& series : chart.series) {
    for (const auto& point : finite_points(series.points)) across.add(point.first);
  }
  const Range along = y_range(chart);
  if (across.empty() || along.empty()) return svg + no_data() + close_svg();
  if (across.low == across.high) across.high = across.low + 1;
  const std::vector<double> ticks = y_ticks(along, chart.y_unit);
  const Scale x{across.low, across.high, kLeft, kWidth - kRight};
  const Scale y{ticks.front(), ticks.back(), kHeight - kBottom, kTop};
  svg += y_axis(ticks, y, chart.y_unit) + x_axis(nice_ticks(across.low, across.high, 8), x);
  std::vector<std::pair<std::string, std::string>> names;
  for (const Mark& mark : chart.marks) svg += mark_line(mark, y);
  // The first series is the one that matters: drawn last, on top.
  for (std::size_t i = chart.series.size(); i-- > 0;) svg += polyline(chart.series[i], static_cast<int>(i) % kColours, x, y);
  for (std::size_t i = 0; i < chart.series.size(); ++i) {
    names.emplace_back(chart.series[i].name, "f" + std::to_string(i % kColours));
  }
  return svg + legend(names) + close_svg();
}

std::string bar_chart_svg(const BarChart& chart) {
  std::string svg = open_svg(chart.title) + axis_labels(chart.x_label, chart.y_label);
  Range range;
  range.add(0);
  for (const BarGroup& group : chart.groups) {
    for (const double value : group.values) {
      if (std::isfinite(value)) range.add(value);
    }
  }
  if (chart.categories.empty() || chart.groups.empty()) return svg + no_data() + close_svg();
  const std::vector<double> ticks = y_ticks(range, chart.y_unit);
  const Scale y{ticks.front(), ticks.back(), kHeight - kBottom, kTop};
  svg += y_axis(ticks, y, chart.y_unit) + x_axis({}, {0, 1, 0, 1});
  const double slot = (kWidth - kLeft - kRight) / static_cast<double>(chart.categories.size());
  const double bar = std::min(56.0, slot * 0.8 / static_cast<double>(chart.groups.size()));
  for (std::size_t c = 0; c < chart.categories.size(); ++c) {
    const double middle = kLeft + slot * (static_cast<double>(c) + 0.5);
    svg += fmt::format("<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1f}\" y=\"{}\">{}</text>\n", middle,
                       kHeight - kBottom + 16, escape_html(chart.categories[c]));
    double left = middle - bar * static_cast<double>(chart.groups.size()) / 2;
    for (std::size_t g = 0; g < chart.groups.size(); ++g, left += bar) {
      const double value = c < chart.groups[g].values.size() ? chart.groups[g].values[c] : 0;
      if (!std::isfinite(value)) continue;
      svg += fmt::format(
          "<rect class=\"f{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"2\"/>"
          "<text class=\"value\" text-anchor=\"middle\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
          g % kColours, left + 1, y(value), bar - 2, kHeight - kBottom - y(value), left + bar / 2, y(value) - 4,
          chart.y_unit == AxisUnit::kPercent ? fmt::format("{:.0f}", 100 * value) : fmt::format("{:.2f}", value));
    }
  }
  std::vector<std::pair<std::string, std::string>> names;
  for (std::size_t g = 0; g < chart.groups.size(); ++g)
    names.emplace_back(chart.groups[g].name, "f" + std::to_string(g % kColours));
  return svg + legend(names) + close_svg();
}

std::string escape_html(std::string_view text) {
  std::string out;
  std::size_t begin = 0;
  const auto flush = [&](std::size_t end) {
    if (end > begin) out += printable(text.substr(begin, end - begin), (end - begin) * 4 + 4);
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char* entity = nullptr;
    switch (text[i]) {
      case '&': entity = "&amp;"; break;
      case '<': entity = "&lt;"; break;
      case '>': entity = "&gt;"; break;
      case '"': entity = "&quot;"; break;
      case '\'': entity = "&#39;"; break;
      case '\n': entity = "\n"; break;
      case '\t': entity = "\t"; break;
      default: continue;
    }
    flush(i);
    out += entity;
    begin = i + 1;
  }
  flush(text.size());
  return out;
}

Points thin_out(const Points& points, std::size_t count) {
  if (points.size() <= count || count == 0) return points;
  Points thin;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t begin = i * points.size() / count, end = (i + 1) * points.size() / count;
    double x = 0, y = 0;
    for (std::size_t j = begin; j < end; ++j) {
      x += points[j].first;
      y += points[j].second;
    }
    const auto size = static_cast<double>(end - begin);
    thin.emplace_back(x / size, y / size);
  }
  return thin;
}

std::vector<double> nice_ticks(double low, double high, int about) {
  if (!(high > low)) high = low + (low == 0 ? 1 : std::abs(low));
  const double raw = (high - low) / about;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= raw * 0.999) step = factor * power;
  }
  std::vector<double> ticks;
  const double first = std::floor(low / step + 1e-9);
  const int count = static_cast<int>(std::ceil(high / step - 1e-9) - first) + 1;
  for (int i = 0; i < count; ++i) ticks.push_back((first + i) * step);
  return ticks;
}

std::vector<double> byte_ticks(double high, int about) {
  double step = 1;
  while (step * about < high) step *= 2;
  std::vector<double> ticks{0};
  while (ticks.back() < high) ticks.push_back(ticks.back() + step);
  if (ticks.size() == 1) ticks.push_back(1);
  return ticks;
}

}  // namespace draftflow::cli
