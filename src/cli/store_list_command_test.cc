// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <set>

#include "cli/stop.h"
#include "cli/store_command_testing.h"

namespace draftflow::cli {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

const std::set<std::string> kHostile{"line\nbreak",
                                     "\x1b[2J",
                                     "tab\there",
                                     "\xF0\x9F\xA6\x86 duck",
                                     "../../etc",
                                     "csi \xC2\x9B"
                                     "31m",
                                     "backwards \xE2\x80\xAE"
                                     "cba",
                                     "next\xE2\x80\xA8line",
                                     std::string(1024, 'x')};

using StoreList = StoreCommand;

TEST_F(StoreList, ARowAGeneration) {
  const SampleRef a = put("a"), b = put("b c");
  const Fetched leased = store()->get(a);
  const Outcome outcome = call({"ls", path()});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto lines = lines_of(outcome.out);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_THAT(lines[0], EndsWith("  ID"));
  EXPECT_THAT(outcome.out, HasSubstr(std::to_string(b.generation)));
  EXPECT_THAT(outcome.out, HasSubstr(" 36 B "));
  EXPECT_THAT(outcome.out, HasSubstr("  b c\n"));
  EXPECT_EQ(outcome.err, "");
}

TEST_F(StoreList, LeasesArePartOfTheRow) {
  const auto reader = store();
  const Fetched leased = reader->get(put("a"));
  const auto rows = json_lines(call({"ls", path(), "--json"}).out);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0]["leases"], 1);
  EXPECT_TRUE(std::filesystem::exists(rows[0]["path"].get<std::string>()));
}

TEST_F(StoreList, HostileIdsTakeALineEachAndCannotControlTheTerminal) {
  for (const std::string& id : kHostile) put(id);
  const Outcome text = call({"ls", path()});
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_EQ(lines_of(text.out).size(), kHostile.size() + 1);
  for (const char* bad : {"\x1b", "\t", "\xC2\x9B", "\xE2\x80\xAE", "\xE2\x80\xA8"}) {
    EXPECT_THAT(text.out, testing::Not(HasSubstr(bad)));
  }
  EXPECT_THAT(text.out, HasSubstr("  line\\x0abreak\n"));
  EXPECT_THAT(text.out, HasSubstr("  \xF0\x9F\xA6\x86 duck\n"));
  EXPECT_THAT(text.out, HasSubstr("  " + std::string(1024, 'x') + "\n"));

  const Outcome json = call({"ls", path(), "--json"});
  std::set<std::string> ids;
  for (const auto& row : json_lines(json.out)) ids.insert(row["sample_id"].get<std::string>());
  EXPECT_EQ(ids, kHostile);
  EXPECT_TRUE(std::all_of(json.out.begin(), json.out.end(), [](char c) { return c == '\n' || (c >= ' ' && c <= '~'); }));
}

TEST_F(StoreList, TheLimitIsOfRows) {
  for (const char* id : {"a", "b", "c"}) put(id);
  EXPECT_EQ(lines_of(call({"ls", path(), "--limit", "2", "--json"}).out).size(), 2u);
  EXPECT_EQ(lines_of(call({"ls", path(), "--limit", "0", "--json"}).out).size(), 3u);
}

TEST_F(StoreList, EachRowIsOutAtOnceAndAStopEndsIt) {
  for (int i = 0; i < 20; ++i) put(std::to_string(i));
  const Outcome outcome = call({"ls", path(), "--json"}, [](const std::string& text) {
    if (lines_of(text).size() == 3) stop_flag() = true;
  });
  stop_flag() = false;
  EXPECT_EQ(outcome.code, 130);
  EXPECT_EQ(lines_of(outcome.out).size(), 3u);
}

TEST_F(StoreList, AFileThatIsNotOursIsNamedAndTheRestIsListed) {
  put("a");
  const auto file = file_of(put("b"));
  replace_file(file, "junk");
  const Outcome outcome = call({"ls", path(), "--json"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_EQ(lines_of(outcome.out).size(), 1u);
  EXPECT_THAT(outcome.err, HasSubstr("damaged " + file.string()));
  EXPECT_THAT(outcome.err, HasSubstr("'draftflow store verify " + path() + "' reads everything"));
}

// The binary's wait status when nobody reads what it prints; its standard error in `errors`.
int run_unread(const std::string& path, bool ignore, const std::filesystem::path& errors) {
  int ends[2];
  if (::pipe(ends) != 0) return -1;
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGPIPE, ignore ? SIG_IGN : SIG_DFL);
    ::close(ends[0]);
    ::dup2(ends[1], STDOUT_FILENO);
    ::dup2(::open(errors.c_str(), O_WRONLY | O_CREAT, 0600), STDERR_FILENO);
    const std::string binary = std::string(DRAFTFLOW_BINARY_DIR) + "/bin/draftflow";
    ::execl(binary.c_str(), "draftflow", "store", "ls", path.c_str(), nullptr);
    ::_exit(127);
  }
  ::close(ends[0]);
  ::close(ends[1]);
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
}

TEST_F(StoreList, EndsWhenNobodyReads) {
  for (int i = 0; i < 20; ++i) put(std::to_string(i));
  const auto errors = temp_.path() / "errors";
  const int killed = run_unread(path(), false, errors);
  EXPECT_TRUE(WIFSIGNALED(killed) && WTERMSIG(killed) == SIGPIPE) << killed;
  EXPECT_EQ(read_text_file(errors), "");
  const int ignoring = run_unread(path(), true, errors);
  EXPECT_TRUE(WIFEXITED(ignoring)) << ignoring;
  EXPECT_EQ(WEXITSTATUS(ignoring), 5);
}

}  // namespace
}  // namespace draftflow::cli
