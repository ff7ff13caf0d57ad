// SPDX-License-Identifier: Apache-2.0
#include "train/ranks.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include <array>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/interrupt.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

using Time = std::chrono::steady_clock::time_point;

constexpr std::string_view kFile = "file://", kTcp = "tcp://";
constexpr std::chrono::milliseconds kLook{20};  // how often a rank looks whether the others have come

struct Address {
  std::string host;
  std::uint16_t port = 0;
};

Address parse_address(const std::string& rendezvous) {
  const std::string rest = rendezvous.substr(kTcp.size());
  const std::size_t colon = rest.rfind(':');
  std::uint32_t port = 0;
  const char* const end = rest.data() + rest.size();
  const char* const digits = colon == std::string::npos ? end : rest.data() + colon + 1;
  const auto parsed = std::from_chars(digits, end, port);
  if (digits == end || parsed.ec != std::errc() || parsed.ptr != end || port < 1 || port > 65535 || colon == 0) {
    throw InvalidArgument(
        fmt::format("rendezvous is '{}': tcp://host:port is needed, with a port of 1 to 65535", printable(rendezvous)));
  }
  return {rest.substr(0, colon), static_cast<std::uint16_t>(port)};
}

std::string numeric(const sockaddr* address, socklen_t size) {
  std::array<char, NI_MAXHOST> text{};
  const int error = ::getnameinfo(address, size, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST);
  return error == 0 ? text.data() : "";
}

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address == "::1";
}

// Of this host, the address from which it reaches another one: nothing is sent.
std::string address_towards(const Address& other) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_DGRAM;
  const int error = ::getaddrinfo(other.host.c_str(), std::to_string(other.port).c_str(), &hints, &found);
  if (error != 0) throw Unavailable(fmt::format("host '{}' is not known: {}", printable(other.host), ::gai_strerror(error)));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> frees(found, ::freeaddrinfo);
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    const UniqueFd socket(::socket(at->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage mine{};
    socklen_t size = sizeof mine;
    auto* const address = reinterpret_cast<sockaddr*>(&mine);
    if (socket.get() < 0 || ::connect(socket.get(), at->ai_addr, at->ai_addrlen) != 0) continue;
    if (::getsockname(socket.get(), address, &size) == 0) return numeric(address, size);
  }
  throw Unavailable(fmt::format("host '{}' cannot be reached from here", printable(other.host)));
}

// The first of this host's that is not the loopback's; "" if there is none.
std::string outer_address() {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return "";
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> frees(all, ::freeifaddrs);
  for (const ifaddrs* at = all; at != nullptr; at = at->ifa_next) {
    if (at->ifa_addr == nullptr || at->ifa_addr->sa_family != AF_INET || (at->ifa_flags & IFF_UP) == 0) continue;
    if (const std::string text = numeric(at->ifa_addr, sizeof(sockaddr_in)); !is_loopback(text)) return text;
  }
  return "";
}

// Where the other ranks reach this one. gloo itself would take what the host's own name means, which often is the loopback.
std::shared_ptr<gloo::transport::Device> device_towards(const Address& first) {
  if (const char* const chosen = std::getenv("GLOO_SOCKET_IFNAME"); chosen != nullptr && *chosen != '\0') {
    return c10d::ProcessGroupGloo::createDeviceForInterface(chosen);
  }
  std::string address = address_towards(first);
  // Rank 0 may know its own name as 127.0.1.1, which the others do not.
  const bool meant = first.host == "localhost" || is_loopback(first.host);
  if (is_loopback(address) && !meant) {
    if (const std::string outer = outer_address(); !outer.empty()) address = outer;
  }
  return c10d::ProcessGroupGloo::createDeviceForHostname(address);
}

// A port in the range that clients get theirs from may be given to the very socket that asks for it.
bool is_its_own_peer(int socket) {
  sockaddr_storage mine{}, other{};
  socklen_t my_size = sizeof mine, other_size = sizeof other;
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&mine), &my_size) != 0) return false;
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&other), &other_size) != 0) return false;
  return my_size == other_size && std::memcmp(&mine, &other, my_size) == 0;
}

