// SPDX-License-Identifier: Apache-2.0
#include <csignal>

#include "cli/stop.h"
#include "cli/store_command_testing.h"

namespace draftflow::cli {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

using StoreVerify = StoreCommand;

TEST_F(StoreVerify, AWholeStoreIsWhole) {
  for (const char* id : {"a", "b\n", "c"}) put(id);
  const Outcome outcome = call({"verify", path()});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, StartsWith("checked 3 generations, 108 B in "));
  EXPECT_THAT(outcome.out, HasSubstr(": 0 damaged\n"));
  EXPECT_THAT(outcome.err, HasSubstr("verify: 3/3 samples"));
  EXPECT_THAT(outcome.err, HasSubstr("108 B, "));
  EXPECT_EQ(store()->health().live_leases, 0u);
}

TEST_F(StoreVerify, NamesAFlippedByteAndATruncatedFile) {
  put("good");
  const auto flipped = file_of(put("flipped")), cut = file_of(put("cut"));
  flip(flipped);
  std::filesystem::resize_file(cut, std::filesystem::file_size(cut) - 1);
  const Outcome outcome = call({"verify", path()});
  EXPECT_EQ(outcome.code, 7);
  const auto lines = lines_of(outcome.out);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_THAT(lines[0], StartsWith("damaged "));
  EXPECT_THAT(lines[1], StartsWith("damaged "));
  EXPECT_THAT(outcome.out, HasSubstr("(" + flipped.string() + "): tensor 'hidden_state' differs from what was written"));
  EXPECT_THAT(outcome.out, HasSubstr(cut.string()));
  EXPECT_THAT(lines[2], StartsWith("checked 3 generations, "));
  EXPECT_THAT(lines[2], HasSubstr(": 2 damaged"));
  EXPECT_THAT(outcome.err, HasSubstr("Corrupt: 2 of the 3 generations in " + path() + " are damaged and are named above"));
}

TEST_F(StoreVerify, EveryFlippedByteIsFound) {
  const auto file = file_of(put("a"));
  const std::string good = read_text_file(file);
  for (std::size_t i = 0; i < good.size(); i += 13) {
    std::string bad = good;
    bad[i] ^= 0x04;
    replace_file(file, bad);
    EXPECT_EQ(call({"verify", path()}).code, 7) << "byte " << i;
  }
  replace_file(file, good);
  EXPECT_EQ(call({"verify", path()}).code, 0);
}

TEST_F(StoreVerify, AnothersFileIsDamage) {
  const auto a = file_of(put("a")), b = file_of(put("b"));
  std::filesystem::copy_file(a, b, std::filesystem::copy_options::overwrite_existing);
  const Outcome outcome = call({"verify", path()});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.out, HasSubstr("damaged " + b.string() + ": the file says it is sample 'a'"));
}

TEST_F(StoreVerify, JsonIsALineEach) {
  put("good");
  const auto file = file_of(put("flipped"));
  flip(file);
  const Outcome outcome = call({"verify", path(), "--json"});
  EXPECT_EQ(outcome.code, 7);
  const auto lines = json_lines(outcome.out);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["kind"], "damaged");
  EXPECT_EQ(lines[0]["path"], file.string());
  EXPECT_EQ(lines[1]["kind"], "summary");
  EXPECT_EQ(lines[1]["checked"], 2);
  EXPECT_EQ(lines[1]["damaged"], 1);
}

TEST_F(StoreVerify, WhatWasFreedMeanwhileIsNoDamage) {
  const SampleRef ref = put("a");
  const ResidentSample before = store()->resident(ref);
  EXPECT_EQ(check_sample(*store(), before).state, SampleCheck::State::kGood);
  store()->remove(ref);
  EXPECT_EQ(check_sample(*store(), before).state, SampleCheck::State::kFreed);
}

TEST_F(StoreVerify, InterruptedEndsWith130AndSaysHowFarItCame) {
  for (int i = 0; i < 20; ++i) flip(file_of(put(std::to_string(i))));
  struct sigaction old_interrupt {
  }, old_terminate{};
  ::sigaction(SIGINT, nullptr, &old_interrupt);
  ::sigaction(SIGTERM, nullptr, &old_terminate);
  install_stop_signals();
  const Outcome outcome = call({"verify", path()}, [](const std::string& text) {
    if (lines_of(text).size() == 2 && !stop_flag()) ::raise(SIGINT);
  });
  stop_flag() = false;
  ::sigaction(SIGINT, &old_interrupt, nullptr);
  ::sigaction(SIGTERM, &old_terminate, nullptr);
  EXPECT_EQ(outcome.code, 130);
  const auto lines = lines_of(outcome.out);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_THAT(lines[2], StartsWith("interrupted after 2 generations, "));
}

}  // namespace
}  // namespace draftflow::cli
