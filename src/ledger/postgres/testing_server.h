// SPDX-License-Identifier: Apache-2.0
//
// For tests only: a private PostgreSQL cluster (private_server.h) with a schema for whoever asks, and a proxy that loses
// COMMITs. A server and a proxy are used by one thread at a time.
//
//   DRAFTFLOW_REQUIRE_POSTGRES(server);
//   postgres::Database db(server.fresh_schema());
#pragma once

#include <atomic>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "draftflow/base/file.h"
#include "ledger/postgres/private_server.h"

namespace draftflow::testing_support {

class TestingServer : public postgres::PrivateServer {
 public:
  static TestingServer& shared();  // one for the process, started by the first call

  std::string fresh_schema();  // the URL of a new schema: a ledger of one's own

 private:
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
