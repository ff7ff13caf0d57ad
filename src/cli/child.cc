// SPDX-License-Identifier: Apache-2.0
#include "cli/child.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

#include "cli/app.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"

namespace draftflow::cli {
namespace {

constexpr int kCannotExecute = 127;

// Everything the child needs between fork and exec, where only async-signal-safe calls are allowed.
struct Launch {
  const char* executable;
  char* const* argv;
  int in, out, err, inherited;
  pid_t parent;
};

[[noreturn]] void become_child(const Launch& launch) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != launch.parent) ::_exit(kCannotExecute);  // the parent died before prctl: no signal will come
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  ::sigaction(SIGINT, &standard, nullptr);
  ::sigaction(SIGTERM, &standard, nullptr);
  ::dup2(launch.in, STDIN_FILENO);
  ::dup2(launch.out, STDOUT_FILENO);
  ::dup2(launch.err, STDERR_FILENO);
  if (launch.inherited >= 0) ::fcntl(launch.inherited, F_SETFD, 0);
  ::execv(launch.executable, launch.argv);
  const char* reason = ::strerrordesc_np(errno);
  (void)!::write(STDERR_FILENO, launch.executable, std::strlen(launch.executable));
  (void)!::write(STDERR_FILENO, ": ", 2);
  (void)!::write(STDERR_FILENO, reason, std::strlen(reason));
  (void)!::write(STDERR_FILENO, "\n", 1);
  ::_exit(kCannotExecute);
}

void pause_a_little() {
  ::poll(nullptr, 0, 20);
}

}  // namespace

Children::Children(std::filesystem::path executable, int inherited_fd)
    : executable_(std::move(executable)), inherited_fd_(inherited_fd) {}

Children::~Children() {
  signal_all(SIGKILL);
  for (const Running& child : running_) ::waitpid(child.pid, nullptr, 0);
}

pid_t Children::start(const ChildSpec& spec) {
  make_folders(spec.log.parent_path());
  const UniqueFd in = open_file("/dev/null", O_RDONLY);
  const UniqueFd log = open_file(spec.log, O_WRONLY | O_CREAT | O_APPEND);
  const UniqueFd out = spec.output.empty() ? UniqueFd() : open_file(spec.output, O_WRONLY | O_CREAT | O_TRUNC);
  std::vector<std::string> words{"draftflow"};
  words.insert(words.end(), spec.arguments.begin(), spec.arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const Launch launch{executable_.c_str(), argv.data(),   in.get(),  out ? out.get() : log.get(),
                      log.get(),           inherited_fd_, ::getpid()};
  const pid_t pid = ::fork();
  if (pid < 0) throw_errno(errno, "starting the process '" + spec.name + "'");
  if (pid == 0) become_child(launch);
  ::setpgid(pid, pid);
  running_.push_back({spec, pid});
  return pid;
}

std::optional<ChildExit> Children::reap(const std::string& unit) {
  for (auto child = running_.begin(); child != running_.end(); ++child) {
    if (!unit.empty() && child->spec.unit != unit) continue;
    int status = 0;
    const pid_t got = ::waitpid(child->pid, &status, WNOHANG);
    if (got == 0 || (got < 0 && errno == EINTR)) continue;
    ChildExit exit{child->spec, child->pid, 0, 0};
    if (got < 0) {
      exit.code = 1;
    } else if (WIFSIGNALED(status)) {
      exit.signal = WTERMSIG(status);
    } else {
      exit.code = WEXITSTATUS(status);
    }
    running_.erase(child);
    return exit;
  }
  return std::nullopt;
}

void Children::stop(double grace_seconds) {
  signal_all(SIGTERM);
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(grace_seconds);
  bool killed = false;
  while (!running_.empty()) {
    if (reap()) continue;
    if (!killed && std::chrono::steady_clock::now() >= until) {
      signal_all(SIGKILL);
      killed = true;
    }
    pause_a_little();
  }
}

std::vector<ChildExit> Children::stop_unit(const std::string& unit, double grace_seconds) {
  std::vector<ChildExit> exits;
  signal_all(SIGTERM, unit);
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(grace_seconds);
  const auto is_running = [&] {
    return std::any_of(running_.begin(), running_.end(), [&](const Running& child) { return child.spec.unit == unit; });
  };
  while (is_running()) {
    if (auto exit = reap(unit)) {
      exits.push_back(std::move(*exit));
      continue;
    }
    if (std::chrono::steady_clock::now() >= until) signal_all(SIGKILL, unit);
    pause_a_little();
  }
  return exits;
}

void Children::signal_all(int signal, const std::string& unit) {
  for (const Running& child : running_) {
    if (unit.empty() || child.spec.unit == unit) ::kill(child.pid, signal);
  }
}

std::string tail_of(const std::filesystem::path& log, int lines) {
  constexpr std::uint64_t kTailBytes = 16 << 10;
  std::error_code ignored;
  if (!std::filesystem::exists(log, ignored)) return "";
  const UniqueFd fd = open_file(log, O_RDONLY);
  const std::uint64_t size = file_size(fd.get(), log);
  std::string text(std::min(size, kTailBytes), '\0');
  read_exact(fd.get(), std::as_writable_bytes(std::span(text)), size - text.size(), log);
  std::size_t begin = text.size();
  for (int line = 0; line <= lines && begin != std::string::npos && begin > 0; ++line) begin = text.rfind('\n', begin - 1);
  return printable_lines(begin == std::string::npos || begin == 0 ? text : text.substr(begin + 1));
}

}  // namespace draftflow::cli
