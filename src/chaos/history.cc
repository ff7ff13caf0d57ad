// SPDX-License-Identifier: Apache-2.0
#include "chaos/history.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "chaos/stage.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"

namespace draftflow::chaos {
namespace {

constexpr std::size_t kKeptAside = 12;
constexpr const char* kEnding = ".history";

}  // namespace

void log_taken(const std::filesystem::path& file, const Taken& taken) {
  append_line(file, fmt::format("{} {} {}", taken.what, taken.id, taken.token));
}

std::vector<Taken> load_taken(const std::filesystem::path& file) {
  std::vector<Taken> all;
  for (const std::string& line : read_lines(file)) {
    std::istringstream words(line);
    Taken one;
    words >> one.what >> one.id >> one.token;
    if (!words) throw Corrupt(fmt::format("{} has the line '{}': it is torn", file.string(), line));
    all.push_back(std::move(one));
  }
  return all;
}

std::filesystem::path save_history(const std::filesystem::path& folder, const History& history) {
  std::string text = fmt::format("{} {} {} {} {}\n", history.mark.ledger_id, history.mark.group.str(), history.mark.timeline,
                                 history.mark.step, history.windows.size());
  for (const TrainedWindow& window : history.windows) {
    text += fmt::format("{} {}", window.number, window.step);
    for (std::size_t i = 0; i < window.ids.size(); ++i)
      text += fmt::format(" {}{}", window.ids[i], window.failed[i] ? "!" : "");
    text += "\n";
  }
  const auto file = folder / fmt::format("{:06}-{:08}{}", history.mark.timeline, history.mark.step, kEnding);
  replace_file(file, text + "end\n");
  return file;
}

History load_history(const std::filesystem::path& file) {
  std::istringstream lines(read_text_file(file));
  std::string line, group;
  std::size_t windows = 0;
  History history;
  std::getline(lines, line);
  std::istringstream head(line);
  head >> history.mark.ledger_id >> group >> history.mark.timeline >> history.mark.step >> windows;
  if (!head) throw Corrupt(file.string() + " has no head: it is torn");
  history.mark.group = GroupId(group);
  while (std::getline(lines, line) && line != "end") {
    std::istringstream words(line);
    TrainedWindow window;
    words >> window.number >> window.step;
    for (std::string id; words >> id;) {
      const bool failed = id.ends_with('!');
      if (failed) id.pop_back();
      window.ids.push_back(id);
      window.failed.push_back(failed);
    }
    history.windows.push_back(std::move(window));
  }
  if (line != "end" || history.windows.size() != windows) {
    throw Corrupt(fmt::format("{} holds {} windows of {}: it is torn", file.string(), history.windows.size(), windows));
  }
  return history;
}

std::vector<CheckpointFile> list_checkpoints(const std::filesystem::path& folder) {
  std::vector<CheckpointFile> found;
  std::error_code absent;
  for (const auto& entry : std::filesystem::directory_iterator(folder, absent)) {
    const std::string name = entry.path().filename().string();
    CheckpointFile file{.path = entry.path()};
    const bool ours = name.ends_with(kEnding) && name.find('-') == 6 && !name.starts_with('.');
    if (!ours) continue;
    std::from_chars(name.data(), name.data() + 6, file.timeline);
    std::from_chars(name.data() + 7, name.data() + name.size(), file.step);
    found.push_back(std::move(file));
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::filesystem::path aside(const std::filesystem::path& folder) {
  return folder / "aside";
}

void prune_checkpoints(const std::filesystem::path& folder, std::int64_t timeline, const std::vector<CheckpointFile>& kept) {
  make_folders(aside(folder));
  std::error_code ignored;  // another trainer of the group may prune at the same time
  for (const CheckpointFile& file : list_checkpoints(folder)) {
    const bool keep = file.timeline > timeline || std::find(kept.begin(), kept.end(), file) != kept.end();
    if (!keep) std::filesystem::rename(file.path, aside(folder) / file.path.filename(), ignored);
  }
  const auto old = list_checkpoints(aside(folder));
  for (std::size_t i = 0; i + kKeptAside < old.size(); ++i) std::filesystem::remove(old[i].path, ignored);
}

}  // namespace draftflow::chaos
