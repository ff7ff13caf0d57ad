// SPDX-License-Identifier: Apache-2.0
//
// Child: one process of a chaos run, this program started anew in a role. It is killed with its object, and by the kernel when
// the thread that started it ends. Used by one thread.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "chaos/stage.h"

namespace draftflow::chaos {

class Child {
 public:
  // `arguments`: "--role=producer" and more. The plan's folder and the ordinal are added.
  Child(const Plan& plan, std::string name, std::uint64_t ordinal, const std::vector<std::string>& arguments);
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child();

  const std::string& name() const { return name_; }
  bool running();      // or stopped
  bool stopped();      // by a signal
  int status() const;  // as waitpid gives it, when it is not running any more
  void signal(int number);
  void kill_and_wait();

  // What is wrong with how it ended; nothing for the exit codes of roles.h and for our own SIGKILL.
  std::optional<std::string> wrong_end() const;

 private:
  void look();

  const std::string name_;
  const std::filesystem::path log_;
  pid_t pid_ = -1;
  bool stopped_ = false;
  std::optional<int> status_;
};

}  // namespace draftflow::chaos
