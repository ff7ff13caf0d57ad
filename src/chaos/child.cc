// SPDX-License-Identifier: Apache-2.0
#include "chaos/child.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "chaos/roles.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"

namespace draftflow::chaos {
namespace {

std::string tail_of(const std::filesystem::path& file) {
  constexpr std::size_t kShown = 1500;
  const std::string all = read_text_file(file);
  return all.size() > kShown ? all.substr(all.size() - kShown) : all;
}

}  // namespace

Child::Child(const Plan& plan, std::string name, std::uint64_t ordinal, const std::vector<std::string>& arguments)
    : name_(std::move(name)), log_(plan.folder / "logs" / name_) {
  const UniqueFd log = open_file(log_, O_WRONLY | O_CREAT | O_APPEND, 0600);
  std::vector<std::string> all = {"/proc/self/exe", fmt::format("--folder={}", plan.folder.string()),
                                  fmt::format("--ordinal={}", ordinal)};
  all.insert(all.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& argument : all) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ < 0) throw_errno(errno, "fork");
  if (pid_ > 0) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(kBroken);
  ::dup2(log.get(), STDOUT_FILENO);
  ::dup2(log.get(), STDERR_FILENO);
  ::alarm(plan.lifetime_s);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

Child::~Child() {
  kill_and_wait();
}

void Child::look() {
  int status = 0;
  while (!status_ && ::waitpid(pid_, &status, WNOHANG | WUNTRACED | WCONTINUED) == pid_) {
    stopped_ = WIFSTOPPED(status);
    if (WIFEXITED(status) || WIFSIGNALED(status)) status_ = status;
  }
}

bool Child::running() {
  look();
  return !status_;
}

bool Child::stopped() {
  look();
  return !status_ && stopped_;
}

int Child::status() const {
  return status_.value_or(0);
}

void Child::signal(int number) {
  if (running()) ::kill(pid_, number);
}

void Child::kill_and_wait() {
  if (!running()) return;
  ::kill(pid_, SIGKILL);
  int status = 0;
  if (::waitpid(pid_, &status, 0) == pid_) status_ = status;
}

std::optional<std::string> Child::wrong_end() const {
  const int end = status();
  if (WIFSIGNALED(end) && WTERMSIG(end) == SIGKILL) return std::nullopt;
  std::string how;
  if (WIFSIGNALED(end)) how = fmt::format("died of signal {} ({})", WTERMSIG(end), ::strsignal(WTERMSIG(end)));
  if (WIFEXITED(end)) {
    const int code = WEXITSTATUS(end);
    if (code == kFinished || (code >= kPeerLost && code <= kRefusedOffLine)) return std::nullopt;
    how = fmt::format("ended with code {}", code);
  }
  return fmt::format("{} {}: {}", name_, how, tail_of(log_));
}

}  // namespace draftflow::chaos
