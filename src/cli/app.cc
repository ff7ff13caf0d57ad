// SPDX-License-Identifier: Apache-2.0
#include "cli/app.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <new>
#include <ostream>
#include <sstream>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr const char* kAbout =
    "draftflow trains speculative-decoding draft models from a target model's hidden states.\n"
    "Start with:  draftflow run examples/demo.yaml";

constexpr const char* kExitCodes =
    "Exit codes: 0 done, 1 bug or unknown, 2 InvalidArgument, 3 NotFound, 4 PermissionDenied, 5 Exhausted, 6 Conflict,\n"
    "7 Corrupt, 8 Unavailable, 9 InDoubt, 130 interrupted.";

std::string command_name(const CLI::App& app, int argc, const char* const* argv) {
  const auto commands = app.get_subcommands([](const CLI::App*) { return true; });
  const auto named = std::find_if(commands.begin(), commands.end(),
                                  [&](const CLI::App* command) { return argc > 1 && command->get_name() == argv[1]; });
  if (named == commands.end()) return "";
  return " " + (*named)->get_name() + command_name(**named, argc - 1, argv + 1);
}

int report(const Console& console, const std::string& who, const char* kind, const std::string& message, int code) {
  console.err << who << ": " << kind << ": " << printable_lines(message) << std::endl;
  return code;
}

int on_parse_error(const CLI::App& app, const CLI::ParseError& error, const std::string& who, const Console& console) {
  if (error.get_exit_code() == 0) return app.exit(error, console.out, console.err);  // --help, --version
  return report(console, who, error_kind_name(ErrorKind::kInvalidArgument),
                std::string(error.what()) + fmt::format("; see '{} --help'", who), exit_code(ErrorKind::kInvalidArgument));
}

int run_action(const CommandLine& line, const Console& console) {
  const int code = line.action();
  console.out.flush();
  if (!console.out) throw Exhausted("writing the result to standard output failed: the disk behind it may be full");
  return code;
}

}  // namespace

int run_cli(int argc, const char* const* argv, const Console& console) {
  CLI::App app{kAbout, "draftflow"};
  app.set_version_flag("--version", std::string("draftflow ") + DRAFTFLOW_VERSION);
  app.require_subcommand(1);
  app.footer(kExitCodes);
  CommandLine line{app, console, {}};
  add_run_command(line);
  add_capture_command(line);
  add_ingest_command(line);
  add_train_command(line);
  add_eval_command(line);
  add_status_command(line);
  add_inspect_command(line);
  add_top_command(line);
  add_drain_command(line);
  add_doctor_command(line);
  add_bench_command(line);
  add_store_command(line);
  add_ledger_command(line);
  const std::string who = "draftflow" + command_name(app, argc, argv);
  try {
    app.parse(argc, argv);
    return run_action(line, console);
  } catch (const CLI::ParseError& error) {
    return on_parse_error(app, error, who, console);
  } catch (const Error& error) {
    return report(console, who, error_kind_name(error.kind()), error.what(), exit_code(error.kind()));
  } catch (const std::bad_alloc&) {
    return report(console, who, "Exhausted", "memory ran out", exit_code(ErrorKind::kExhausted));
  } catch (const std::exception& error) {
    return report(console, who, "Unknown", error.what(), 1);
  }
}

void add_fields(CLI::App& app, const Fields& fields) {
  for (const Field& field : fields) {
    const std::string flag = flag_of(field);
    if (std::holds_alternative<bool*>(field.value)) {
      app.add_flag(flag, *std::get<bool*>(field.value), field.help);
      continue;
    }
    CLI::Option* option = app.add_option_function<std::string>(
        flag,
        [field, flag](const std::string& text) {
          try {
            set_field(field, text);
          } catch (const InvalidArgument& error) {
            throw InvalidArgument(flag + ": " + error.what());
          }
        },
        field.help);
    option->type_name(std::holds_alternative<std::filesystem::path*>(field.value) ? "PATH" : "VALUE");
    const std::string text = field_text(field);
    if (!text.empty()) option->default_str(text);
    option->required(field.required);
  }
}

std::string printable_lines(const std::string& text) {
  std::istringstream lines(text);
  std::string out;
  for (std::string line; std::getline(lines, line);) out += (out.empty() ? "" : "\n") + printable(line, 4000);
  return out;
}

}  // namespace draftflow::cli
