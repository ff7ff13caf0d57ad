// SPDX-License-Identifier: Apache-2.0
#include "chaos/gather.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>

#include "draftflow/base/error.h"
#include "testing/unix_socket.h"

namespace draftflow::chaos {
namespace {

constexpr int kPatienceMs = 10'000;

void send_all(int fd, const void* bytes, std::size_t size) {
  for (const char* at = static_cast<const char*>(bytes); size > 0;) {
    const ssize_t sent = ::send(fd, at, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) throw PeerLost("a peer has gone while it was told something");
    at += sent;
    size -= static_cast<std::size_t>(sent);
  }
}

void receive_all(int fd, void* bytes, std::size_t size) {
  for (char* at = static_cast<char*>(bytes); size > 0;) {
    const ssize_t got = ::recv(fd, at, size, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw PeerLost("a peer has gone while it was listened to");
    at += got;
    size -= static_cast<std::size_t>(got);
  }
}

void send_text(int fd, const std::string& text) {
  const auto size = static_cast<std::uint32_t>(text.size());
  std::string message(reinterpret_cast<const char*>(&size), sizeof(size));
  message += text;
  send_all(fd, message.data(), message.size());
}

std::string receive_text(int fd) {
  std::uint32_t size = 0;
  receive_all(fd, &size, sizeof(size));
  std::string text(size, '\0');
  receive_all(fd, text.data(), size);
  return text;
}

UniqueFd connect_to(const std::filesystem::path& socket) {
  const sockaddr_un address = testing_support::unix_address(socket);
  for (int waited = 0; waited < kPatienceMs; waited += 5) {
    UniqueFd fd = testing_support::unix_socket();
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return fd;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  throw PeerLost("rank 0 does not come");
}

std::vector<UniqueFd> wait_for_all(const std::filesystem::path& socket, int width) {
  const sockaddr_un address = testing_support::unix_address(socket);
  const UniqueFd listener = testing_support::unix_socket();
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(listener.get(), width) != 0) {
    throw_errno(errno, "listening at " + socket.string());
  }
  std::vector<UniqueFd> peers(static_cast<std::size_t>(width));
  for (int come = 1; come < width; ++come) {
    pollfd polled{.fd = listener.get(), .events = POLLIN, .revents = 0};
    if (::poll(&polled, 1, kPatienceMs) <= 0) throw PeerLost(fmt::format("{} of {} ranks came", come, width));
    UniqueFd peer(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!peer) throw_errno(errno, "accept");
    const auto rank = static_cast<std::size_t>(std::stoi(receive_text(peer.get())));
    peers.at(rank) = std::move(peer);
  }
  return peers;
}

}  // namespace

Gather::Gather(const std::filesystem::path& socket, int rank, int width) : rank_(rank), width_(width) {
  if (rank == 0 && width > 1) peers_ = wait_for_all(socket, width);
  if (rank == 0) return;
  peers_.push_back(connect_to(socket));
  send_text(peers_[0].get(), std::to_string(rank));
}

std::vector<std::string> Gather::all(const std::string& mine) {
  std::vector<std::string> said(static_cast<std::size_t>(width_));
  said[static_cast<std::size_t>(rank_)] = mine;
  if (rank_ == 0) {
    for (std::size_t rank = 1; rank < said.size(); ++rank) said[rank] = receive_text(peers_[rank].get());
    for (std::size_t rank = 1; rank < said.size(); ++rank) {
      for (const std::string& text : said) send_text(peers_[rank].get(), text);
    }
  } else {
    send_text(peers_[0].get(), mine);
    for (std::string& text : said) text = receive_text(peers_[0].get());
  }
  return said;
}

}  // namespace draftflow::chaos
