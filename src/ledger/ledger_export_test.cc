// SPDX-License-Identifier: Apache-2.0
//
// Stories of export and import, over every backend: what comes out goes in again and is the same ledger, and what is no whole
// export changes nothing.
#include <nlohmann/json.hpp>

#include "ledger/export_testing.h"
#include "ledger/ledger_queue_story.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing_support::expect_error;
using testing_support::export_of;
using testing_support::import_into;
using testing_support::make_ref;
using testing_support::make_task;

class LedgerExport : public testing_support::QueueStory {
 protected:
  std::unique_ptr<Ledger> open_other() {
    return GetParam().open(other_.path(), {.boot_id = boot_, .now_ms = [this] { return now_ms_; }});
  }
  // Something of everything.
  void live() {
    ledger_->declare("kind", "stream");
    declare(2);
    declare_queue(2);
    ledger_->ingest_prompts({make_task("p0"), make_task("p1"), make_task("p2")}, {{{7, 3, 0}}, {{7, 1, 0}, {9, 2, 0}}, {}});
    ledger_->fail_prompt(lease_one(), "bad \x01 text", false, 1);
    ledger_->fail_prompt(lease_one(), "passing", true, 5);
    lease_one("holder");
    commit_many(0, 9);
    timeline_ = ledger_->open_timeline({.group = group_, .width = 2, .rank = 1, .launch = "a"}).number;
    train(timeline_, 1, 3);
    ledger_->checkpointed(group_, timeline_, 2);
    ledger_->report_failed(group_, timeline_, ledger_->read_window(group_, timeline_, 3, {1, 2}).window->number,
                           {{SampleId("s7"), "holds NaN"}});
    const auto leases = lease(6);
    ack({leases[0], leases[1], leases[2], leases[3]});
    fail({leases[4]}, false, "unreadable");
    fail({leases[5]});
    lease(2, "other");
    ledger_->drop_refs(queue_, typed({"s8"}), "by hand", false);
    ledger_->declare_group({.group = GroupId("closed"), .window = 3});
    ledger_->close_group(GroupId("closed"));
    free({freeable_ids(2)[0]});
  }
  WindowAnswer next_window(Ledger& ledger, std::int64_t timeline) {
    const GroupStatus group = ledger.status().of(group_);
    return ledger.read_window(group_, timeline, (group.trained + group.durable + group.failed) / 2, {1, 2});
  }
  void train(std::int64_t timeline, std::int64_t step, int count) {
    for (int i = 0; i < count; ++i) {
      const auto window = next_window(*ledger_, timeline).window.value();
      ledger_->trained(group_, timeline, window.number, step + i, {});
    }
  }

  const testing_support::TempFolder other_;
  std::int64_t timeline_ = 0;
};
INSTANTIATE_SQL_STORY(LedgerExport);

TEST_P(LedgerExport, AnEmptyLedgerIsTwoLines) {
  const auto lines = export_of(*ledger_);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1], R"({"kind":"end","lines":1})");
  const auto other = open_other();
  import_into(*other, lines);
  EXPECT_EQ(other->id(), ledger_->id());
  EXPECT_EQ(export_of(*other), lines);
}

TEST_P(LedgerExport, WhatComesOutGoesInAndIsTheSameLedger) {
  live();
  const auto lines = export_of(*ledger_);
  const auto other = open_other();
  import_into(*other, lines);
  EXPECT_EQ(export_of(*other), lines);
  EXPECT_THAT(other->check(), IsEmpty());
  EXPECT_THAT(other->leases(), IsEmpty()) << "leases end";
  EXPECT_EQ(other->id(), ledger_->id());
  EXPECT_EQ(other->declared("kind"), "stream");
  EXPECT_EQ(other->declared("run_id"), "run");
  EXPECT_EQ(other->trained_ids(group_), ledger_->trained_ids(group_));
  EXPECT_EQ(other->all_committed_ids(), ledger_->all_committed_ids());
  EXPECT_EQ(other->failed_prompts(9), ledger_->failed_prompts(9));
  EXPECT_EQ(other->token_counts().size(), 2u);
  EXPECT_EQ(other->token_counts()[1].first_row, 1);
  const LedgerStatus there = other->status(), here = ledger_->status();
  EXPECT_EQ(there.resident_bytes, here.resident_bytes);
  EXPECT_EQ(there.freed, 1);
  EXPECT_EQ(there.prompts_pending, 2);
  EXPECT_EQ(there.of(queue_).available, here.of(queue_).available + here.of(queue_).leased);
  EXPECT_EQ(there.of(queue_).dropped, 1);
  EXPECT_EQ(there.of(group_).durable_step, 2);
  EXPECT_EQ(there.of(group_).windowed, 2);
  EXPECT_FALSE(there.of(GroupId("closed")).open);
}

