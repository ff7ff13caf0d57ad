// SPDX-License-Identifier: Apache-2.0
//
// Several hosts: network namespaces joined by a veth pair, the server behind one end, clients behind the other, and a link that
// is cut without a word (packets vanish) and healed. Needs root.
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <thread>

#include "draftflow/base/file.h"
#include "ledger/ledger_story.h"
#include "ledger/sql/recount.h"

namespace draftflow::postgres {
namespace {

using testing_support::expect_error;
using testing_support::make_ref;
using testing_support::make_task;
using testing_support::TestingServer;

int shell(const std::string& command) {
  const int status = std::system((command + " 2>/dev/null").c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Passes bytes from a TCP port to the server's socket, which is a file and so in every namespace.
[[noreturn]] void forward(const std::string& address, const std::filesystem::path& socket) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in here{};
  here.sin_family = AF_INET;
  here.sin_port = htons(5432);
  ::inet_pton(AF_INET, address.c_str(), &here.sin_addr);
  if (::bind(listener, reinterpret_cast<sockaddr*>(&here), sizeof here) != 0 || ::listen(listener, 64) != 0) ::_exit(2);
  for (;;) {
    const int client = ::accept(listener, nullptr, nullptr);
    if (client < 0) continue;
    sockaddr_un there{};
    there.sun_family = AF_UNIX;
    std::copy_n(socket.c_str(), std::min(socket.string().size(), sizeof there.sun_path - 1), there.sun_path);
    const int server = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (::connect(server, reinterpret_cast<sockaddr*>(&there), sizeof there) != 0) {
      ::close(client);
      ::close(server);
      continue;
    }
    for (const auto& [from, to] : {std::pair{client, server}, std::pair{server, client}}) {
      std::thread([from = from, to = to] {
        char bytes[1 << 14];
        for (ssize_t got = 0; (got = ::read(from, bytes, sizeof bytes)) > 0;) {
          for (ssize_t sent = 0; sent < got;) {
            const ssize_t more = ::write(to, bytes + sent, static_cast<std::size_t>(got - sent));
            if (more <= 0) break;
            sent += more;
          }
        }
        ::shutdown(to, SHUT_RDWR);
        ::shutdown(from, SHUT_RDWR);
      }).detach();
    }
  }
}

// A server's host and a client's, and the link between them.
class Hosts {
 public:
  explicit Hosts(const TestingServer& server) {
    const std::string tag = random_hex128().substr(0, 6);
    server_host_ = "dfs" + tag;
    client_host_ = "dfc" + tag;
    made_ = shell("ip netns add " + server_host_) == 0 && shell("ip netns add " + client_host_) == 0 &&
            shell(fmt::format("ip link add {0} netns {0} type veth peer name {1} netns {1}", server_host_, client_host_)) == 0;
    if (!made_) return;
    for (const auto& [host, address] : {std::pair{server_host_, "10.231.7.1/24"}, std::pair{client_host_, "10.231.7.2/24"}}) {
      shell(fmt::format("ip -n {0} addr add {1} dev {0} && ip -n {0} link set {0} up && ip -n {0} link set lo up", host,
                        address));
    }
    const std::filesystem::path socket = server.folder() / ".s.PGSQL.5432";
    forwarder_ = on(server_host_, [&] { forward("10.231.7.1", socket); });
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }
  ~Hosts() {
    if (forwarder_ > 0) {
      ::kill(forwarder_, SIGKILL);
      ::waitpid(forwarder_, nullptr, 0);
    }
    shell("ip netns del " + server_host_);
    shell("ip netns del " + client_host_);
  }
  bool made() const { return made_; }

  // A process on the client's host; its exit code is 0 if `work` returned.
  pid_t start(const std::function<void()>& work) { return on(client_host_, work); }

  static int wait_for(pid_t pid) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  // What the server's host sends to the client vanishes.
  void cut() { ASSERT_EQ(shell("ip -n " + server_host_ + " route add blackhole 10.231.7.2/32"), 0); }
  void heal() { ASSERT_EQ(shell("ip -n " + server_host_ + " route del blackhole 10.231.7.2/32"), 0); }

  // The ledger behind `url` (of the server's socket), from the client's host.
  static std::string from_afar(const std::string& url) {
    const std::string options = url.substr(url.find("options="));
    return "postgresql://postgres@10.231.7.1:5432/postgres?" + options.substr(0, options.find('&'));
  }

 private:
  static pid_t on(const std::string& host, const std::function<void()>& work) {
    const pid_t child = ::fork();
    if (child != 0) return child;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::alarm(150);
    const int name = ::open(("/var/run/netns/" + host).c_str(), O_RDONLY | O_CLOEXEC);
    if (name < 0 || ::setns(name, CLONE_NEWNET) != 0) ::_exit(3);
    try {
      work();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "on %s: %s\n", host.c_str(), error.what());
      ::_exit(1);
    }
    ::_exit(::testing::Test::HasFailure() ? 4 : 0);
  }

  std::string server_host_, client_host_;
  bool made_ = false;
  pid_t forwarder_ = -1;
};

#define DRAFTFLOW_REQUIRE_HOSTS(hosts, server)                          \
  if (::geteuid() != 0) GTEST_SKIP() << "network namespaces need root"; \
  Hosts hosts(server);                                                  \
  if (!(hosts).made()) GTEST_SKIP() << "network namespaces cannot be made here (package iproute2)"

void wait_until(const std::function<bool()>& true_at_last) {
  for (int i = 0; i < 1000 && !true_at_last(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(20));
}

TEST(PostgresHosts, ALinkThatIsCutAndHealedLosesNothing) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  DRAFTFLOW_REQUIRE_HOSTS(hosts, server);
  constexpr int kSamples = 400;
  const std::string url = server.fresh_schema();
  const auto here = open_postgres_ledger(url);
  std::vector<PromptTask> tasks;
  for (int i = 0; i < kSamples; ++i) tasks.push_back(make_task(fmt::format("p{:04}", i)));
  here->ingest_prompts(tasks, {});
  here->close_prompts();
  const pid_t producer = hosts.start([&] {
    const auto ledger = open_postgres_ledger(Hosts::from_afar(url));
    for (;;) {
      const PromptAnswer answer = ledger->lease_prompts(HolderId("afar"), 2, 60'000);
      if (answer.finished) return;
      for (const PromptLease& lease : answer.leases) ledger->commit_sample(make_ref(lease.task.task_id.str()), lease);
    }
  });
  wait_until([&] { return here->status().committed >= 40; });
  hosts.cut();
  std::this_thread::sleep_for(std::chrono::seconds(2));
  const std::int64_t during = here->status().committed;
  std::this_thread::sleep_for(std::chrono::seconds(1));
  EXPECT_LE(here->status().committed, during + 2) << "the link was not cut";
  EXPECT_LT(during, kSamples);
  hosts.heal();
  EXPECT_EQ(Hosts::wait_for(producer), 0);
  // A lease whose answer was lost stays with its holder until it ends.
  EXPECT_GE(here->status().committed, kSamples - 2);
  testing_support::expect_books_balance(
      *testing_support::as_sql(open_postgres_ledger(url, std::optional<std::function<std::int64_t()>>())));
}

// What it leased is given away when the lease has ended, and its late commit counts for nothing.
TEST(PostgresHosts, AHolderThatIsCutOffLosesItsLeaseAndItsTimeline) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  DRAFTFLOW_REQUIRE_HOSTS(hosts, server);
  const std::string url = server.fresh_schema();
  const auto here = open_postgres_ledger(url);
  const GroupId group("train");
  here->declare_group({.group = group, .window = 1});
  here->ingest_prompts({make_task("old"), make_task("a")}, {});
  const PromptLease first = here->lease_prompts(HolderId("here"), 1, 60'000).leases.at(0);
  here->commit_sample(make_ref("old"), first);
  const pid_t worker = hosts.start([&] {
    const auto ledger = open_postgres_ledger(Hosts::from_afar(url));
    const TimelineInfo timeline = ledger->open_timeline({.group = group});
    ledger->read_window(group, timeline.number, 0);
    const PromptLease lease = ledger->lease_prompts(HolderId("afar"), 1, 1500).leases.at(0);
    ledger->declare("afar", "ready");
    std::this_thread::sleep_for(std::chrono::seconds(1));  // it works; meanwhile the link is cut
    expect_error<Conflict>([&] { ledger->commit_sample(make_ref("a", 7), lease); }, "was lost");
    expect_error<Conflict>([&] { ledger->trained(group, timeline.number, 0, 1, {}); }, "the newest timeline is 2");
  });
  wait_until([&] { return here->declared("afar").has_value(); });
  hosts.cut();
  PromptAnswer taken;
  wait_until([&] { return !(taken = here->lease_prompts(HolderId("here"), 1, 60'000)).leases.empty(); });
  ASSERT_EQ(taken.leases.size(), 1u) << "an expired lease is not given away";
  here->commit_sample(make_ref("a", 9), taken.leases[0]);
  EXPECT_EQ(here->open_timeline({.group = group}).number, 2);
  hosts.heal();
  EXPECT_EQ(Hosts::wait_for(worker), 0);
  EXPECT_EQ(here->get_committed(SampleId("a"))->generation, 9u);
  EXPECT_EQ(here->status().of(group).trained, 0);
}

// A link that stays cut: the caller hears of it in bounded time.
TEST(PostgresHosts, ALinkThatStaysCutIsUnavailable) {
  DRAFTFLOW_REQUIRE_POSTGRES(server);
  DRAFTFLOW_REQUIRE_HOSTS(hosts, server);
  const std::string url = server.fresh_schema();
  const auto here = open_postgres_ledger(url);
  const pid_t client = hosts.start([&] {
    const auto ledger = open_postgres_ledger(Hosts::from_afar(url), std::optional<std::function<std::int64_t()>>());
    ledger->declare("afar", "ready");
    std::this_thread::sleep_for(std::chrono::seconds(1));
    const auto start = std::chrono::steady_clock::now();
    EXPECT_THROW(ledger->declare("more", "x"), Error);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(25));
  });
  wait_until([&] { return here->declared("afar").has_value(); });
  hosts.cut();
  EXPECT_EQ(Hosts::wait_for(client), 0);
  EXPECT_FALSE(here->declared("more").has_value()) << "refused, and done all the same";
  hosts.heal();
}

}  // namespace
}  // namespace draftflow::postgres
