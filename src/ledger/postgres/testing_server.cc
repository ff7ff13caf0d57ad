// SPDX-License-Identifier: Apache-2.0
#include "ledger/postgres/testing_server.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "draftflow/base/error.h"
#include "testing/unix_socket.h"

namespace draftflow::testing_support {
namespace {

constexpr const char* kSocket = ".s.PGSQL.5432";

// Short: a socket's path may have 107 bytes.
std::filesystem::path make_folder(std::string pattern) {
  if (::mkdtemp(pattern.data()) == nullptr) throw_errno(errno, "making " + pattern);
  return pattern;
}

bool send_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

}  // namespace

TestingServer& TestingServer::shared() {
  static TestingServer server;
  return server;
}

std::string TestingServer::fresh_schema() {
  const std::string schema = fmt::format("ledger_{}", ++schemas_);
  ask("CREATE SCHEMA " + schema);
  return url("&options=-csearch_path%3D" + schema);
}

// --- CommitLoser

CommitLoser::CommitLoser(const TestingServer& server)
    : server_folder_(server.folder()),
      folder_(make_folder("/tmp/dfpx.XXXXXX")),
      listener_(unix_socket()),
      stop_(::eventfd(0, EFD_CLOEXEC)) {
  const sockaddr_un address = unix_address(folder_ / kSocket);
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(listener_.get(), 8) != 0) {
    throw_errno(errno, "listening in " + folder_.string());
  }
  thread_ = std::thread([this] { work(); });
}

CommitLoser::~CommitLoser() {
  ::eventfd_write(stop_.get(), 1);
  thread_.join();
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

std::string CommitLoser::through(const std::string& url) const {
  std::string changed = url;
  return changed.replace(changed.find(server_folder_.string()), server_folder_.string().size(), folder_.string());
}

void CommitLoser::work() {
  for (;;) {
    std::vector<pollfd> polled = {{.fd = stop_.get(), .events = POLLIN, .revents = 0},
                                  {.fd = listener_.get(), .events = POLLIN, .revents = 0}};
    for (const Pair& pair : pairs_) {
      polled.push_back({.fd = pair.client.get(), .events = POLLIN, .revents = 0});
      polled.push_back({.fd = pair.server.get(), .events = POLLIN, .revents = 0});
    }
    ::poll(polled.data(), polled.size(), -1);
    if (polled[0].revents != 0) return;
    for (std::size_t i = pairs_.size(); i-- > 0;) {
      const bool goes_on = (polled[2 + 2 * i].revents == 0 || pass_on(pairs_[i], true)) &&
                           (polled[3 + 2 * i].revents == 0 || pass_on(pairs_[i], false));
      if (!goes_on) pairs_.erase(pairs_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    if (polled[1].revents == 0) continue;
    Pair pair{.client = UniqueFd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)), .server = unix_socket()};
    const sockaddr_un address = unix_address(server_folder_ / kSocket);
    const int connected = ::connect(pair.server.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
    if (connected == 0) pairs_.push_back(std::move(pair));
  }
}

bool CommitLoser::pass_on(Pair& pair, bool from_client) {
  const int from = from_client ? pair.client.get() : pair.server.get();
  const int to = from_client ? pair.server.get() : pair.client.get();
  std::array<char, 65536> bytes{};
  const ssize_t got = ::recv(from, bytes.data(), bytes.size(), 0);
  if (got <= 0) return false;
  const std::string_view data(bytes.data(), static_cast<std::size_t>(got));
  using namespace std::string_view_literals;
  const bool is_commit = from_client && data.find("COMMIT\0"sv) != std::string_view::npos;
  const Loses loses = is_commit ? loses_.exchange(Loses::kNothing) : Loses::kNothing;
  if (loses == Loses::kNothing) return send_all(to, data);
  ++lost_;
  if (loses == Loses::kReply && send_all(to, data)) ::recv(to, bytes.data(), bytes.size(), 0);
  return false;
}

}  // namespace draftflow::testing_support