TEST_P(LedgerExport, TheNewLedgerGoesOnFromTheOldOnesCheckpoint) {
  live();
  const auto before = ledger_->trained_ids(group_);
  const CheckpointMark saved = mark(timeline_, 2);
  const auto other = open_other();
  import_into(*other, export_of(*ledger_));
  expect_error<Conflict>([&] { other->open_timeline({.group = group_, .width = 2, .rank = 1, .launch = "a"}); },
                         "rank 1 of launch 'a', group 'train'");
  const TimelineInfo line = other->open_timeline({.group = group_, .resume = saved});
  EXPECT_EQ(line.first_step, 2);
  EXPECT_EQ(line.first_window, 2);
  std::vector<std::string> seen;
  for (std::int64_t window = 2; window < 4; ++window) {
    const Window found = other->read_window(group_, line.number, window).window.value();
    for (const SampleRef& ref : found.refs) seen.push_back(ref.sample_id.str());
    other->trained(group_, line.number, window, window + 1, {});
  }
  EXPECT_THAT(seen, ElementsAre("s4", "s5", "s6", "s7"));
  const QueueAnswer rest = other->lease_refs({.group = queue_, .max_refs = 9});
  EXPECT_THAT(ids(rest.leases), ElementsAre("s5", "s6", "s7"));
  EXPECT_EQ(rest.leases[0].attempt, 1);
  other->ack_refs(queue_, rest.leases);
  EXPECT_EQ(other->retry_failed(queue_, typed({"s4"})), 1);
  const auto prompts = other->lease_prompts(worker_, 9, 1000).leases;
  ASSERT_EQ(prompts.size(), 2u);
  EXPECT_TRUE(prompts[0].taken_over) << "it was leased when the old ledger was exported";
  EXPECT_FALSE(prompts[1].taken_over) << "nobody ever had it";
  EXPECT_THAT(other->check(), IsEmpty());
}

// A prompt that was leased, or whose lease had run out, may still be written by who had it.
TEST_P(LedgerExport, ThatAnEarlierHolderMayStillWriteGoesAlong) {
  ingest({"held", "ran out", "taken back", "given back", "never"});
  lease_one("holder", 1000);
  lease_one("slow", 10);
  now_ms_ += 10;
  ledger_->return_leases(HolderId("holder"));
  lease_one("holder", 1000);  // the first in the order, again
  lease_one("slow", 20);      // takes back "ran out", which is taken over
  lease_one("other", 1000);
  lease_one("other", 1000);
  ledger_->return_leases(HolderId("other"));
  now_ms_ += 30;  // and nobody asks
  const auto lines = export_of(*ledger_);
  const auto other = open_other();
  import_into(*other, lines);
  EXPECT_EQ(export_of(*other), lines) << "the expiry counts once";
  std::vector<std::string> taken_over;
  for (const PromptLease& lease : other->lease_prompts(worker_, 9, 1000).leases) {
    if (lease.taken_over) taken_over.push_back(lease.task.task_id.str());
  }
  EXPECT_THAT(taken_over, ElementsAre("held", "ran out"));
}

class LedgerExportOfPasses : public LedgerExport {
 protected:
  // Two passes and a half of three, with a failure in each of two; what the first checkpoints let go is gone.
  void live_through_passes() {
    ledger_->declare_group({.group = group_, .window = 2, .passes = 3});
    commit_many(0, 5);
    ledger_->close_prompts();
    timeline_ = open_timeline(*ledger_);
    for (std::int64_t number = 0; number < 5; ++number) {
      const Window window = ledger_->read_window(group_, timeline_, number).window.value();
      std::vector<FailedSample> failed;
      if (number == 1) failed.push_back({window.refs[0].sample_id, "in the first pass"});
      if (number == 2) failed.push_back({window.refs[1].sample_id, "in the second pass"});
      ledger_->trained(group_, timeline_, number, number + 1, failed);
    }
    ledger_->checkpointed(group_, timeline_, 5);
    free(freeable_ids(2));
    ledger_->read_window(group_, timeline_, 5);
    ledger_->report_failed(group_, timeline_, 5, {{SampleId("s3"), "before its step"}});
  }
};
INSTANTIATE_SQL_STORY(LedgerExportOfPasses);

