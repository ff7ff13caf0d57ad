// SPDX-License-Identifier: Apache-2.0
//
// Stories of samples, over every backend: commit, repeat, replace, offline sets.
#include "ledger/ledger_story.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing_support::expect_error;
using testing_support::make_ref;
using testing_support::make_task;

class LedgerSamples : public testing_support::LedgerStory {};
INSTANTIATE_LEDGER_STORY(LedgerSamples);

TEST_P(LedgerSamples, ACommitCompletesItsPrompt) {
  ingest({"a"});
  ledger_->commit_sample(make_ref("a", 7, 250), lease_one());
  const LedgerStatus status = open()->status();
  EXPECT_EQ(status.prompts_done, 1);
  EXPECT_EQ(status.prompts_leased, 0);
  EXPECT_EQ(status.committed, 1);
  EXPECT_EQ(status.of(group_).available, 1);
  EXPECT_EQ(status.committed_tokens, 10);
  EXPECT_EQ(status.resident_bytes, 250U);
  EXPECT_TRUE(ledger_->is_committed(SampleId("a")));
  EXPECT_FALSE(ledger_->is_committed(SampleId("b")));
  EXPECT_EQ(ledger_->get_committed(SampleId("b")), std::nullopt);
}

TEST_P(LedgerSamples, ARefComesBackAsItWasCommitted) {
  ingest({"emoji \xF0\x9F\x98\x80/../x"});
  const PromptLease lease = lease_one();
  SampleRef ref = make_ref(lease.task.task_id.str(), 9'007'199'254'740'992ULL);
  ref.set_metadata("layers", "[1,2]");
  ref.other.emplace_back("from_the_future", "{\"a\":1}");
  ledger_->commit_sample(ref, lease);
  EXPECT_EQ(sample_ref_to_json(*ledger_->get_committed(ref.sample_id)), sample_ref_to_json(ref));
}

TEST_P(LedgerSamples, TheSameCommitAgainIsASuccess) {
  ingest({"a"});
  const PromptLease lease = lease_one();
  ledger_->commit_sample(make_ref("a"), lease);
  ledger_->commit_sample(make_ref("a"), lease);
  EXPECT_EQ(ledger_->status().committed, 1);
  EXPECT_EQ(ledger_->status().resident_bytes, 100U);
}

TEST_P(LedgerSamples, ByTheSameLeaseAGreaterGenerationReplacesTheRef) {
  ingest({"a"});
  const PromptLease lease = lease_one();
  ledger_->commit_sample(make_ref("a", 2, 100), lease);
  ledger_->commit_sample(make_ref("a", 3, 160), lease);
  EXPECT_EQ(ledger_->get_committed(SampleId("a"))->generation, 3U);
  EXPECT_EQ(ledger_->status().resident_bytes, 160U);
  EXPECT_EQ(ledger_->status().committed, 1);
  expect_error<Conflict>([&] { ledger_->commit_sample(make_ref("a", 2), lease); }, "generation 2 is no newer");
  PromptLease other = lease;
  other.token = "another";
  expect_error<Conflict>([&] { ledger_->commit_sample(make_ref("a", 4), other); }, "the prompt is done");
}

TEST_P(LedgerSamples, WhatAGroupHasTakenIsNotReplaced) {
  declare(1);
  ingest({"a"});
  const PromptLease lease = lease_one();
  ledger_->commit_sample(make_ref("a", 2), lease);
  next_window(*ledger_, open_timeline(*ledger_));
  expect_error<Conflict>([&] { ledger_->commit_sample(make_ref("a", 3), lease); }, "a group has taken the sample");
  EXPECT_EQ(ledger_->get_committed(SampleId("a"))->generation, 2U);
  ledger_->commit_sample(make_ref("a", 2), lease);
}

// A put of a committed id has retired the bytes that the ledger's ref means: what is told of it must not be passed over.
TEST_P(LedgerSamples, InBulkAGreaterGenerationReplacesTheRefToo) {
  EXPECT_EQ(ledger_->commit_samples({make_ref("a", 2, 100), make_ref("b", 3, 100)}, {}), 2);
  EXPECT_EQ(ledger_->commit_samples({make_ref("c", 4, 100), make_ref("a", 5, 160), make_ref("b", 3, 100)}, {}), 1);
  EXPECT_EQ(ledger_->get_committed(SampleId("a"))->generation, 5U);
  EXPECT_EQ(ledger_->status().resident_bytes, 360U);
  EXPECT_EQ(ledger_->status().committed, 3);
  EXPECT_EQ(ledger_->commit_samples({make_ref("a", 6, 100)}, {}), 0);
  EXPECT_EQ(ledger_->get_committed(SampleId("a"))->generation, 6U);
  EXPECT_THAT(ledger_->all_committed_ids(), ElementsAre("a", "b", "c"));
  EXPECT_THAT(ledger_->check(), testing::IsEmpty());
}

TEST_P(LedgerSamples, InBulkWhatCannotReplaceIsAConflictAndNothingIsCommitted) {
  declare(1);
  ledger_->commit_samples({make_ref("a", 2), make_ref("b", 2)}, {});
  next_window(*ledger_, open_timeline(*ledger_));  // takes a
  expect_error<Conflict>(
      [&] {
        ledger_->commit_samples({make_ref("c", 9), make_ref("b", 8), make_ref("a", 7)}, {});
      },
      "generation 7 comes too late, a group has taken the sample");
  expect_error<Conflict>(
      [&] {
        ledger_->commit_samples({make_ref("c", 9), make_ref("b", 1)}, {});
      },
      "generation 1 is no newer");
  for (const auto& twice : {std::vector{make_ref("d", 1), make_ref("d", 2)}, std::vector{make_ref("b", 2), make_ref("b", 3)},
                            std::vector{make_ref("b", 4), make_ref("b", 5)}}) {
    expect_error<InvalidArgument>([&] { ledger_->commit_samples(twice, {}); }, "comes twice in one call");
  }
  EXPECT_EQ(ledger_->get_committed(SampleId("b"))->generation, 2U);
  EXPECT_THAT(ledger_->all_committed_ids(), ElementsAre("a", "b"));
  EXPECT_EQ(ledger_->commit_samples({make_ref("d", 1), make_ref("d", 1)}, {}), 1);
  EXPECT_THAT(ledger_->check(), testing::IsEmpty());
}

TEST_P(LedgerSamples, CommitOrderIsTheOrderOfCommits) {
  ingest({"a", "b", "c"});
  PromptAnswer all = ledger_->lease_prompts(worker_, 3, 1000);
  for (const int i : {2, 0, 1}) {
    ledger_->commit_sample(make_ref(all.leases[static_cast<std::size_t>(i)].task.task_id.str()),
                           all.leases[static_cast<std::size_t>(i)]);
  }
  EXPECT_THAT(ledger_->all_committed_ids(), ElementsAre("c", "a", "b"));
}

TEST_P(LedgerSamples, WrongCommitsChangeNothing) {
  ingest({"a"});
  const PromptLease lease = lease_one();
  expect_error<InvalidArgument>([&] { ledger_->commit_sample(make_ref("b"), lease); }, "sample 'b' cannot complete prompt 'a'");
  SampleRef huge = make_ref("a");
  huge.estimated_bytes = ~0ULL;
  expect_error<InvalidArgument>([&] { ledger_->commit_sample(huge, lease); }, "estimated_bytes");
  SampleRef negative = make_ref("a");
  negative.num_tokens = -1;
  expect_error<InvalidArgument>([&] { ledger_->commit_sample(negative, lease); }, "num_tokens is -1");
  SampleRef odd = make_ref("a");
  odd.set_metadata("x", "{broken");
  expect_error<InvalidArgument>([&] { ledger_->commit_sample(odd, lease); }, "cannot be written as JSON");
  EXPECT_EQ(ledger_->status().committed, 0);
  EXPECT_EQ(ledger_->status().prompts_leased, 1);
  ledger_->commit_sample(make_ref("a"), lease);
}

TEST_P(LedgerSamples, OfflineSetsCommitInOrderAndOnce) {
  std::vector<SampleRef> refs;
  for (const char* id : {"x:0", "x:1", "x:2"}) {
    refs.push_back(make_ref(id));
    refs.back().feature_store_uri = std::string("file:///data/") + id;
  }
  EXPECT_EQ(ledger_->commit_samples({refs[0], refs[1]}, {{{5, 1, 0}}, {{6, 1, 0}}}), 2);
  EXPECT_EQ(ledger_->commit_samples(refs, {{{5, 100, 0}}, {}, {{5, 2, 0}}}), 1);
  EXPECT_THAT(ledger_->all_committed_ids(), ElementsAre("x:0", "x:1", "x:2"));
  const std::vector<TokenCount> counts = ledger_->token_counts();
  ASSERT_EQ(counts.size(), 2U);
  EXPECT_EQ(counts[0].count, 3);
  EXPECT_EQ(counts[0].first_row, 0);
  EXPECT_EQ(counts[1].first_row, 1);
  EXPECT_EQ(ledger_->status().committed, 3);
  EXPECT_EQ(ledger_->status().resident_bytes, 0U);  // the user's own files
  EXPECT_EQ(ledger_->commit_samples({}, {}), 0);
}

TEST_P(LedgerSamples, AnOfflineBatchIsAllOrNothing) {
  SampleRef bad = make_ref("bad");
  bad.set_metadata("x", "{broken");
  EXPECT_THROW(ledger_->commit_samples({make_ref("good"), bad}, {}), InvalidArgument);
  EXPECT_FALSE(ledger_->is_committed(SampleId("good")));
  EXPECT_EQ(ledger_->status().committed, 0);
}

TEST_P(LedgerSamples, ABatchOfAnyLengthKeepsItsOrderAndSkipsWhatIsThere) {
  std::vector<SampleRef> refs;
  std::vector<std::string> ids;
  for (int i = 0; i < 700; ++i) ids.push_back(fmt::format("x:{}", i));
  for (const std::string& id : ids) refs.push_back(make_ref(id));
  EXPECT_EQ(ledger_->commit_samples({refs[0], refs[1], refs[0]}, {}), 2) << "twice in one call";
  std::vector<std::vector<TokenCount>> counts(refs.size(), {{7, 1, 0}});
  EXPECT_EQ(ledger_->commit_samples(refs, counts), 698);
  EXPECT_EQ(ledger_->commit_samples(refs, counts), 0);
  EXPECT_EQ(ledger_->all_committed_ids(), ids);
  EXPECT_EQ(ledger_->status().committed_tokens, 7000);
  EXPECT_EQ(ledger_->status().resident_bytes, 70'000U);
  ASSERT_EQ(ledger_->token_counts().size(), 1U);
  EXPECT_EQ(ledger_->token_counts()[0].count, 698);
  EXPECT_EQ(ledger_->token_counts()[0].first_row, 2);
}

TEST_P(LedgerSamples, FilesInPlaceAreNeverFreed) {
  declare(1);
  SampleRef ref = make_ref("x");
  ref.feature_store_uri = "file:///data/x";
  ledger_->commit_samples({ref}, {});
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 1);
  ledger_->checkpointed(group_, timeline, 1);
  EXPECT_THAT(freeable_ids(), IsEmpty());
  EXPECT_THROW(free({"x"}), Conflict);
}

// A retry that brings files of the user's where bytes in a store may already go, and the other way round.
TEST_P(LedgerSamples, AFileInPlaceNeverTakesTheNameOfBytesThatMayGo) {
  declare(1);
  for (const bool file_first : {false, true}) {
    const std::string id = file_first ? "f" : "s";
    ingest({id});
    const PromptLease lease = lease_one();
    SampleRef first = make_ref(id, 1), second = make_ref(id, 2);
    (file_first ? first : second).feature_store_uri = "file:///data/" + id;
    ledger_->commit_sample(first, lease);
    ledger_->drop_refs(group_, {SampleId(id)}, "by hand");
    expect_error<Conflict>([&] { ledger_->commit_sample(second, lease); }, "");
    const std::vector<SampleRef> going = ledger_->freeable(9);
    for (const SampleRef& ref : going) EXPECT_FALSE(ref.feature_store_uri.starts_with("file://"));
    EXPECT_EQ(going.size(), 1u) << "the bytes in the store, of the first generation";
    EXPECT_THAT(ledger_->check(), IsEmpty());
  }
  free({"s"});
  EXPECT_EQ(ledger_->status().resident_bytes, 0u);
}

// While its group still waits for it, each may replace the other, and only bytes in a store are ever handed out.
TEST_P(LedgerSamples, AFileInPlaceReplacesBytesAndIsNotHandedOut) {
  declare(1);
  ingest({"a", "b"});
  const PromptLease a = lease_one(), b = lease_one();
  SampleRef file_a = make_ref("a", 2), file_b = make_ref("b", 1);
  file_a.feature_store_uri = "file:///data/a";
  file_b.feature_store_uri = "file:///data/b";
  ledger_->commit_sample(make_ref("a", 1), a);
  ledger_->commit_sample(file_a, a);
  EXPECT_EQ(ledger_->status().resident_bytes, 0u);
  ledger_->commit_sample(file_b, b);
  ledger_->commit_sample(make_ref("b", 2), b);
  EXPECT_EQ(ledger_->status().resident_bytes, 100u);
  const std::int64_t timeline = open_timeline(*ledger_);
  train(timeline, 1, 2);
  ledger_->checkpointed(group_, timeline, 2);
  EXPECT_THAT(freeable_ids(), testing::ElementsAre("b"));
  ledger_->close_group(group_);
  EXPECT_THAT(freeable_ids(), testing::ElementsAre("b"));
  EXPECT_THAT(ledger_->check(), IsEmpty());
}

TEST_P(LedgerSamples, FreeingAnUnknownSampleIsRefused) {
  expect_error<InvalidArgument>([&] { free({"ghost"}); }, "'ghost' is not in ledger");
}

}  // namespace
}  // namespace draftflow
