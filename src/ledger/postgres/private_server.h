// SPDX-License-Identifier: Apache-2.0
//
// A PostgreSQL cluster of one's own, for tests and benchmarks: in a temporary folder, reached by a Unix socket in it and by
// nothing else. Everything goes with its object; the server also goes with the thread that started it, so that it outlives no
// process that was killed, whose folder the next server takes away. Starts processes by fork; used by one thread at a time.
//
//   postgres::PrivateServer server({.settings = {"shared_buffers=256MB"}});
//   if (server.why_not()) ...                                        // PostgreSQL's programs are not installed
//   server.ask("CREATE SCHEMA mine");
//   postgres::Database db(server.url("&options=-csearch_path%3Dmine"));
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/base/file.h"

namespace draftflow::postgres {

class PrivateServer {
 public:
  struct Setup {
    std::filesystem::path data;         // made there, and left behind; empty: in the temporary folder
    std::vector<std::string> settings;  // of postgresql.conf
  };

  explicit PrivateServer(Setup setup = {});  // starts it, unless there is a why_not()
  PrivateServer(const PrivateServer&) = delete;
  PrivateServer& operator=(const PrivateServer&) = delete;
  ~PrivateServer();

  // Why there is none: PostgreSQL's programs are not installed. One that is there and does not start is an error.
  const std::optional<std::string>& why_not() const { return why_not_; }

  // Everybody is let in without a password, except the role "locked". `more` is in a URL's form: "&options=...".
  std::string url(const std::string& more = "", const std::string& user = "postgres",
                  const std::string& database = "postgres") const;
  std::string ask(const std::string& sql);  // as the administrator: the first field of the answer, or ""
  const std::filesystem::path& folder() const { return folder_; }
  const std::filesystem::path& data() const { return setup_.data; }
  const std::filesystem::path& programs() const { return programs_; }  // the folder of initdb, postgres ...

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
  void give_to_account(const std::filesystem::path& path) const;
  pid_t spawn(const std::vector<std::string>& arguments) const;
  std::string log() const;

  Setup setup_;
  std::optional<std::string> why_not_;
  std::filesystem::path programs_, folder_;
  UniqueFd lock_;                   // held while the folder is used
  std::optional<Account> account_;  // PostgreSQL does not run as root
  pid_t server_ = -1;
};

}  // namespace draftflow::postgres