TEST_P(LedgerExportOfPasses, TheNewLedgerIsInTheSamePass) {
  live_through_passes();
  const auto lines = export_of(*ledger_);
  const auto other = open_other();
  import_into(*other, lines);
  EXPECT_EQ(export_of(*other), lines);
  EXPECT_THAT(other->check(), IsEmpty());
  const GroupStatus here = ledger_->status().of(group_), there = other->status().of(group_);
  EXPECT_EQ(there.passes, 3);
  EXPECT_EQ(there.windowed, 2);
  EXPECT_EQ(there.durable, here.durable);
  EXPECT_EQ(there.failed, 2);
  EXPECT_EQ(there.pinned, here.pinned);
  EXPECT_EQ(other->trained_ids(group_), ledger_->trained_ids(group_));
  const TimelineInfo line = other->open_timeline({.group = group_, .resume = mark(timeline_, 5)});
  EXPECT_EQ(line.first_window, 5);
  const Window last = other->read_window(group_, line.number, 5).window.value();
  EXPECT_EQ(last.refs[0].sample_id.str(), "s2");
  other->trained(group_, line.number, 5, 6, {});
  EXPECT_EQ(other->read_window(group_, line.number, 6).state, WindowState::kEndOfStream);
  other->checkpointed(group_, line.number, 6);
  EXPECT_EQ(other->freeable(9).size(), 3u - static_cast<std::size_t>(other->status().freed) + 2u);
  EXPECT_THAT(other->check(), IsEmpty());
}

TEST_P(LedgerExport, TheCapAndItsWindowsGoAlong) {
  ledger_->declare_group({.group = group_, .window = 4, .passes = 2, .max_window_tokens = 25});
  commit_many(0, 7);  // of 10 tokens each
  ledger_->close_prompts();
  const std::int64_t timeline = open_timeline(*ledger_);
  for (std::int64_t number = 0; number < 4; ++number) {
    ASSERT_TRUE(ledger_->read_window(group_, timeline, number).window);
    ledger_->trained(group_, timeline, number, number + 1, {});
  }
  ledger_->checkpointed(group_, timeline, 4);
  const auto lines = export_of(*ledger_);
  const auto other = open_other();
  import_into(*other, lines);
  EXPECT_EQ(export_of(*other), lines);
  EXPECT_THAT(other->check(), IsEmpty());
  EXPECT_EQ(other->status().of(group_).durable, ledger_->status().of(group_).durable);
  EXPECT_EQ(other->status().of(group_).pinned, ledger_->status().of(group_).pinned);
  const TimelineInfo line = other->open_timeline({.group = group_, .resume = mark(timeline, 4)});
  const Window next = other->read_window(group_, line.number, 4).window.value();
  ASSERT_EQ(next.refs.size(), 2u);
  EXPECT_EQ(next.refs[0].sample_id.str(), "s2");

  // A cap that the windows do not keep to, or none at all, is another group's.
  for (const auto& [cap, why] : {std::pair{"19", "windows of other sizes"}, std::pair{"0", "windows of other sizes"}}) {
    std::vector<std::string> edited = lines;
    for (std::string& text : edited) {
      if (const auto at = text.find("\"max_window_tokens\":25"); at != std::string::npos) text.replace(at + 20, 2, cap);
    }
    const testing_support::TempFolder third;
    const auto refuses = GetParam().open(third.path(), {.boot_id = boot_, .now_ms = [this] { return now_ms_; }});
    expect_error<Corrupt>([&] { import_into(*refuses, edited); }, why);
  }
}

