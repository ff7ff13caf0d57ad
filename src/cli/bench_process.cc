// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <exception>

#include "cli/bench.h"
#include "draftflow/base/error.h"
#include "draftflow/base/random.h"

namespace draftflow::cli {
namespace {

constexpr std::uint32_t kMaxMessageBytes = 1 << 20;
constexpr char kDone = '=', kFailed = '!';

// False at the end of the pipe.
bool read_fully(int fd, void* data, std::size_t size) {
  auto* to = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t got = ::read(fd, to, size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    to += got;
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

// What the janitor is: deaf to the terminal, silent, and patient with processes that are just dying.
[[noreturn]] void clean_up_after(int parent, const std::vector<std::filesystem::path>& folders) {
  ::setpgid(0, 0);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) ::signal(signal, SIG_IGN);
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, fd);
  char byte = 0;
  read_fully(parent, &byte, 1);  // or its end
  bool left = true;
  for (int i = 0; left && i < 20; ++i) {
    if (i > 0) ::poll(nullptr, 0, 100);
    left = false;
    for (const auto& folder : folders) {
      std::error_code error, ignored;
      std::filesystem::remove_all(folder, error);
      left = left || std::filesystem::exists(folder, ignored);
    }
  }
  ::_exit(left ? 1 : 0);
}

[[noreturn]] void run_child(const std::function<std::string()>& body, int out, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);
  ::signal(SIGPIPE, SIG_IGN);
  std::string text;
  try {
    text = kDone + body();
  } catch (const std::exception& error) {
    text = kFailed + std::string(error.what());
  } catch (const BenchStopped&) {
    text = std::string(1, kFailed) + "interrupted";
  }
  const bool wrote = ::write(out, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  ::_exit(wrote ? 0 : 1);
}

}  // namespace

Workplace::Workplace(const std::vector<std::filesystem::path>& parents) {
  for (const auto& parent : parents) {
    std::error_code ignored;
    if (!std::filesystem::is_directory(parent, ignored)) {
      throw NotFound(
          fmt::format("{} is not a folder that is there: name another with --dir or --tmpfs, or choose --rows that "
                      "need none",
                      parent.string()));
    }
    folders_.push_back(std::filesystem::absolute(parent) / ("draftflow-bench-" + random_hex128().substr(0, 12)));
  }
  auto [from_parent, to_janitor] = make_pipe();
  janitor_ = ::fork();
  if (janitor_ < 0) throw_errno(errno, "starting the process that cleans up");
  if (janitor_ == 0) {
    to_janitor.reset();
    clean_up_after(from_parent.get(), folders_);
  }
  to_janitor_ = std::move(to_janitor);
  try {
    for (const auto& folder : folders_) make_folders(folder);
  } catch (...) {
    end_janitor();
    throw;
  }
}

Workplace::~Workplace() {
  end_janitor();
}

bool Workplace::end_janitor() {
  if (janitor_ < 0) return true;
  // A byte, not only the end: a helper that is still dying has a copy of our end.
  (void)!::write(to_janitor_.get(), "x", 1);
  to_janitor_.reset();
  int status = 0;
  pid_t got = 0;
  do {
    got = ::waitpid(janitor_, &status, 0);
  } while (got < 0 && errno == EINTR);
  janitor_ = -1;
  return got > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void Workplace::remove() {
  if (end_janitor()) return;
  std::vector<std::string> names;
  for (const auto& folder : folders_) names.push_back(folder.string());
  throw Unavailable(fmt::format("{} could not be removed altogether: remove by hand", fmt::join(names, ", ")));
}

ForkedChild::ForkedChild(const std::function<std::string()>& body) {
  auto [from_child, to_parent] = make_pipe();
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ < 0) throw_errno(errno, "starting a helper process");
  if (pid_ == 0) {
    from_child.reset();
    run_child(body, to_parent.get(), parent);
  }
  from_child_ = std::move(from_child);
}

ForkedChild::~ForkedChild() {
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

std::string ForkedChild::result() {
  std::string text;
  for (char buffer[4096];;) {
    check_bench_stop();
    pollfd ready{from_child_.get(), POLLIN, 0};
    if (::poll(&ready, 1, 100) <= 0) continue;
    const ssize_t got = ::read(from_child_.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(buffer, static_cast<std::size_t>(got));
  }
  check_bench_stop();
  if (!text.empty() && text.front() == kDone) return text.substr(1);
  throw Unavailable("a helper process failed: " + (text.empty() ? "it died without a word" : text.substr(1)));
}

std::pair<UniqueFd, UniqueFd> make_pipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) throw_errno(errno, "making a pipe");
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

void send_message(int fd, const std::string& text) {
  const auto size = static_cast<std::uint32_t>(text.size());
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof size);
  bytes += text;
  write_all(fd, std::as_bytes(std::span(bytes)), "a pipe");
}

bool receive_message(int fd, std::string& text) {
  std::uint32_t size = 0;
  if (!read_fully(fd, &size, sizeof size)) return false;
  if (size > kMaxMessageBytes) throw Corrupt(fmt::format("a message of {} bytes: at most {} are sent", size, kMaxMessageBytes));
  text.resize(size);
  return read_fully(fd, text.data(), size);
}

}  // namespace draftflow::cli
