// SPDX-License-Identifier: Apache-2.0
//
// Children: separate processes that end with their supervisor. Each runs in a process group of its own (a terminal's Ctrl-C
// reaches the supervisor only), gets SIGTERM when the supervisor dies however it dies, and writes to a log. A Children
// object belongs to one thread; its destructor kills and reaps what is left.
//
//   Children children("/proc/self/exe", lock_fd);
//   children.start({"train", {"train", "--out=x"}, "logs/train.log", {}});
//   while (!children.empty()) if (auto exit = children.reap()) ...
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace draftflow::cli {

struct ChildSpec {
  std::string name;
  std::vector<std::string> arguments;  // after the program's name
  std::filesystem::path log;           // standard output and error are appended here ...
  std::filesystem::path output;        // ... but standard output goes here, from the start, if this is not empty
  std::string unit;                    // what lives and dies together, such as the ranks of one launch; empty: it alone
};

struct ChildExit {
  ChildSpec spec;
  pid_t pid = 0;
  int code = 0;    // exit code
  int signal = 0;  // or the signal that ended it
};

class Children {
 public:
  // `inherited_fd` (or -1) stays open in every child.
  Children(std::filesystem::path executable, int inherited_fd);
  ~Children();
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;

  pid_t start(const ChildSpec& spec);
  bool empty() const { return running_.empty(); }
  std::optional<ChildExit> reap(const std::string& unit = "");  // one that has ended, of any or this unit, without waiting
  void stop(double grace_seconds);                              // SIGTERM, then SIGKILL after the grace; reaps all
  // `unit` is not empty.
  std::vector<ChildExit> stop_unit(const std::string& unit, double grace_seconds);  // the same for the rest of a unit

 private:
  struct Running {
    ChildSpec spec;
    pid_t pid;
  };
  void signal_all(int signal, const std::string& unit = "");

  std::filesystem::path executable_;
  int inherited_fd_;
  std::vector<Running> running_;
};

// The last lines of a log, printable.
std::string tail_of(const std::filesystem::path& log, int lines);

}  // namespace draftflow::cli