bool is_answered(const addrinfo& at, Time end) {
  const UniqueFd socket(::socket(at.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (socket.get() < 0) return false;
  if (::connect(socket.get(), at.ai_addr, at.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return false;
    pollfd wait{.fd = socket.get(), .events = POLLOUT, .revents = 0};
    while (::poll(&wait, 1, static_cast<int>(until_next_check(end).count())) <= 0) {
      check_interrupt();
      if (std::chrono::steady_clock::now() >= end) return false;
    }
    int error = 0;
    socklen_t size = sizeof error;
    if (::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) return false;
  }
  return !is_its_own_peer(socket.get());
}

// Until rank 0 listens: TCPStore would wait for it, too, but cannot be interrupted.
void await_listener(const Address& address, Time end) {
  const std::string port = std::to_string(address.port);
  for (;; sleep_interruptibly(5 * kLook)) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    const int error = ::getaddrinfo(address.host.c_str(), port.c_str(), &hints, &found);
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> frees(error == 0 ? found : nullptr, ::freeaddrinfo);
    for (const addrinfo* at = frees.get(); at != nullptr; at = at->ai_next) {
      if (is_answered(*at, end)) return;
    }
    if (std::chrono::steady_clock::now() < end) continue;
    throw Unavailable(error == 0 ? std::string("rank 0 does not listen there") : std::string(::gai_strerror(error)));
  }
}

// What libtorch throws is that the others were not found; an interrupt's exception stays what it is.
template <class Call>
auto looking(Call&& call) {
  try {
    return call();
  } catch (const std::exception& error) {
    check_interrupt();  // the signal that it comes with may have ended a system call
    throw Unavailable(printable(error.what(), 300));
  }
}

// In the store, for as long as this rank waits: it has come.
class Presence {
 public:
  Presence(c10d::Store& store, int rank) : store_(store), key_(key_of(rank)) {
    looking([&] { store_.set(key_, {1}); });
  }
  Presence(const Presence&) = delete;
  Presence& operator=(const Presence&) = delete;
  ~Presence() {
    try {
      if (!stays_) store_.deleteKey(key_);
    } catch (const std::exception&) {  // then the store is gone, and the others see that
    }
  }

  // Until all have come: gloo would wait for them, too, but cannot be interrupted.
  void await_all(int width, Time end) {
    for (int other = 0; other < width;) {
      if (looking([&] { return store_.check({key_of(other)}); })) {
        ++other;
        continue;
      }
      if (std::chrono::steady_clock::now() >= end) throw Unavailable(fmt::format("rank {} has not come", other));
      sleep_interruptibly(kLook);
    }
    stays_ = true;
  }

 private:
  static std::string key_of(int rank) { return fmt::format("draftflow/rank/{}", rank); }

  c10d::Store& store_;
  const std::string key_;
  bool stays_ = false;
};

c10::intrusive_ptr<c10d::Store> file_store(const std::filesystem::path& path, int width) {
  // FileStore would wait for it.
  if (!std::filesystem::is_directory(std::filesystem::absolute(path).parent_path())) {
    throw NotFound(fmt::format("rendezvous file://{}: its folder is not there; make it first", printable(path.string())));
  }
  return looking([&] { return c10::make_intrusive<c10d::FileStore>(path.string(), width); });
}

c10::intrusive_ptr<c10d::Store> tcp_store(const Address& address, const RanksOptions& options, Time end) {
  if (options.rank != 0) await_listener(address, end);
  c10d::TCPStoreOptions where;
  where.port = address.port;
  where.isServer = options.rank == 0;
  where.numWorkers = options.width;
  where.waitWorkers = false;
  where.timeout = std::chrono::milliseconds(options.timeout_ms);
  return looking([&] { return c10::make_intrusive<c10d::TCPStore>(address.host, where); });
}

}  // namespace

struct Ranks::Group {
  c10::intrusive_ptr<c10d::Store> store;
  std::unique_ptr<c10d::ProcessGroupGloo> gloo;
};

Ranks::Ranks() = default;

Ranks::Ranks(const RanksOptions& options) : rank_(options.rank), width_(options.width) {
  if (width_ < 1 || rank_ < 0 || rank_ >= width_) {
    throw InvalidArgument(fmt::format("rank {} of {} ranks: 0 to {} are allowed", rank_, width_, width_ - 1));
  }
  if (width_ == 1) return;
  // gloo writes to sockets whose other end may be gone: that must be an error, which names what was lost, and not SIGPIPE.
  ::signal(SIGPIPE, SIG_IGN);
  const bool file = options.rendezvous.starts_with(kFile), tcp = options.rendezvous.starts_with(kTcp);
  if (!file && !tcp) {
    throw InvalidArgument(fmt::format("rendezvous is '{}': {} ranks need a place to meet, file:///path or tcp://host:port",
                                      printable(options.rendezvous), width_));
  }
  try {
    meet(options);
  } catch (const Unavailable& error) {
    throw Unavailable(fmt::format("rank {} did not find the other {} ranks at {}: {}; see the log of the rank that is missing",
                                  rank_, width_ - 1, printable(options.rendezvous), error.what()));
  }
}

void Ranks::meet(const RanksOptions& options) {
  const std::chrono::milliseconds timeout(options.timeout_ms);
  const Time end = std::chrono::steady_clock::now() + timeout;
  group_ = std::make_unique<Group>();
  auto gloo = c10d::ProcessGroupGloo::Options::create(timeout);
  gloo->threads = 1;
  if (options.rendezvous.starts_with(kFile)) {
    group_->store = file_store(options.rendezvous.substr(kFile.size()), width_);
    gloo->devices.push_back(looking([] { return c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"); }));
  } else {
    const Address address = parse_address(options.rendezvous);
    group_->store = tcp_store(address, options, end);
    gloo->devices.push_back(looking([&] { return device_towards(address); }));
  }
  group_->store->setTimeout(timeout);
  Presence(*group_->store, rank_).await_all(width_, end);
  looking([&] { group_->gloo = std::make_unique<c10d::ProcessGroupGloo>(group_->store, rank_, width_, gloo); });
}

Ranks::~Ranks() = default;

namespace {

template <class Call>
void together(int rank, int width, Call&& call) {
  try {
    call();
  } catch (const std::exception& error) {
    throw Unavailable(
        fmt::format("rank {} of {} lost the others: {}; a rank has ended or hangs (see its log), and all must start "
                    "again",
                    rank, width, printable(error.what(), 300)));
  }
}

}  // namespace

void Ranks::sum(std::span<double> values) {
  if (!group_ || values.empty()) return;
  at::Tensor tensor = at::from_blob(values.data(), {static_cast<std::int64_t>(values.size())}, at::kDouble);
  std::vector<at::Tensor> tensors{tensor};
  together(rank_, width_, [&] { group_->gloo->allreduce(tensors)->wait(); });
}

void Ranks::sum_gradients(const NamedTensors& parameters) {
  if (!group_) return;
  const at::NoGradGuard no_grad;
  const bool precise = !parameters.empty() && parameters[0].second.scalar_type() == at::kDouble;
  const auto dtype = precise ? at::kDouble : at::kFloat;
  std::vector<at::Tensor> parts;
  for (const auto& [name, parameter] : parameters) {
    parts.push_back(parameter.grad().defined() ? parameter.grad().to(dtype).reshape({-1})
                                               : at::zeros({parameter.numel()}, at::TensorOptions(dtype)));
  }
  std::vector<at::Tensor> flat{at::cat(parts)};
  together(rank_, width_, [&] { group_->gloo->allreduce(flat)->wait(); });
  std::int64_t at_element = 0;
  for (const auto& [name, parameter] : parameters) {
    const at::Tensor part = flat[0].narrow(0, at_element, parameter.numel()).view(parameter.sizes());
    parameter.mutable_grad() = part.to(parameter.scalar_type()).clone();
    at_element += parameter.numel();
  }
}

void Ranks::barrier() {
  if (!group_) return;
  together(rank_, width_, [&] { group_->gloo->barrier()->wait(); });
}

}  // namespace draftflow
