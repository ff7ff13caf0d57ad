// SPDX-License-Identifier: Apache-2.0
#include "cli/app.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

#include "draftflow/base/file.h"
#include "draftflow/ledger/ledger.h"
#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

struct Outcome {
  int code;
  std::string out, err;
};

Outcome call(std::vector<std::string> words) {
  words.insert(words.begin(), "draftflow");
  std::vector<const char*> argv;
  for (const std::string& word : words) argv.push_back(word.c_str());
  std::ostringstream out, err;
  const int code = run_cli(static_cast<int>(argv.size()), argv.data(), {out, err, false});
  return {code, out.str(), err.str()};
}

// Runs a shell command; its standard output and error together.
Outcome shell(const std::string& command) {
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  std::string text;
  char buffer[4096];
  for (std::size_t got = std::fread(buffer, 1, sizeof buffer, pipe); got > 0;
       got = std::fread(buffer, 1, sizeof buffer, pipe)) {
    text.append(buffer, got);
  }
  const int status = ::pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text, ""};
}

const std::string kBinary = std::string(DRAFTFLOW_BINARY_DIR) + "/bin/draftflow";
constexpr const char* kCommands[] = {"capture", "ingest", "train", "eval", "run", "status", "inspect", "bench"};

TEST(App, EveryCommandHasHelpWithAnExample) {
  for (const std::string command : kCommands) {
    const Outcome outcome = call({command, "--help"});
    EXPECT_EQ(outcome.code, 0) << command;
    EXPECT_THAT(outcome.out, HasSubstr("Example:\n  draftflow " + command + " "));
    EXPECT_THAT(outcome.out, HasSubstr("--json"));
    EXPECT_EQ(outcome.err, "");
  }
  EXPECT_THAT(call({"--help"}).out, HasSubstr("Exit codes"));
  EXPECT_THAT(call({"--version"}).out, HasSubstr(DRAFTFLOW_VERSION));
}

TEST(App, BadArgumentsAreInvalidArgumentAndNamed) {
  const std::vector<std::vector<std::string>> bad{{},
                                                  {"nonsense"},
                                                  {"train"},
                                                  {"status", "--ledger"},
                                                  {"status", "--ledger", "x", "--nonsense"},
                                                  {"inspect"},
                                                  {"train", "--target=t", "--ledger=l", "--out=o", "--window=many"},
                                                  {"run", "a.yaml", "b.yaml"}};
  for (const auto& words : bad) {
    const Outcome outcome = call(words);
    EXPECT_EQ(outcome.code, 2) << testing::PrintToString(words);
    EXPECT_THAT(outcome.err, StartsWith("draftflow")) << testing::PrintToString(words);
    EXPECT_THAT(outcome.err, HasSubstr(": InvalidArgument: ")) << testing::PrintToString(words);
    EXPECT_EQ(outcome.out, "");
  }
  EXPECT_EQ(call({"train", "--target=t", "--ledger=l", "--out=o", "--window=many"}).err,
            "draftflow train: InvalidArgument: --window: 'many' is not a whole number of 1 or more\n");
}

TEST(App, ErrorsHaveTheirKindsExitCode) {
  const testing_support::TempFolder folder;
  const Outcome missing = call({"status", "--ledger", (folder.path() / "none.sqlite3").string()});
  EXPECT_EQ(missing.code, 3);
  EXPECT_THAT(missing.err, StartsWith("draftflow status: NotFound: "));
  EXPECT_EQ(call({"inspect", (folder.path() / "none").string()}).code, 3);
  replace_file(folder.path() / "bad.safetensors", "x");
  EXPECT_EQ(call({"inspect", (folder.path() / "bad.safetensors").string()}).code, 7);
  EXPECT_EQ(call({"run", (folder.path() / "none.yaml").string()}).code, 3);
  EXPECT_EQ(call({"ingest", (folder.path() / "none").string(), "--ledger", (folder.path() / "l").string()}).code, 3);
}

TEST(App, ErrorsCannotControlTheTerminal) {
  const Outcome outcome = call({"inspect", "a\x1b[2Jb"});
  EXPECT_THAT(outcome.err, HasSubstr("a\\x1b[2Jb"));
  EXPECT_THAT(outcome.err, Not(HasSubstr("\x1b")));
}

TEST(App, IngestExitsWithCorruptIfNothingCouldBeUsed) {
  const testing_support::TempFolder folder;
  make_folders(folder.path() / "set");
  replace_file(folder.path() / "set" / "bad.ckpt", "not a checkpoint");
  const Outcome outcome =
      call({"ingest", (folder.path() / "set").string(), "--ledger", (folder.path() / "l.sqlite3").string()});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.err, HasSubstr("left out "));
  EXPECT_THAT(outcome.err, HasSubstr("bad.ckpt: "));
}

TEST(App, IngestTakesRealFeatureFiles) {
  DRAFTFLOW_REQUIRE_REAL_DATA(features, "features-torch");
  const testing_support::TempFolder folder;
  const auto set = folder.path() / "set";
  make_folders(set);
  std::filesystem::copy(features / "0000.ckpt", set / "0000.ckpt");
  replace_file(set / "bad.ckpt", "not a checkpoint");
  const Outcome outcome = call({"ingest", set.string(), "--ledger", (folder.path() / "l.sqlite3").string(), "--json"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["committed"], 1);
  EXPECT_EQ(json["failed"].size(), 1u);
}

TEST(App, StatusShowsTheBooks) {
  const testing_support::TempFolder folder;
  open_sqlite_ledger(folder.path() / "ledger.sqlite3")->close_prompts();
  const Outcome text = call({"status", "--ledger", folder.path().string()});  // a run's folder
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("samples    0 committed"));
  const Outcome json = call({"status", "--ledger", (folder.path() / "ledger.sqlite3").string(), "--json"});
  EXPECT_EQ(nlohmann::json::parse(json.out)["committed"], 0);
}

TEST(Binary, LinksNoTorch) {
  const Outcome needed = shell("readelf -d '" + kBinary + "'");
  ASSERT_EQ(needed.code, 0) << needed.out;
  EXPECT_THAT(needed.out, HasSubstr("NEEDED"));
  EXPECT_THAT(needed.out, Not(HasSubstr("torch")));
  EXPECT_THAT(shell("ldd '" + kBinary + "'").out, Not(HasSubstr("torch")));
}

TEST(Binary, StatusMapsNoTorch) {
  const testing_support::TempFolder folder;
  open_sqlite_ledger(folder.path() / "ledger.sqlite3")->close_prompts();
  const Outcome traced = shell("LD_DEBUG=files '" + kBinary + "' status --ledger '" + folder.path().string() + "'");
  ASSERT_EQ(traced.code, 0) << traced.out;
  EXPECT_THAT(traced.out, HasSubstr("libsqlite3"));  // the trace works
  EXPECT_THAT(traced.out, Not(HasSubstr("libtorch")));
  EXPECT_THAT(traced.out, Not(HasSubstr("libdraftflow_models")));
}

TEST(Binary, ResultThatCannotBeWrittenIsExhausted) {
  const testing_support::TempFolder folder;
  open_sqlite_ledger(folder.path() / "ledger.sqlite3")->close_prompts();
  EXPECT_EQ(shell("'" + kBinary + "' status --ledger '" + folder.path().string() + "' > /dev/full").code, 5);
}

}  // namespace
}  // namespace draftflow::cli
