// SPDX-License-Identifier: Apache-2.0
#include "ledger/postgres/private_server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <thread>
#include <utility>

#include "draftflow/base/error.h"

namespace draftflow::postgres {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kPatience = std::chrono::seconds(60);
constexpr auto kPause = std::chrono::milliseconds(10);

// Short: a socket's path may have 107 bytes.
std::filesystem::path make_folder(std::string pattern) {
  if (::mkdtemp(pattern.data()) == nullptr) throw_errno(errno, "making " + pattern);
  return pattern;
}

// The lock has its name only when it is held, so a folder whose lock can be had is of a test that was killed.
UniqueFd lock_folder(const std::filesystem::path& folder) {
  UniqueFd lock = open_file(folder / "lock.new", O_RDWR | O_CREAT, 0600);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) throw_errno(errno, "locking " + folder.string());
  std::filesystem::rename(folder / "lock.new", folder / "lock");
  return lock;
}

void remove_abandoned_folders() {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/tmp", ignored)) {
    if (!entry.path().filename().string().starts_with("dfpg.")) continue;
    const UniqueFd lock(::open((entry.path() / "lock").c_str(), O_RDWR | O_CLOEXEC));
    if (lock && ::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) std::filesystem::remove_all(entry.path(), ignored);
  }
}

bool has_server(const std::filesystem::path& folder) {
  return ::access((folder / "postgres").c_str(), X_OK) == 0 && ::access((folder / "initdb").c_str(), X_OK) == 0;
}

// Where `pg_config --bindir` points; else where Debian and Fedora put them, the newest first.
std::filesystem::path find_programs() {
  std::array<char, 4096> line{};
  if (FILE* config = ::popen("pg_config --bindir 2>/dev/null", "r"); config != nullptr) {
    const bool read = std::fgets(line.data(), line.size(), config) != nullptr;
    ::pclose(config);
    const std::string_view found = read ? line.data() : "";
    const std::filesystem::path folder = found.substr(0, found.find('\n'));
    if (!folder.empty() && has_server(folder)) return folder;
  }
  std::vector<std::pair<int, std::filesystem::path>> found;
  std::error_code absent;
  for (const auto& entry : std::filesystem::directory_iterator("/usr/lib/postgresql", absent)) {
    found.emplace_back(std::atoi(entry.path().filename().c_str()), entry.path() / "bin");
  }
  std::sort(found.rbegin(), found.rend());
  for (const auto& [version, folder] : found) {
    if (has_server(folder)) return folder;
  }
  return has_server("/usr/bin") ? "/usr/bin" : "";
}

int wait_for_end(pid_t child) {
  int status = 0;
  for (const auto end = Clock::now() + kPatience; ::waitpid(child, &status, WNOHANG) == 0;) {
    if (Clock::now() > end) ::kill(child, SIGKILL);
    std::this_thread::sleep_for(kPause);
  }
  return status;
}

}  // namespace

PrivateServer::PrivateServer(Setup setup) : setup_(std::move(setup)), programs_(find_programs()) {
  if (programs_.empty()) {
    why_not_ = "no PostgreSQL server is installed (looked for initdb and postgres where pg_config --bindir points)";
    return;
  }
  if (::geteuid() == 0) {
    const passwd* account = ::getpwnam("postgres");
    if (account == nullptr) account = ::getpwnam("nobody");
    if (account == nullptr) {
      why_not_ = "PostgreSQL does not run as root, and there is no user postgres or nobody to run it as";
      return;
    }
    account_ = Account{.uid = account->pw_uid, .gid = account->pw_gid};
  }
  remove_abandoned_folders();
  folder_ = make_folder("/tmp/dfpg.XXXXXX");
  lock_ = lock_folder(folder_);
  if (setup_.data.empty()) setup_.data = folder_ / "data";
  try {
    make_cluster();
    start();
  } catch (...) {
    std::filesystem::remove_all(folder_);
    throw;
  }
}

