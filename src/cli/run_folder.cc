// SPDX-License-Identifier: Apache-2.0
#include "cli/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <span>
#include <thread>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

// What a run makes, in an order in which it can be removed.
const std::vector<std::string> kOwnFiles{"summary.json",        "report.html",        "state.json",
                                         "ledger.sqlite3-wal",  "ledger.sqlite3-shm", "ledger.sqlite3-journal",
                                         "ledger.sqlite3.lock", "ledger.sqlite3"};
const std::vector<std::string> kOwnFolders{"store/features", "train/checkpoints", "train/draft", "train/draft-untrained",
                                           "train/ranks"};
const std::vector<std::pair<std::string, std::string>> kOwnEndings{{"logs", ".log"}, {"metrics", ".jsonl"}, {"eval", ".json"}};
const std::vector<std::string> kParents{"store", "train", "logs", "metrics", "eval"};

bool try_lock(const UniqueFd& fd, const std::filesystem::path& path) {
  for (;;) {
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) return true;
    if (errno == EWOULDBLOCK) return false;
    if (errno != EINTR) throw_errno(errno, "locking " + path.string());
  }
}

// Of a parent folder that is a link the target is somebody else's.
bool is_real_folder(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(std::filesystem::symlink_status(path, ignored));
}

void remove_tree(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) throw_errno(error.value(), "removing " + path.string());
}

void remove_by_ending(const std::filesystem::path& folder, const std::string& ending) {
  if (!is_real_folder(folder)) return;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const bool ours = entry.path().filename().string().ends_with(ending);
    if (ours && !std::filesystem::is_directory(entry.symlink_status())) remove_tree(entry.path());
  }
}

}  // namespace

RunFolder::RunFolder(const std::filesystem::path& path, std::chrono::milliseconds wait,
                     const std::function<void(const std::string&)>& say)
    : path_(std::filesystem::absolute(path).lexically_normal()) {
  make_folders(path_);
  take_run_lock();
  take_children_lock(wait, say);
}

void RunFolder::take_run_lock() {
  const std::filesystem::path path = path_ / "run.lock";
  run_lock_ = open_file(path, O_RDWR | O_CREAT);
  if (!try_lock(run_lock_, path)) {
    throw Unavailable(
        fmt::format("another draftflow run works in {} (process {}, says {}): wait for it, stop it, or choose "
                    "another folder with --out",
                    path_.string(), printable(read_text_file(path, 4096), 40), path.string()));
  }
  const std::string pid = fmt::to_string(::getpid());
  if (::ftruncate(run_lock_.get(), 0) != 0) throw_errno(errno, "truncating " + path.string());
  write_all(run_lock_.get(), std::as_bytes(std::span(pid)), path);
}

void RunFolder::take_children_lock(std::chrono::milliseconds wait, const std::function<void(const std::string&)>& say) {
  const std::filesystem::path path = path_ / "children.lock";
  children_lock_ = open_file(path, O_RDWR | O_CREAT);
  const auto until = std::chrono::steady_clock::now() + wait;
  bool told = false;
  while (!try_lock(children_lock_, path)) {
    if (std::chrono::steady_clock::now() >= until) {
      throw Unavailable(
          fmt::format("processes of an earlier run still work in {} (they hold {}): wait for them to end, or stop "
                      "them",
                      path_.string(), path.string()));
    }
    if (!told) say("waiting for processes of an earlier run in this folder to end");
    told = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

void RunFolder::adopt(const RunConfig& config) {
  const std::filesystem::path record = path_ / "run.yaml";
  if (std::filesystem::exists(record)) {
    const std::string different = differences(load_run_config(record), config);
    if (different.empty()) return;
    throw InvalidArgument(
        fmt::format("{} holds a run of another configuration: {}; give --fresh to start over, or choose another "
                    "folder with --out",
                    path_.string(), different));
  }
  for (const auto& names : {kOwnFiles, kOwnFolders}) {
    for (const std::string& name : names) {
      if (!std::filesystem::exists(path_ / name)) continue;
      throw InvalidArgument(fmt::format(
          "{} is there but no run.yaml: another program made it; choose another folder with --out", (path_ / name).string()));
    }
  }
  replace_file(record, to_yaml(config));
}

std::string RunFolder::new_launch() const {
  const std::filesystem::path folder = rendezvous("");
  remove_tree(folder);  // of launches that are over
  make_folders(folder);
  return random_hex128().substr(0, 12);
}

void RunFolder::remove_own_files() {
  const std::filesystem::path record = path_ / "run.yaml";
  if (!std::filesystem::exists(record)) return;  // adopt() refuses what is not a run's
  for (const std::string& name : kOwnFiles) remove_tree(path_ / name);
  for (const std::string& name : kOwnFolders) {
    if (is_real_folder((path_ / name).parent_path())) remove_tree(path_ / name);
  }
  for (const auto& [folder, ending] : kOwnEndings) remove_by_ending(path_ / folder, ending);
  for (const std::string& name : kParents) {
    std::error_code not_empty;
    if (is_real_folder(path_ / name)) std::filesystem::remove(path_ / name, not_empty);
  }
  remove_tree(record);  // last: until then the folder is known as a run's
}

RunState RunFolder::load_state() const {
  RunState state;
  const std::filesystem::path file = path_ / "state.json";
  if (!std::filesystem::exists(file)) return state;
  const auto json = nlohmann::json::parse(read_text_file(file, 1 << 20), nullptr, /*allow_exceptions=*/false);
  try {
    state.done = json.at("done").get<std::set<std::string>>();
    state.seconds = json.at("seconds").get<std::map<std::string, double>>();
  } catch (const nlohmann::json::exception&) {
    throw Corrupt(file.string() +
                  " is not a run's state: remove it (finished stages are then looked at again), or give --fresh");
  }
  return state;
}

void RunFolder::save_state(const RunState& state) const {
  const nlohmann::json json{{"done", state.done}, {"seconds", state.seconds}};
  replace_file(path_ / "state.json", json.dump(2) + "\n");
}

}  // namespace draftflow::cli
