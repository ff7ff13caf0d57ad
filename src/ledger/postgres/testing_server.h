// SPDX-License-Identifier: Apache-2.0
//
// For tests only: a private PostgreSQL cluster in a temporary folder, reached by a Unix socket in it and by nothing else, and a
// proxy that loses COMMITs. Everything goes with its object; the server also goes with the thread that started it, so that it
// outlives no test that was killed, whose folder the next server takes away. A server and a proxy are used by one thread at a
// time.
//
//   DRAFTFLOW_REQUIRE_POSTGRES(server);
//   postgres::Database db(server.fresh_schema());
#pragma once

#include <sys/types.h>

#include <atomic>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "draftflow/base/file.h"

namespace draftflow::testing_support {

class TestingServer {
 public:
  TestingServer();  // starts it, unless there is a why_not()
  TestingServer(const TestingServer&) = delete;
  TestingServer& operator=(const TestingServer&) = delete;
  ~TestingServer();

  static TestingServer& shared();  // one for the process, started by the first call

  // Why there is none: PostgreSQL's programs are not installed. One that is there and does not start is an error.
  const std::optional<std::string>& why_not() const { return why_not_; }

  // Everybody is let in without a password, except the role "locked". `more` is in a URL's form: "&options=...".
  std::string url(const std::string& more = "", const std::string& user = "postgres",
                  const std::string& database = "postgres") const;
  std::string fresh_schema();               // the URL of a new schema: a ledger of one's own
  std::string ask(const std::string& sql);  // as the administrator: the first field of the answer, or ""
  const std::filesystem::path& folder() const { return folder_; }

  void start();
  void stop(bool immediate);  // immediate: as in a crash
  void restart(bool immediate) {
    stop(immediate);
    start();
  }

 private:
  struct Account {
    uid_t uid = 0;
    gid_t gid = 0;
  };
  void make_cluster();
  pid_t spawn(const std::vector<std::string>& arguments) const;
  std::string log() const;

  std::optional<std::string> why_not_;
  std::filesystem::path programs_, folder_;
  UniqueFd lock_;                   // held while the folder is used
  std::optional<Account> account_;  // PostgreSQL does not run as root
  pid_t server_ = -1;
  int schemas_ = 0;
};

#define DRAFTFLOW_REQUIRE_POSTGRES(server)                                                                     \
  ::draftflow::testing_support::TestingServer& server = ::draftflow::testing_support::TestingServer::shared(); \
  if ((server).why_not()) GTEST_SKIP() << *(server).why_not()

// A socket beside the server's that passes everything on, until it has been told to lose a COMMIT: then it cuts the connection
// at that, before the server has it or when the server has answered, and passes on again.
class CommitLoser {
 public:
  enum class Loses { kNothing, kCommit, kReply };

  explicit CommitLoser(const TestingServer& server);
  CommitLoser(const CommitLoser&) = delete;
  CommitLoser& operator=(const CommitLoser&) = delete;
  ~CommitLoser();

  std::string through(const std::string& url) const;  // the same place, by this proxy
  void lose_next(Loses what) { loses_ = what; }
  int lost() const { return lost_; }

 private:
  struct Pair {
    UniqueFd client, server;
  };
  void work();
  bool pass_on(Pair& pair, bool from_client);  // false: the connection is at its end

  std::filesystem::path server_folder_, folder_;
  UniqueFd listener_, stop_;
  std::vector<Pair> pairs_;
  std::atomic<Loses> loses_ = Loses::kNothing;
  std::atomic<int> lost_ = 0;
  std::thread thread_;
};

}  // namespace draftflow::testing_support
