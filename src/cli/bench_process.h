// SPDX-License-Identifier: Apache-2.0
//
// What a benchmark leaves behind: nothing. A Workplace is folders that go however the process ends, since a janitor, forked
// before they are made, waits for its end; a ForkedChild is a helper that ends with its owner. Both fork, so the process
// must have one thread; one owner each, not thread-safe.
//
//   Workplace place({"/tmp", "/dev/shm"});
//   ForkedChild child([] { return std::string("done"); });
//   std::string text = child.result();
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "draftflow/base/file.h"

namespace draftflow::cli {

class Workplace {
 public:
  // A fresh folder in each of `parents`, which must be there (NotFound).
  explicit Workplace(const std::vector<std::filesystem::path>& parents);
  ~Workplace();
  Workplace(const Workplace&) = delete;
  Workplace& operator=(const Workplace&) = delete;

  const std::filesystem::path& folder(std::size_t i) const { return folders_.at(i); }
  void remove();  // waits until all is gone; Unavailable, naming the folders, if something stays

 private:
  bool end_janitor();

  std::vector<std::filesystem::path> folders_;
  UniqueFd to_janitor_;
  pid_t janitor_ = -1;
};

class ForkedChild {
 public:
  // `body` runs in the child; what it returns or throws is the result. The child dies with its parent.
  explicit ForkedChild(const std::function<std::string()>& body);
  ~ForkedChild();  // kills it
  ForkedChild(const ForkedChild&) = delete;
  ForkedChild& operator=(const ForkedChild&) = delete;

  // Waits; once. Unavailable with the child's error; BenchStopped if the stop flag is set meanwhile.
  std::string result();

 private:
  UniqueFd from_child_;
  pid_t pid_ = -1;
};

// pipe2(2): the end to read, the end to write.
std::pair<UniqueFd, UniqueFd> make_pipe();

// One message, length first. receive: false at the end of the pipe.
void send_message(int fd, const std::string& text);
bool receive_message(int fd, std::string& text);

}  // namespace draftflow::cli
