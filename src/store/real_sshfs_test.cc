// SPDX-License-Identifier: Apache-2.0
//
// A real sshfs over a real sftp-server on the loopback interface: a store must be refused there by name, since its link counts
// are always one, and leave nothing behind. Skipped where one of the two, or FUSE, is not there.
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "draftflow/base/file.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store_testing {
namespace {

constexpr const char* kServer = "/usr/lib/openssh/sftp-server";
constexpr const char* kClient = "/usr/bin/sshfs";
constexpr const char* kUnmount = "/usr/bin/fusermount3";

pid_t start(const std::vector<std::string>& words, int standard_in_and_out) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (standard_in_and_out >= 0) {
    ::dup2(standard_in_and_out, STDIN_FILENO);
    ::dup2(standard_in_and_out, STDOUT_FILENO);
  }
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

void finish(pid_t child) {
  if (child <= 0) return;
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

class RealSshfs : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* needed : {kServer, kClient, kUnmount}) {
      if (::access(needed, X_OK) != 0) GTEST_SKIP() << needed << " is not there (make deps)";
    }
    if (::access("/dev/fuse", R_OK | W_OK) != 0) GTEST_SKIP() << "/dev/fuse cannot be opened";
    std::filesystem::create_directory(disk());
    std::filesystem::create_directory(mount());
    listen();
    client_ =
        start({kClient, "-f", "-o", fmt::format("directport={}", port_), "127.0.0.1:" + disk().string(), mount().string()}, -1);
    const int connection = ::accept(listener_.get(), nullptr, nullptr);  // waits at most as long as listen() says
    ASSERT_GE(connection, 0) << "sshfs did not connect";
    server_ = start({kServer}, connection);
    ::close(connection);
    ASSERT_TRUE(mounted()) << "sshfs did not mount";
  }
  void TearDown() override {
    if (client_ > 0) {
      const pid_t unmount = start({kUnmount, "-u", "-z", mount().string()}, -1);
      ::waitpid(unmount, nullptr, 0);
    }
    finish(client_);
    finish(server_);
  }

  std::filesystem::path disk() const { return temp_.path() / "disk"; }
  std::filesystem::path mount() const { return temp_.path() / "mount"; }

  void listen() {
    listener_ = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const timeval wait{10, 0};
    ::setsockopt(listener_.get(), SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(listener_.get(), 1), 0);
    socklen_t size = sizeof address;
    ASSERT_EQ(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
  }

  bool mounted() const {
    struct stat below {
    }, above{};
    EXPECT_EQ(::stat(temp_.path().c_str(), &above), 0);
    for (int i = 0; i < 100; ++i) {
      if (::stat(mount().c_str(), &below) == 0 && below.st_dev != above.st_dev) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    return false;
  }

  testing_support::TempFolder temp_;
  UniqueFd listener_;
  int port_ = 0;
  pid_t client_ = 0, server_ = 0;
};

TEST_F(RealSshfs, IsRefusedByNameAtAttach) {
  EXPECT_THAT(message_of<InvalidArgument>([&] { create_shared_dir_store(mount(), StoreId("st"), {}); }),
              ::testing::AllOf(::testing::HasSubstr("is on fuse.sshfs"), ::testing::HasSubstr("leases are hard links")));
  // A file removed while it was open goes a moment after its close: the kernel tells sshfs of a close without waiting.
  for (const char* folder : {"tmp", "leases"}) {
    const auto looked_into = disk() / "st" / folder;
    for (int i = 0; i < 1000 && !std::filesystem::is_empty(looked_into); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_TRUE(std::filesystem::is_empty(looked_into)) << folder;
  }
}

}  // namespace
}  // namespace draftflow::store_testing
