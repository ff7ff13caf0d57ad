// SPDX-License-Identifier: Apache-2.0
#include "cli/progress_bar.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <ostream>
#include <string_view>

#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr double kTerminalInterval = 0.1;
constexpr double kPlainInterval = 5.0;
constexpr int kBarCells = 24;

int terminal_width() {
  struct winsize size {};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 40) return size.ws_col;
  return 100;
}

bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    const std::string_view text(value);
    return text.find("UTF-8") != std::string_view::npos || text.find("utf8") != std::string_view::npos;
  }
  return false;
}

double share_of(const ProgressLine& line) {
  if (line.total <= 0) return 0;
  return std::clamp(static_cast<double>(line.done) / static_cast<double>(line.total), 0.0, 1.0);
}

std::string bar_of(double share, bool utf8) {
  const int full = static_cast<int>(share * kBarCells);
  std::string bar = "[";
  for (int i = 0; i < kBarCells; ++i) bar += i < full ? (utf8 ? "\xE2\x96\x88" : "#") : (utf8 ? "\xE2\x96\x91" : ".");
  return bar + "]";
}

std::string rate_text(double rate, const std::string& unit) {
  if (rate <= 0) return "";
  return rate < 10 ? fmt::format("{:.2f} {}/s", rate, unit) : fmt::format("{} {}/s", human_count(rate), unit);
}

std::string facts_of(const ProgressLine& line) {
  std::string text = line.total > 0 ? fmt::format("{}/{} {}  {:.0f} %", line.done, line.total, line.unit, 100 * share_of(line))
                                    : fmt::format("{} {}", line.done, line.unit);
  const std::string rate = rate_text(line.rate, line.unit);
  if (!rate.empty()) text += "  " + rate;
  if (line.seconds_left >= 0 && line.done < line.total) text += fmt::format("  {} left", human_seconds(line.seconds_left));
  if (!line.note.empty()) text += "  " + line.note;
  return text;
}

// Cuts to `width` columns, counting each UTF-8 character as one.
std::string cut_columns(const std::string& text, int width) {
  int columns = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool starts = (static_cast<unsigned char>(text[i]) & 0xC0) != 0x80;
    if (starts && ++columns > width) return text.substr(0, i);
  }
  return text;
}

}  // namespace

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string format_bar(const ProgressLine& line, int width, bool utf8) {
  return cut_columns(fmt::format("{:<9}{} {}", line.label, bar_of(share_of(line), utf8), facts_of(line)), width);
}

std::string format_plain(const ProgressLine& line) {
  return line.label + ": " + facts_of(line);
}

void RateMeter::add(double now, std::int64_t done) {
  if (!points_.empty() && done < points_.back().second) points_.clear();  // went back after a resume
  points_.emplace_back(now, done);
  while (points_.size() > 2 && points_.front().first < now - window_seconds_) points_.pop_front();
}

double RateMeter::rate() const {
  if (points_.size() < 2) return 0;
  const double seconds = points_.back().first - points_.front().first;
  return seconds <= 0 ? 0 : static_cast<double>(points_.back().second - points_.front().second) / seconds;
}

double RateMeter::seconds_left(std::int64_t total) const {
  const double now_rate = rate();
  if (points_.empty() || total <= 0 || now_rate <= 0) return -1;
  return static_cast<double>(std::max<std::int64_t>(0, total - points_.back().second)) / now_rate;
}

ProgressBoard::ProgressBoard(std::ostream& err, bool terminal)
    : err_(err), terminal_(terminal), utf8_(locale_is_utf8()), last_draw_(steady_seconds()) {}

ProgressBoard::~ProgressBoard() {
  finish();
}

void ProgressBoard::show(const std::vector<ProgressLine>& lines) {
  lines_ = lines;
  dirty_ = true;
  const double now = steady_seconds();
  if (now - last_draw_ < (terminal_ ? kTerminalInterval : kPlainInterval)) return;
  last_draw_ = now;
  draw();
}

void ProgressBoard::say(const std::string& text) {
  erase();
  err_ << text << "\n";
  if (terminal_ && !lines_.empty()) draw();
  err_.flush();
}

void ProgressBoard::hide() {
  dirty_ = dirty_ || drawn_ > 0;
  erase();
  err_.flush();
}

void ProgressBoard::finish() {
  if (dirty_) draw();
  dirty_ = false;
  drawn_ = 0;
  lines_.clear();
}

void ProgressBoard::draw() {
  erase();
  const int width = terminal_ ? terminal_width() : 0;
  for (const ProgressLine& line : lines_) err_ << (terminal_ ? format_bar(line, width, utf8_) : format_plain(line)) << "\n";
  drawn_ = terminal_ ? static_cast<int>(lines_.size()) : 0;
  dirty_ = false;
  err_.flush();
}

void ProgressBoard::erase() {
  for (; drawn_ > 0; --drawn_) err_ << "\x1b[1A\x1b[2K";
}

SingleProgress::SingleProgress(std::ostream& err, bool terminal, std::string label, std::string unit)
    : board_(err, terminal), label_(std::move(label)), unit_(std::move(unit)) {}

void SingleProgress::show(std::int64_t done, std::int64_t total, const std::string& note) {
  meter_.add(steady_seconds(), done);
  board_.show({{label_, done, total, unit_, meter_.rate(), meter_.seconds_left(total), note}});
}

}  // namespace draftflow::cli
