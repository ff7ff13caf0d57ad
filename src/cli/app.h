// SPDX-License-Identifier: Apache-2.0
//
// The command line: parses, runs one command, and turns its outcome into an exit code (base/error.h): 0 done, 1 a bug or
// an unknown failure, 2 InvalidArgument (bad arguments too), 3 to 9 the other kinds, 130 interrupted. Results go to `out`,
// progress and errors to `err` as "draftflow COMMAND: Kind: message". One call at a time.
//
//   return run_cli(argc, argv, {std::cout, std::cerr, isatty(2) == 1});
#pragma once

#include <functional>
#include <iosfwd>
#include <string>

#include "cli/fields.h"

namespace CLI {
class App;
}

namespace draftflow::cli {

struct Console {
  std::ostream& out;
  std::ostream& err;
  bool err_is_terminal = false;
};

int run_cli(int argc, const char* const* argv, const Console& console);

// What a command's file needs: it adds a subcommand to `app`, whose callback sets `action`.
struct CommandLine {
  CLI::App& app;
  const Console& console;
  std::function<int()> action;
};

void add_capture_command(CommandLine& line);
void add_ingest_command(CommandLine& line);
void add_train_command(CommandLine& line);
void add_eval_command(CommandLine& line);
void add_run_command(CommandLine& line);
void add_status_command(CommandLine& line);
void add_inspect_command(CommandLine& line);
void add_store_command(CommandLine& line);
void add_ledger_command(CommandLine& line);
void add_drain_command(CommandLine& line);
void add_doctor_command(CommandLine& line);
void add_top_command(CommandLine& line);
void add_bench_command(CommandLine& line);
void add_bench_ledger_command(CLI::App& bench, CommandLine& line);
void add_bench_python_command(CLI::App& bench, CommandLine& line);

// Adds a flag for every field. The fields' struct must outlive the parse.
void add_fields(CLI::App& app, const Fields& fields);

// The text as it may stand in a terminal: line breaks kept, other control bytes and invalid UTF-8 escaped.
std::string printable_lines(const std::string& text);

}  // namespace draftflow::cli
