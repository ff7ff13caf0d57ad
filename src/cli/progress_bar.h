// SPDX-License-Identifier: Apache-2.0
//
// Progress for people: bars redrawn in place with rate and time left when the stream is a terminal, a plain line every
// five seconds otherwise. The formatting is pure; a ProgressBoard belongs to one thread and writes nothing after finish().
//
//   ProgressBoard board(std::cerr, is_terminal);
//   board.show({{"train", 12, 100, "steps", 3.4, 26.0, "loss 2.31"}});
//   board.finish();
#pragma once

#include <cstdint>
#include <deque>
#include <iosfwd>
#include <string>
#include <utility>
#include <vector>

namespace draftflow::cli {

struct ProgressLine {
  std::string label;
  std::int64_t done = 0, total = 0;  // total 0: not known
  std::string unit;
  double rate = 0;           // units a second
  double seconds_left = -1;  // negative: not known
  std::string note;
};

// "train    [#####.....]  50/100  50 %  3.4 steps/s  15 s left  loss 2.31", cut to `width` columns.
std::string format_bar(const ProgressLine& line, int width, bool utf8);
std::string format_plain(const ProgressLine& line);

// Units a second over the last seconds, and what that means for the rest.
class RateMeter {
 public:
  explicit RateMeter(double window_seconds = 15) : window_seconds_(window_seconds) {}
  void add(double now, std::int64_t done);
  double rate() const;
  double seconds_left(std::int64_t total) const;  // negative: not known

 private:
  double window_seconds_;
  std::deque<std::pair<double, std::int64_t>> points_;
};

class ProgressBoard {
 public:
  ProgressBoard(std::ostream& err, bool terminal);
  ~ProgressBoard();
  ProgressBoard(const ProgressBoard&) = delete;
  ProgressBoard& operator=(const ProgressBoard&) = delete;

  void show(const std::vector<ProgressLine>& lines);  // as often as you like: it draws when it is time
  void say(const std::string& text);                  // a line of its own, above the bars
  void hide();                                        // takes the bars off the terminal, for a line on another stream
  void finish();                                      // draws the last state once more

 private:
  void draw();
  void erase();

  std::ostream& err_;
  bool terminal_, utf8_;
  std::vector<ProgressLine> lines_;
  int drawn_ = 0;  // lines now on the screen
  double last_draw_;
  bool dirty_ = false;
};

// A meter and a board for a command with one bar.
class SingleProgress {
 public:
  SingleProgress(std::ostream& err, bool terminal, std::string label, std::string unit);
  void show(std::int64_t done, std::int64_t total, const std::string& note);
  void hide() { board_.hide(); }
  void finish() { board_.finish(); }

 private:
  ProgressBoard board_;
  RateMeter meter_;
  std::string label_, unit_;
};

double steady_seconds();

}  // namespace draftflow::cli