PrivateServer::~PrivateServer() {
  if (folder_.empty()) return;
  stop(true);
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

void PrivateServer::give_to_account(const std::filesystem::path& path) const {
  if (account_ && ::chown(path.c_str(), account_->uid, account_->gid) != 0) throw_errno(errno, "chown " + path.string());
}

void PrivateServer::make_cluster() {
  give_to_account(folder_);
  make_folders(setup_.data);
  give_to_account(setup_.data);
  const pid_t maker = spawn({programs_ / "initdb", "-D", setup_.data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
                             "--locale=C", "--no-sync", "--no-instructions"});
  if (wait_for_end(maker) != 0) throw Unavailable("initdb has failed: " + log());
  replace_file(setup_.data / "pg_hba.conf", "local all locked scram-sha-256\nlocal all all trust\n");
  give_to_account(setup_.data / "pg_hba.conf");
}

pid_t PrivateServer::spawn(const std::vector<std::string>& arguments) const {
  const UniqueFd log = open_file(folder_ / "log", O_WRONLY | O_CREAT | O_APPEND, 0600);
  const UniqueFd nothing = open_file("/dev/null", O_RDONLY);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) throw_errno(errno, "fork");
  if (child > 0) return child;
  ::setpgid(0, 0);  // a Ctrl-C is for its owner, who ends it
  ::dup2(nothing.get(), STDIN_FILENO);
  ::dup2(log.get(), STDOUT_FILENO);
  ::dup2(log.get(), STDERR_FILENO);
  if (::chdir(folder_.c_str()) != 0) ::_exit(1);
  if (account_ && (::setgroups(0, nullptr) != 0 || ::setgid(account_->gid) != 0 || ::setuid(account_->uid) != 0)) ::_exit(1);
  ::prctl(PR_SET_PDEATHSIG, SIGQUIT);  // after setuid, which clears it
  if (::getppid() != parent) ::_exit(1);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

std::string PrivateServer::log() const {
  const std::string all = read_text_file(folder_ / "log");
  constexpr std::size_t kShown = 2000;
  return all.size() > kShown ? all.substr(all.size() - kShown) : all;
}

void PrivateServer::start() {
  std::vector<std::string> arguments{programs_ / "postgres", "-D", setup_.data, "-p", "5432"};
  for (const std::string& setting : {std::string("listen_addresses="), "unix_socket_directories=" + folder_.string(),
                                     std::string("shared_buffers=16MB"), std::string("max_connections=60")}) {
    arguments.insert(arguments.end(), {"-c", setting});
  }
  for (const std::string& setting : setup_.settings) arguments.insert(arguments.end(), {"-c", setting});
  server_ = spawn(arguments);
  for (const auto end = Clock::now() + kPatience; PQping(url().c_str()) != PQPING_OK;) {
    const bool gone = ::waitpid(server_, nullptr, WNOHANG) != 0;
    if (gone) server_ = -1;
    if (gone || Clock::now() > end) {
      stop(true);
      throw Unavailable("the PostgreSQL server does not start: " + log());
    }
    std::this_thread::sleep_for(kPause);
  }
}

void PrivateServer::stop(bool immediate) {
  if (server_ < 0) return;
  ::kill(server_, immediate ? SIGQUIT : SIGINT);
  wait_for_end(server_);
  server_ = -1;
}

std::string PrivateServer::url(const std::string& more, const std::string& user, const std::string& database) const {
  return fmt::format("postgresql:///{}?host={}&port=5432&user={}{}", database, folder_.string(), user, more);
}

std::string PrivateServer::ask(const std::string& sql) {
  const std::unique_ptr<PGconn, decltype(&PQfinish)> connection(PQconnectdb(url().c_str()), &PQfinish);
  const std::unique_ptr<PGresult, decltype(&PQclear)> result(PQexec(connection.get(), sql.c_str()), &PQclear);
  const ExecStatusType status = PQresultStatus(result.get());
  if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK) {
    throw Unavailable(fmt::format("{}: {}", sql, PQerrorMessage(connection.get())));
  }
  return PQntuples(result.get()) > 0 ? PQgetvalue(result.get(), 0, 0) : "";
}

}  // namespace draftflow::postgres
