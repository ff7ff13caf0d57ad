// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "cli/app.h"
#include "cli/bench.h"
#include "cli/bench_raw.h"
#include "cli/stop.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

const std::string kBinary = std::string(DRAFTFLOW_BINARY_DIR) + "/bin/draftflow";

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

std::vector<std::string> names_of(const json& rows) {
  std::vector<std::string> names;
  for (const json& row : rows) names.push_back(row["name"]);
  return names;
}

// Until the folder is empty, or long after it should be.
bool becomes_empty(const testing_support::TempFolder& folder) {
  for (int i = 0; i < 1000 && !folder.list().empty(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  return folder.list().empty();
}

pid_t start_bench(const testing_support::TempFolder& folder) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    const int null = ::open("/dev/null", O_WRONLY);
    ::dup2(null, STDOUT_FILENO);
    ::dup2(null, STDERR_FILENO);
    ::execl(kBinary.c_str(), "draftflow", "bench", "store", "--rows", "put_1m_resident", "--dir", folder.path().c_str(),
            nullptr);
    ::_exit(127);
  }
  for (int i = 0; i < 10'000; ++i) {
    for (const std::string& name : folder.list()) {
      if (std::filesystem::exists(folder.path() / name / "resident" / "bench" / "store.json")) return pid;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  ADD_FAILURE() << "the benchmark made no store";
  return pid;
}

int wait_for(pid_t pid) {
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(BenchCommand, EveryRowHasItsLimitAndNothingIsLeft) {
  const testing_support::TempFolder disk, memory;
  const Outcome outcome = call({"bench", "store", "--tiny", "--json", "--dir", disk.path(), "--tmpfs", memory.path()});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json rows = json::parse(outcome.out);
  EXPECT_THAT(names_of(rows),
              UnorderedElementsAre("put_64mib_ext4", "put_64mib_tmpfs", "get_clone_64mib", "get_zero_copy_64mib_us", "put_4kib",
                                   "get_4kib", "release_4kib", "put_1m_resident", "get_1m_resident", "remove_1m_resident",
                                   "health_1m_resident_us", "rss_1m_mib", "pipe_64mib"));
  for (const json& row : rows) {
    EXPECT_FALSE(row["unit"].get<std::string>().empty()) << row;
    EXPECT_THAT(row["goal"].get<std::string>(), testing::AnyOf(HasSubstr("ratio "), HasSubstr("value "))) << row;
    EXPECT_TRUE(row["met"].is_boolean()) << row;
    EXPECT_TRUE(row["note"].is_string()) << row;
    if (row["name"] == "rss_1m_mib") continue;  // may be 0
    EXPECT_GT(row["value"].get<double>(), 0) << row;
    EXPECT_GT(row["limit"].get<double>(), 0) << row;
    EXPECT_DOUBLE_EQ(row["ratio"].get<double>(), row["value"].get<double>() / row["limit"].get<double>());
  }
  EXPECT_THAT(disk.list(), IsEmpty());
  EXPECT_THAT(memory.list(), IsEmpty());
}

TEST(BenchCommand, OnlyTheRowsAskedForInATable) {
  const testing_support::TempFolder disk;
  const Outcome outcome =
      call({"bench", "store", "--tiny", "--rows", "get_4kib,health_1m_resident_us", "--dir", disk.path(), "--tmpfs", "/none"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("row "));
  EXPECT_THAT(outcome.out, HasSubstr("\nget_4kib "));
  EXPECT_THAT(outcome.out, HasSubstr("\nhealth_1m_resident_us "));
  EXPECT_THAT(outcome.out, HasSubstr("100 resident"));
  EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 3);
  EXPECT_THAT(disk.list(), IsEmpty());
}

TEST(BenchCommand, RefusesRowsAndFoldersThatAreNotThere) {
  const testing_support::TempFolder disk;
  const Outcome row = call({"bench", "store", "--tiny", "--rows", "nonsense", "--dir", disk.path()});
  EXPECT_EQ(row.code, 2);
  EXPECT_THAT(row.err, HasSubstr("--rows: 'nonsense' is no row; there are put_64mib_ext4, "));
  const Outcome dir = call({"bench", "store", "--tiny", "--dir", disk.path() / "none"});
  EXPECT_EQ(dir.code, 3);
  EXPECT_THAT(dir.err, HasSubstr("none is not a folder that is there: name another with --dir or --tmpfs"));
  EXPECT_EQ(call({"bench"}).code, 2);
  EXPECT_THAT(disk.list(), IsEmpty());
}

TEST(BenchCommand, InterruptEndsWith130AndLeavesNothing) {
  const testing_support::TempFolder disk;
  const pid_t pid = start_bench(disk);
  ::kill(pid, SIGINT);
  EXPECT_EQ(wait_for(pid), kInterruptedExitCode);
  EXPECT_THAT(disk.list(), IsEmpty());
}

TEST(BenchCommand, EvenKilledLeavesNothing) {
  const testing_support::TempFolder disk;
  const pid_t pid = start_bench(disk);
  ::kill(pid, SIGKILL);
  EXPECT_EQ(wait_for(pid), -SIGKILL);
  EXPECT_TRUE(becomes_empty(disk));
}

TEST(Bench, GoalsAreOfTheValueOrTheRatio) {
  const auto met = [](double value, double limit, const BenchGoal& goal) {
    return json::parse(bench_json({{"row", value, "us", limit, goal, ""}}))[0]["met"].get<bool>();
  };
  EXPECT_TRUE(met(85, 100, ratio_at_least(0.85)));
  EXPECT_FALSE(met(84, 100, ratio_at_least(0.85)));
  EXPECT_FALSE(met(1.3, 1, ratio_at_most(1.2)));
  EXPECT_TRUE(met(50, 1, value_at_most(50)));
  EXPECT_FALSE(met(29'999, 1, value_at_least(30'000)));
  EXPECT_THAT(bench_table({{"row", 84, "us", 100, ratio_at_least(0.85), "why"}}), HasSubstr("missed by 2 %; why"));
  EXPECT_THAT(bench_table({{"row", 85, "us", 100, ratio_at_least(0.85), ""}}), HasSubstr("ratio >= 0.85   met\n"));
}

TEST(Bench, AlternatesAndDropsTheFirst) {
  std::string order;
  double next = 100;
  const auto medians = alternate(
      3,
      [&] {
        order += 'v';
        const double seconds = next;
        next = next == 100 ? 1 : next + 1;
        return std::vector{seconds, 2 * seconds};
      },
      [&] {
        order += 'l';
        return std::vector{10.0, 20.0};
      });
  EXPECT_EQ(order, "vllvvllv");
  ASSERT_EQ(medians.size(), 2u);
  EXPECT_EQ(medians[0].value, 2);
  EXPECT_EQ(medians[1].value, 4);
  EXPECT_EQ(medians[1].limit, 20);
}

TEST(BenchProcess, AHelpersErrorIsTold) {
  ForkedChild good([] { return std::string("done"); });
  EXPECT_EQ(good.result(), "done");
  ForkedChild bad([]() -> std::string { throw NotFound("no such thing"); });
  try {
    bad.result();
    FAIL();
  } catch (const Unavailable& error) {
    EXPECT_STREQ(error.what(), "a helper process failed: no such thing");
  }
  ForkedChild dead([]() -> std::string { ::_exit(3); });
  EXPECT_THROW(dead.result(), Unavailable);
}

TEST(BenchCommand, TheLedgersRowsAreMeasuredAndRemoved) {
  const testing_support::TempFolder folder;
  const std::string dir = folder.path().string();
  std::ostringstream out, err;
  const char* const words[] = {"draftflow", "bench", "ledger", "--tiny", "--json", "--dir", dir.c_str()};
  ASSERT_EQ(run_cli(7, words, {out, err, false}), 0) << err.str();
  std::vector<std::string> names;
  for (const auto& row : nlohmann::json::parse(out.str())) {
    names.push_back(row["name"]);
    EXPECT_GT(row["value"].get<double>(), 0) << row;
    EXPECT_GT(row["limit"].get<double>(), 0) << row;
  }
  std::vector<std::string> expected{"sqlite_commit_256",      "sqlite_commit_256_random", "sqlite_lease_ack_256",
                                    "sqlite_lease_behind_1m", "window_256_8_ms",          "reconcile_1m_s",
                                    "reconcile_1m_rss_mib"};
  expected.push_back("memory_lease_ack_1m");
  const bool has_server = err.str().find("postgres_lease_ack_256_4 is left out: ") == std::string::npos;
  if (has_server) expected.push_back("postgres_lease_ack_256_4");
  EXPECT_EQ(names, expected) << err.str();
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  const char* const wrong[] = {"draftflow", "bench", "ledger", "--rows", "nothing"};
  EXPECT_EQ(run_cli(5, wrong, {out, err, false}), 2);
}

// The hand-made layout is the store's: what a store put, the raw calls find, and the other way round.
TEST(BenchRaw, LayoutIsTheStores) {
  const testing_support::TempFolder folder;
  const auto store = create_shared_dir_store(folder.path(), StoreId("bench"), {});
  const SampleRef ref = store->put(bench_sample(4096), SampleId("sample-1"), bench_metadata());
  RawStore raw(folder.path() / "bench");
  const RawNames theirs = raw_names("sample-1", ref.generation);
  std::vector<std::byte> bytes(raw.size_of(theirs));
  raw.get(theirs, bytes);
  raw.release(theirs);
  const RawNames ours = raw_names("sample-2", 5);
  raw.put(ours, bytes);
  std::vector<std::string> ids;
  store->for_each(
      [&](const ResidentSample& sample) {
        ids.push_back(sample.path.filename());
        return true;
      },
      [&](const std::filesystem::path& path, const std::string&) { ids.push_back(path.filename()); });
  EXPECT_THAT(ids,
              UnorderedElementsAre("sample-1.g" + std::to_string(ref.generation) + ".safetensors", "sample-2.g5.safetensors"));
  raw.remove(ours);
  EXPECT_TRUE(store->remove(ref));
}

}  // namespace
}  // namespace draftflow::cli