TEST_P(LedgerExportOfPasses, WhatDoesNotFitItsPassesIsRefused) {
  live_through_passes();
  const std::vector<std::string> whole = export_of(*ledger_);
  const auto other = open_other();
  const auto refused = [&](const std::string& kind, const auto& edit, const std::string& why) {
    std::vector<std::string> lines = whole;
    for (std::string& line : lines) {
      auto json = nlohmann::ordered_json::parse(line);
      if (json["kind"] != kind || !edit(json)) continue;
      line = json.dump();
      break;
    }
    SCOPED_TRACE(why);
    EXPECT_NE(lines, whole);
    expect_error<Corrupt>([&] { import_into(*other, lines); }, why);
    EXPECT_EQ(export_of(*other).size(), 2u);
  };
  const auto set = [](const char* field, const nlohmann::ordered_json& value) {
    return [field, value](auto& json) {
      json[field] = value;
      return true;
    };
  };
  const auto place = [](const char* sample, const char* field, const nlohmann::ordered_json& value) {
    return [sample, field, value](auto& json) {
      if (json["ref"]["sample_id"] != sample) return false;
      json["groups"]["train"][field] = value;
      return true;
    };
  };
  refused("group", set("passes", 0), "passes is 0: 1 to 1048576 are allowed");
  refused("group", set("passes", 2), "more or fewer windows than its passes have");
  refused("group", set("pass_windows", 1), "the first pass has 1 windows");
  refused("group", set("pass_windows", 3), "window 2 of a later pass is none that has it");
  refused("group", set("pass_windows", 9), "sample 's1' cannot be 'durable' in group 'train': window 2 of a later pass");
  refused("group", set("pass_windows", 0), "window 2 of a later pass is none that has it");
  refused("sample", place("s2", "window", 3), "the first pass has 2 windows");
  refused("sample", place("s1", "later_failures", {{3, "x"}}), "window 3 of a later pass is none that has it");
  refused("sample", place("s1", "later_failures", {{0, "x"}}), "window 0 of a later pass is none that has it");
  refused("sample", place("s1", "later_failures", {{6, "x"}}), "window 6 of a later pass is none that has it");
  refused("sample", place("s1", "later_failures", 3), "it must be a list of [window, reason]");
  refused("sample", place("s4", "later_failures", {{2, "x"}}), "it is in no window that could fail");
}

TEST_P(LedgerExport, IsOfOneMomentWhileOthersWrite) {
  live();
  const auto lines = export_of(*ledger_);
  const auto theirs = open();
  std::vector<std::string> during;
  ledger_->export_to([&](const std::string& line) {
    during.push_back(line);
    if (during.size() > 20) return;
    theirs->commit_samples({make_ref(fmt::format("new{}", during.size()))}, {});
    theirs->drop_prompts({TaskId("p2")}, "gone", false);
  });
  EXPECT_EQ(during, lines);
  EXPECT_GT(export_of(*ledger_).size(), lines.size());
}

// More than a page of each, so that the pages' edges are crossed.
TEST_P(LedgerExport, ManyRowsComePageByPage) {
  declare(1);
  declare_queue();
  std::vector<PromptTask> prompts;
  std::vector<std::vector<TokenCount>> counts;
  for (int i = 0; i < 600; ++i) {
    prompts.push_back(make_task(fmt::format("p{}", i)));
    counts.push_back({{i, 1, 0}});
  }
  ledger_->ingest_prompts(prompts, counts);
  commit_many(0, 1100);
  const std::int64_t timeline = open_timeline(*ledger_);
  for (std::int64_t window = 0; window < 530; ++window) {
    ledger_->read_window(group_, timeline, window);
    ledger_->trained(group_, timeline, window, window + 1, {});
  }
  const auto lines = export_of(*ledger_);
  const auto other = open_other();
  import_into(*other, lines);
  EXPECT_EQ(export_of(*other), lines);
  EXPECT_EQ(other->token_counts().size(), 600u);
  EXPECT_EQ(other->trained_ids(group_).size(), 530u);
}

// A late call of who had leased in the old ledger: the new one knows no such lease; what had ended before is known.
TEST_P(LedgerExport, LeasesEndAndWhatHadEndedIsStillKnown) {
  declare_queue();
  commit_many(0, 2);
  ingest({"p", "q"});
  const PromptLease done = lease_one(), held = lease_one();
  ledger_->commit_sample(make_ref("p"), done);
  const auto leases = lease(2);
  ack({leases[0]});
  const auto other = open_other();
  import_into(*other, export_of(*ledger_));
  other->commit_sample(make_ref("p"), done);
  other->ack_refs(queue_, {leases[0]});
  expect_error<Conflict>([&] { other->commit_sample(make_ref("q"), held); }, "the prompt is pending again");
  expect_error<Conflict>([&] { other->ack_refs(queue_, {leases[1]}); }, "the sample is available again");
}

