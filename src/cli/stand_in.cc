// SPDX-License-Identifier: Apache-2.0
//
// For tests only: plays the commands that a supervisor starts, without a model. What each does is told by the file named in
// STAND_IN_SCRIPT, a JSON object from command ("ingest", "capture", "train", "eval") to "ok", "exit:N", "hang" (until
// SIGTERM, then 130) or "stuck" (SIGTERM ignored); "kill" ends it by SIGKILL, "kill:N" the first N that start; "lost" ends as
// a rank that lost the other. "train-1" is for rank 1 alone. Every start appends a line to the file STAND_IN_STARTS: command,
// pid, launch.
#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "cli/metrics.h"
#include "cli/stop.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {
namespace {

using Flags = std::map<std::string, std::string>;

Flags parse_flags(int argc, char** argv) {
  Flags flags;
  for (int i = 2; i < argc; ++i) {
    const std::string word = argv[i];
    const std::size_t equal = word.find('=');
    flags[word.substr(0, equal)] = equal == std::string::npos ? "" : word.substr(equal + 1);
  }
  return flags;
}

void note_start(const std::string& command, const std::string& launch) {
  const char* path = std::getenv("STAND_IN_STARTS");
  if (path == nullptr) return;
  const UniqueFd fd = open_file(path, O_WRONLY | O_CREAT | O_APPEND);
  const std::string line = command + " " + std::to_string(::getpid()) + (launch.empty() ? "" : " " + launch) + "\n";
  write_all(fd.get(), std::as_bytes(std::span(line)), path);
}

std::string behaviour_of(const std::string& command, const Flags& flags) {
  const char* path = std::getenv("STAND_IN_SCRIPT");
  if (path == nullptr) return "ok";
  const Json script = Json::parse(read_text_file(path));
  const std::string rank = flags.contains("--rank") ? flags.at("--rank") : "0";
  return script.value(command + "-" + rank, script.value(command, "ok"));
}

int play_ingest(const Flags& flags) {
  const auto ledger = open_sqlite_ledger(flags.at("--ledger"));
  ledger->close_prompts();
  return 0;
}

int play_train(const Flags& flags) {
  if (!flags.contains("--metrics")) return 0;  // a rank that is not the first
  MetricsWriter metrics(flags.at("--metrics"));
  for (int step = 1; step <= 3; ++step) {
    TrainProgress progress;
    progress.step = step;
    progress.total_steps = 3;
    progress.loss_total = 3.0 / step;
    progress.total_wait_seconds = 0.01 * (step - 1);
    progress.total_seconds = 1.0 * (step - 1);
    metrics.append(to_json(progress));
  }
  return 0;
}

int play_eval(const Flags& flags) {
  EvalReport report;
  report.prompts = 2;
  report.lossless = true;
  report.acceptance_length = flags.at("--draft").ends_with("draft-untrained") ? 1.0 : 2.5;
  report.acceptance = {0.8, 0.5};
  report.example_prompt = "<script>alert(1)</script>";
  report.example_text = "once upon a time";
  std::cout << to_json(report).dump() << "\n";
  return 0;
}

int play(const std::string& command, const Flags& flags) {
  if (command == "ingest") return play_ingest(flags);
  if (command == "train") return play_train(flags);
  if (command == "eval") return play_eval(flags);
  return 0;
}

// Which of the command's starts this one is, from 1.
int start_number(const std::string& command) {
  std::istringstream lines(read_text_file(std::getenv("STAND_IN_STARTS")));
  const std::string mine = command + " " + std::to_string(::getpid());
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    number += line.starts_with(command + " ") ? 1 : 0;
    if (line == mine || line.starts_with(mine + " ")) break;
  }
  return number;
}

// Waits until the other rank of its launch runs, then ends as if it had lost it.
int lose(const std::string& launch) {
  const auto ranks = [&] {
    std::istringstream lines(read_text_file(std::getenv("STAND_IN_STARTS")));
    int count = 0;
    for (std::string line; std::getline(lines, line);) count += line.ends_with(" " + launch) ? 1 : 0;
    return count;
  };
  for (int i = 0; i < 600 && ranks() < 2; ++i) ::usleep(100'000);
  return exit_code(ErrorKind::kUnavailable);
}

int behave(const std::string& command, const Flags& flags) {
  std::string behaviour = behaviour_of(command, flags);
  if (behaviour.starts_with("kill:")) behaviour = start_number(command) <= std::stoi(behaviour.substr(5)) ? "kill" : "ok";
  if (behaviour == "ok") return play(command, flags);
  std::cerr << command << " says: " << behaviour << std::endl;
  if (behaviour.starts_with("exit:")) return std::stoi(behaviour.substr(5));
  if (behaviour == "lost") return lose(flags.at("--launch"));
  if (behaviour == "kill") ::kill(::getpid(), SIGKILL);
  if (behaviour == "stuck") ::signal(SIGTERM, SIG_IGN);
  for (int i = 0; i < 600 && !stop_flag(); ++i) ::usleep(100'000);  // ends by itself after a minute
  return kInterruptedExitCode;
}

}  // namespace
}  // namespace draftflow::cli

int main(int argc, char** argv) {
  using namespace draftflow::cli;
  if (argc < 2) return 1;
  install_stop_signals();
  const Flags flags = parse_flags(argc, argv);
  std::string command = argv[1];
  if (flags.contains("--ingest-only")) command = "ingest";
  note_start(command, flags.contains("--launch") ? flags.at("--launch") : "");
  return behave(command, flags);
}
