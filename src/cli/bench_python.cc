// SPDX-License-Identifier: Apache-2.0
//
// draftflow bench python: the Python package beside the C++ core. It is a program of the package's own
// (python/draftflow/_bench.py), which this one becomes.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "cli/app.h"
#include "draftflow/base/error.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow bench python --quick\n"
    "  draftflow bench python --rows overhead,zero_copy --dir /data --json";

struct Arguments {
  std::string dir = ".", rows;
  bool json = false, quick = false;
};

// The package beside this program, as the build makes it, before those that are installed.
void prefer_own_package() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path package = self.parent_path().parent_path() / "python";
  if (error || !std::filesystem::exists(package / "draftflow", error)) return;
  const char* others = std::getenv("PYTHONPATH");
  const std::string path = others == nullptr ? package.string() : fmt::format("{}:{}", package.string(), others);
  ::setenv("PYTHONPATH", path.c_str(), 1);
}

int run(const Arguments& arguments) {
  std::vector<std::string> words{DRAFTFLOW_PYTHON, "-m", "draftflow._bench", "--dir", arguments.dir};
  if (!arguments.rows.empty()) words.insert(words.end(), {"--rows", arguments.rows});
  if (arguments.json) words.emplace_back("--json");
  if (arguments.quick) words.emplace_back("--quick");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  prefer_own_package();
  ::execv(DRAFTFLOW_PYTHON, argv.data());
  throw_errno(errno, fmt::format("starting {}, the Python that the package was built for", DRAFTFLOW_PYTHON));
}

}  // namespace

void add_bench_python_command(CLI::App& bench, CommandLine& line) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App& app = *bench.add_subcommand("python", "The Python package beside the C++ core");
  app.add_option("--dir", arguments->dir, "an existing folder on the file system to measure")
      ->type_name("PATH")
      ->capture_default_str();
  app.add_option("--rows", arguments->rows, "only these groups: overhead, zero_copy, small, large, batches, compat")
      ->type_name("NAME,...");
  app.add_flag("--quick", arguments->quick, "a few calls, to see that it works");
  app.add_flag("--json", arguments->json, "print JSON");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [arguments] { return run(*arguments); }; });
}

}  // namespace draftflow::cli