TEST_P(LedgerExport, OnlyAnEmptyLedgerIsMadeAnother) {
  live();
  const auto lines = export_of(*ledger_);
  const auto expect_refused = [&](const std::string& what) {
    expect_error<Conflict>([&] { import_into(*ledger_, lines); }, what);
    EXPECT_EQ(export_of(*ledger_), lines);
  };
  expect_refused("of run 'run' with 3 prompts, 9 samples and 3 groups; an import makes a new ledger, name another file");
  const auto other = open_other();
  other->declare("kind", "offline");
  expect_error<Conflict>([&] { import_into(*other, lines); }, "is not empty");
}

TEST_P(LedgerExport, WhatIsNoWholeExportIsRefusedByLineAndChangesNothing) {
  live();
  const std::vector<std::string> whole = export_of(*ledger_);
  const auto other = open_other();
  const std::string id = other->id();
  const auto refused = [&](const std::vector<std::string>& lines, const std::string& why) {
    SCOPED_TRACE(why);
    expect_error<Corrupt>([&] { import_into(*other, lines); }, why);
    EXPECT_EQ(other->id(), id);
    EXPECT_EQ(export_of(*other).size(), 2u);
  };
  const auto edited = [&](const std::string& kind, const auto& edit) {
    std::vector<std::string> lines = whole;
    for (std::string& line : lines) {
      auto json = nlohmann::ordered_json::parse(line);
      if (json["kind"] != kind || !edit(json)) continue;
      line = json.dump();
      return lines;
    }
    ADD_FAILURE() << "no such line";
    return lines;
  };
  const auto set = [&](const std::string& kind, const std::string& field, const nlohmann::ordered_json& value) {
    return edited(kind, [&](auto& json) {
      json[field] = value;
      return true;
    });
  };
  refused({}, "the export ends after line 0 without its last line");
  refused({whole.begin(), whole.end() - 1}, "without its last line: it was cut short; nothing was imported");
  refused({whole.begin() + 1, whole.end()}, "line 1 of the export: the line of kind 'ledger' is the first one, and no other");
  std::vector<std::string> lines = whole;
  lines.erase(lines.begin() + 3);
  refused(lines, "lines should come before it");
  lines = whole;
  lines[1] = "{";
  refused(lines, "line 2 of the export: the line is not a JSON object; nothing was imported");
  lines[1] = R"({"kind":"thing"})";
  refused(lines, "line 2 of the export: a line of kind 'thing', which this program does not know");
  lines = whole;
  lines.push_back(lines.back());
  refused(lines, "a line after the end");
  refused(set("fact", "more", 1), "has fields that this program does not know");
  refused(set("prompt", "state", "leased"), "has the field 'state' as \"leased\": it must be 'pending', 'done', 'failed'");
  refused(set("prompt", "attempts", -1), "it must be a whole number, 0 to 2^60");
  refused(set("window", "group", "nobody"), "group 'nobody' has no line of its own before");
  refused(set("group", "window", 0), "window is 0: 1 to 1048576 are allowed");
  refused(set("group", "durable_windows", 3), "cannot be 'trained' in group 'train': by its window it is 'durable'");
  refused(set("ledger", "prompts", 4), "prompts: the first line says 4, the others 3");
  refused(set("ledger", "ledger_id", "x"), "it must be 32 hexadecimal digits");
  refused(set("tokens", "counts", {{7}}), "it must be a list of [token, count, first row]");
  refused(edited("sample",
                 [](auto& json) {
                   json["state"] = "freed";
                   return json["ref"]["sample_id"] == "s8";
                 }),
          "does not hold together");
  refused(edited("sample",
                 [](auto& json) {
                   if (json["ref"]["sample_id"] != "s1") return false;
                   json["ref"]["sample_id"] = "s0";
                   return true;
                 }),
          "1 of the last 9 records were there before: nothing may come twice");
  refused(edited("sample",
                 [](auto& json) {
                   if (json["ref"]["sample_id"] != "s2") return false;
                   json["groups"]["train"]["position"] = 7;
                   return true;
                 }),
          "group 'train': windows with gaps");
  refused(edited("sample",
                 [](auto& json) {
                   json["ref"].erase("num_tokens");
                   return true;
                 }),
          "sample ref has no field 'num_tokens'");
  expect_error<InvalidArgument>([&] { import_into(*other, set("ledger", "version", 9)); },
                                "the export has version 9: this program knows 1");
  import_into(*other, whole);
  EXPECT_EQ(export_of(*other), whole);
}

}  // namespace
}  // namespace draftflow
