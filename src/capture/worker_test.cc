// SPDX-License-Identifier: Apache-2.0
#include "draftflow/capture/worker.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "capture/capture_testing.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/ledger/ledger.h"
#include "draftflow/model/bridge.h"
#include "draftflow/model/compute.h"
#include "draftflow/model/llama.h"
#include "draftflow/model/tokenizer.h"
#include "draftflow/store/feature_store.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;
using namespace capture_testing;

// --- what is captured

TEST_F(CaptureTest, FeaturesAreTheTargetsOwnBitForBit) {
  const std::string text = "It was a bright cold day in April.";
  const CaptureProgress progress = capture_prompts(R"({"input_ids":[1,5,9,2047],"loss_mask":[0,0,1,1]})"
                                                   "\n\n" +
                                                   Json({{"text", text}}).dump() + "\n");
  const std::vector<Ids> ids = {{1, 5, 9, 2047}, Tokenizer(options_.tokenizer).encode(text)};
  const std::vector<Ids> masks = {{0, 0, 1, 1}, Ids(ids[1].size(), 1)};
  const std::vector<SampleRef> found = refs();
  ASSERT_EQ(found.size(), 2U);
  for (std::size_t i = 0; i < 2; ++i) {
    const TensorMap features = store()->read(found[i]);
    EXPECT_TRUE(to_torch(*find_tensor(features, "input_ids")).equal(at::tensor(ids[i], at::kLong)));
    EXPECT_TRUE(to_torch(*find_tensor(features, "loss_mask")).equal(at::tensor(masks[i], at::kLong)));
    const Llama::Output out = forward(ids[i], {1, 3, 4});
    const at::Tensor hidden = to_torch(*find_tensor(features, "hidden_state"));
    EXPECT_EQ(hidden.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(hidden.equal(out.last_hidden.to(at::kBFloat16)));
    EXPECT_TRUE(to_torch(*find_tensor(features, "aux_hidden_state")).equal(at::cat(out.captured, -1).to(at::kBFloat16)));
    EXPECT_EQ(found[i].num_tokens, static_cast<std::int64_t>(ids[i].size()));
  }
  EXPECT_EQ(found[1].sample_id.str(), "r:00000001");
  EXPECT_EQ(found[1].source_task_id, "r:00000001");
  EXPECT_EQ(*found[1].find_metadata("source"), "\"prompts.jsonl:3\"");
  EXPECT_EQ(*found[1].find_metadata("aux_hidden_state_layer_ids"), "[1,3,4]");
  EXPECT_EQ(*found[1].find_metadata("format"), "\"online_eagle3\"");
  EXPECT_EQ(progress.captured, 2);
  EXPECT_EQ(progress.tokens, static_cast<std::int64_t>(4 + ids[1].size()));
  EXPECT_EQ(progress.bytes, found[0].estimated_bytes + found[1].estimated_bytes);
  EXPECT_EQ(ledger()->declared("kind"), "stream");
  EXPECT_EQ(ledger()->declared("capture_layers"), "[1,3,4]");
}

TEST_F(CaptureTest, NamedLayersAndATypeAreTakenInTheirOrder) {
  options_.layers = {7, 0, 2};
  options_.dtype = "float32";
  capture_prompts(ids_line({4, 3, 2}));
  const Llama::Output out = forward({4, 3, 2}, {7, 0, 2});
  const TensorMap features = store()->read(refs().at(0));
  EXPECT_TRUE(to_torch(*find_tensor(features, "aux_hidden_state")).equal(at::cat(out.captured, -1)));
  EXPECT_TRUE(to_torch(*find_tensor(features, "hidden_state")).equal(out.last_hidden));
}

TEST_F(CaptureTest, TokensAreCountedUnderTheMask) {
  capture_prompts(R"({"input_ids":[7,7,9],"loss_mask":[0,1,1]})"
                  "\n"
                  R"({"input_ids":[9,8]})"
                  "\n"
                  R"({"input_ids":[5]})"
                  "\n");
  std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t>> counts;
  for (const TokenCount& entry : ledger()->token_counts()) counts.emplace_back(entry.token, entry.count, entry.first_row);
  std::sort(counts.begin(), counts.end());
  EXPECT_THAT(counts, ElementsAre(std::tuple(7, 1, 0), std::tuple(8, 1, 1), std::tuple(9, 2, 0)));
}

// --- bad prompts

TEST_F(CaptureTest, BadPromptsFailByNameAndTheOthersAreCaptured) {
  const CaptureProgress progress = capture_prompts(ids_line({1, 2, 3}) +         //
                                                   "{\"text\":\"caf\xE9\"}\n" +  //
                                                   ids_line(Ids(65, 4)) +        //
                                                   ids_line({1, 2048}) +         //
                                                   ids_line({-1, 2}) +           //
                                                   "{\"text\":\"\"}\n" +         //
                                                   ids_line({}) +                //
                                                   "{\"input_ids\":\n" +         //
                                                   ids_line(Ids(64, 4)));
  EXPECT_THAT(reasons(),
              ElementsAre("prompt r:00000001: prompts.jsonl line 2: it is not UTF-8 at byte 12",
                          "prompt r:00000002: prompts.jsonl line 3: it has 65 tokens: 2 to 64 are allowed",
                          "prompt r:00000003: prompts.jsonl line 4: token 2048 is outside 0 to 2047",
                          "prompt r:00000004: prompts.jsonl line 5: token -1 is outside 0 to 2047",
                          "prompt r:00000005: prompts.jsonl line 6: the text is empty: a prompt needs at least one token",
                          "prompt r:00000006: prompts.jsonl line 7: it has 0 tokens: 2 to 64 are allowed",
                          "prompt r:00000007: prompts.jsonl line 8: it is not a JSON object"));
  EXPECT_THAT(ledger()->all_committed_ids(), ElementsAre("r:00000000", "r:00000008"));
  EXPECT_EQ(progress.captured, 2);
  EXPECT_EQ(progress.failed, 7);
  EXPECT_EQ(progress.done, 9);
  EXPECT_EQ(progress.total, 9);
}

TEST_F(CaptureTest, PlainTextHasBadLinesToo) {
  options_.max_length = 12;
  capture_prompts("Good day.\n\n\xFF\xFE\nA line of far too many words for a limit of only twelve tokens, surely.\nBye.\n",
                  "p.txt");
  EXPECT_THAT(reasons(), ElementsAre(HasSubstr("prompt r:00000001: p.txt line 3: the text is not UTF-8 at byte 0"),
                                     testing::AllOf(HasSubstr("prompt r:00000002: p.txt line 4: it has "),
                                                    HasSubstr("tokens: 2 to 12 are allowed"))));
  EXPECT_EQ(status().committed, 2);
}

// Another program may have put prompts on the books.
TEST_F(CaptureTest, StrangePayloadsFailByName) {
  const Json payloads = Json::parse(R"([{"text":"raw"}, [1], {"input_ids":"x"}, {"input_ids":[1,2],"loss_mask":[1]},
      {"input_ids":[1,2],"loss_mask":7}, {"input_ids":[]}, {"input_ids":[1,4000]}, {"error":7}, {"input_ids":[1,2]}])");
  std::vector<PromptTask> tasks;
  for (const Json& payload : payloads) {
    const std::string id = std::to_string(tasks.size());
    tasks.push_back({.task_id = TaskId(id), .run_id = RunId("r"), .source_id = "", .payload = payload.dump()});
  }
  ledger()->ingest_prompts(tasks, {});
  ledger()->close_prompts();
  const CaptureProgress progress = capture();
  EXPECT_EQ(progress.captured, 1);
  EXPECT_EQ(progress.failed, 8);
  EXPECT_THAT(reasons(),
              ElementsAre("prompt 0: its payload has no input_ids", "prompt 1: its payload is no JSON object",
                          HasSubstr("prompt 2: its payload cannot be read"),
                          "prompt 3: its payload has 1 loss_mask entries for 2 input_ids",
                          HasSubstr("prompt 4: its payload cannot be read"), HasSubstr("prompt 5: token ids must be"),
                          HasSubstr("prompt 6: token id 4000 is outside the vocabulary of 2048"),
                          HasSubstr("prompt 7: its payload cannot be read")));
}

TEST_F(CaptureTest, AStrangeFileNameIsNoProblem) {
  EXPECT_EQ(capture_prompts(ids_line({1, 2}) + ids_line({1}), "caf\xE9.jsonl").captured, 1);
  EXPECT_EQ(reasons().size(), 1U);
}

// A target that gives NaN or infinity: whatever a prompt says, its features are not to be stored.
TEST_F(CaptureTest, APoisonedTargetFailsEachPromptByName) {
  for (const char* layer : {"model.layers.0.mlp", "model.layers.7.mlp"}) {
    SCOPED_TRACE(layer);
    write_target(options_.target, 8, [&](const std::string& name, const at::Tensor& weight) {
      return name.find(layer) != std::string::npos ? weight * 1e30 : weight;
    });
    options_.ledger = folder_.path() / (std::string(layer) + ".sqlite3");
    options_.store = folder_.path() / layer;
    const CaptureProgress progress = capture_prompts(id_prompts(6));
    EXPECT_EQ(progress.failed, 6);
    EXPECT_EQ(progress.captured, 0);
    const std::string tensor = layer[13] == '0' ? "aux_hidden_state" : "hidden_state";
    const std::vector<std::string> found = reasons();
    ASSERT_EQ(found.size(), 6U);
    EXPECT_THAT(found[4], HasSubstr("prompt r:00000004: " + tensor + " holds NaN or infinity in "));
    EXPECT_EQ(store()->health().resident_samples, 0U);
  }
}

// 3.4e38 is a float32, but rounds to infinity in bfloat16.
TEST_F(CaptureTest, WhatOverflowsInTheStoredTypeOnlyIsCaughtToo) {
  write_target(options_.target, 8, [](const std::string& name, const at::Tensor& weight) {
    return name == "model.embed_tokens.weight" ? at::full_like(weight, 3.4e38) : weight;
  });
  capture_prompts(ids_line({1, 2, 3}));
  EXPECT_THAT(reasons(), ElementsAre("prompt r:00000000: aux_hidden_state holds NaN or infinity in 288 of 288 elements, first "
                                     "at element 0"));
  options_.ledger = folder_.path() / "wide.sqlite3";
  options_.dtype = "float32";
  EXPECT_EQ(capture().captured, 1);
}

// --- again, in parts, and stopped

TEST_F(CaptureTest, RunningAgainAddsNothing) {
  capture_prompts(id_prompts(5) + ids_line({1}));
  const std::vector<SampleRef> before = refs();
  const CaptureProgress again = capture();
  EXPECT_EQ(again.captured + again.failed, 0);
  EXPECT_EQ(again.done, 6);
  EXPECT_EQ(status().prompts, 6);
  EXPECT_EQ(status().resident_bytes, 5 * kSampleBytes);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(sample_ref_to_json(refs().at(i)), sample_ref_to_json(before[i]));
  expect_complete(5);
}

TEST_F(CaptureTest, IngestOnlyPutsPromptsOnTheBooksAndAnotherCallCapturesThem) {
  ingest(id_prompts(300));  // more than one batch
  EXPECT_EQ(status().prompts_pending, 300);
  EXPECT_TRUE(status().prompts_closed);
  EXPECT_FALSE(std::filesystem::exists(options_.store));
  stop_ = true;
  EXPECT_EQ(capture().captured, 0);
  stop_ = false;
  EXPECT_EQ(capture([&](const CaptureProgress& progress) { stop_ = progress.captured == 3; }).captured, 3);
}

TEST_F(CaptureTest, KeptOpenMorePromptsMayCome) {
  options_.keep_open = true;
  ingest(id_prompts(1));
  EXPECT_FALSE(status().prompts_closed);
  options_.keep_open = false;
  EXPECT_EQ(capture_prompts(id_prompts(3)).captured, 3);
  expect_complete(3);
}

TEST_F(CaptureTest, AStopGivesItsLeasesBackAtOnce) {
  ingest(id_prompts(10));
  options_.lease_ms = kHour;
  const CaptureProgress stopped = capture([&](const CaptureProgress& progress) {
    if (progress.captured != 2 || stop_) return;
    EXPECT_EQ(status().prompts_leased, 2) << "two more are leased when the stop comes";
    stop_ = true;
  });
  EXPECT_EQ(stopped.captured, 2);
  EXPECT_EQ(status().prompts_leased, 0);
  EXPECT_EQ(status().prompts_pending, 8);
  stop_ = false;
  EXPECT_EQ(capture().captured, 8);
  expect_complete(10);
}

// --- several workers

// A child that captures, says how many it did, and ends without this process's clean-up.
class Child {
 public:
  Child(const CaptureOptions& options, const std::function<void(const CaptureProgress&)>& on_progress) {
    if ((pid_ = ::fork()) != 0) return;
    try {
      const std::atomic<bool> stop{false};
      ::_exit(static_cast<int>(run_capture(options, on_progress, stop).captured));
    } catch (const std::exception& error) {
      ::fprintf(stderr, "child: %s\n", error.what());
      ::_exit(255);
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    kill();
    wait();
  }
  void kill() {
    if (!ended_) ::kill(pid_, SIGKILL);
  }
  bool running() {
    if (!ended_ && ::waitpid(pid_, &status_, WNOHANG) == pid_) ended_ = true;
    return !ended_;
  }
  int wait() {
    if (!ended_) ::waitpid(pid_, &status_, 0);
    ended_ = true;
    return status_;
  }

 private:
  pid_t pid_ = -1;
  int status_ = 0;
  bool ended_ = false;
};

TEST_F(CaptureTest, TwoWorkersCaptureEachPromptOnce) {
  constexpr int kPrompts = 30;
  ingest(id_prompts(kPrompts));
  options_.lease_tasks = 1;
  void* const shared = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  std::atomic<int>& started = *new (shared) std::atomic<int>(0);
  // Each waits with its first sample for the other's, so that they do work side by side.
  const auto meet = [&](const CaptureProgress& progress) {
    if (progress.captured != 1) return;
    ++started;
    for (int i = 0; i < 60'000 && started < 2; ++i) ::usleep(1000);
  };
  Child one(options_, meet), two(options_, meet);
  const int first = one.wait(), second = two.wait();
  ASSERT_TRUE(WIFEXITED(first) && WIFEXITED(second));
  EXPECT_EQ(started, 2) << "a worker did nothing";
  EXPECT_EQ(WEXITSTATUS(first) + WEXITSTATUS(second), kPrompts);
  expect_complete(kPrompts);
}

TEST_F(CaptureTest, KilledWorkersLeaveTheBooksRight) {
  constexpr int kPrompts = 40;
  ingest(id_prompts(kPrompts));
  options_.lease_ms = 200;
  int killed = 0;
  for (const int enough : {1, 7, 16, 25}) {
    Child worker(options_, {});
    while (worker.running() && status().committed < enough) ::usleep(500);
    worker.kill();
    if (WIFSIGNALED(worker.wait())) ++killed;
    for (const SampleRef& ref : refs()) EXPECT_NO_THROW(store()->read(ref)) << ref.sample_id.str();
  }
  EXPECT_GT(killed, 0);
  const std::int64_t before = status().committed;
  EXPECT_EQ(capture().captured, kPrompts - before);
  EXPECT_EQ(status().prompts_failed, 0);
  expect_complete(kPrompts);
}

// A worker that stood still for longer than its lease, as a suspended one does, while another took over. Its late put must
// not retire the bytes that the other committed, and a bad prompt of the other's must not stop it.
TEST_F(CaptureTest, ALateWorkerTouchesNothingThatAnotherTookOver) {
  ingest(id_prompts(2) + ids_line({1}) + id_prompts(1));
  options_.lease_ms = 50;
  const auto other = ledger();
  std::vector<PromptLease> taken;
  const CaptureProgress progress = capture([&](const CaptureProgress& now) {
    if (!taken.empty()) {
      if (now.captured == 2) other->fail_prompt(taken[1], "bad", /*retryable=*/false, 3);
      return;
    }
    while (taken.empty()) taken = other->lease_prompts(HolderId("other"), 2, kHour).leases;
    const SampleId id(taken[0].task.task_id.str());
    const TensorMap features = {{"input_ids", from_torch(at::zeros({3}, at::kLong))}};
    other->commit_sample(store()->put(features, id, {.run_id = RunId("r"), .num_tokens = 3}), taken[0]);
  });
  ASSERT_EQ(taken.size(), 2U);
  EXPECT_EQ(taken[0].task.task_id.str(), "r:00000001");
  EXPECT_EQ(taken[1].task.task_id.str(), "r:00000002");
  EXPECT_EQ(progress.captured, 2);
  EXPECT_EQ(progress.failed, 0) << "that one is the other's to fail";
  EXPECT_THAT(reasons(), ElementsAre("bad"));
  EXPECT_EQ(status().committed, 3);
  for (const SampleRef& ref : refs()) EXPECT_NO_THROW(store()->read(ref)) << ref.sample_id.str();
}

// The same between the other's put and its commit, where the books do not have the sample yet.
TEST_F(CaptureTest, ALateWorkerDoesNotPutOverWhatItsSuccessorIsAboutToCommit) {
  ingest(id_prompts(3));
  options_.lease_ms = 50;
  const auto other = ledger();
  std::vector<PromptLease> taken;
  std::optional<SampleRef> put;
  capture([&](const CaptureProgress&) {
    if (put) {
      if (!other->is_committed(put->sample_id)) other->commit_sample(*put, taken[0]);
      return;
    }
    while (taken.empty()) taken = other->lease_prompts(HolderId("other"), 1, kHour).leases;
    const TensorMap features = {{"input_ids", from_torch(at::zeros({3}, at::kLong))}};
    put = store()->put(features, SampleId(taken[0].task.task_id.str()), {.run_id = RunId("r"), .num_tokens = 3});
  });
  ASSERT_TRUE(put);
  EXPECT_EQ(ledger()->get_committed(put->sample_id)->generation, put->generation);
  EXPECT_EQ(status().committed, 3);
  for (const SampleRef& ref : refs()) EXPECT_NO_THROW(store()->read(ref)) << ref.sample_id.str();
}

// The leases of the prompts behind the one at work are extended, or a slow target would lose them.
TEST_F(CaptureTest, ASlowWorkerKeepsItsLeases) {
  ingest(id_prompts(4));
  options_.lease_ms = 3000;
  const auto other = ledger();
  std::size_t taken = 0;
  capture([&](const CaptureProgress& progress) {
    if (progress.captured < 4) ::usleep(1'100'000);
    if (progress.captured != 3) return;
    taken = other->lease_prompts(HolderId("other"), 4, kHour).leases.size();
    other->return_leases(HolderId("other"));
  });
  EXPECT_EQ(taken, 0U);
  EXPECT_EQ(status().committed, 4);
}

// --- refused

TEST_F(CaptureTest, AnOfflineLedgerIsRefused) {
  ledger()->declare("kind", "offline");
  EXPECT_THAT([&] { capture_prompts(id_prompts(2)); }, ThrowsMessage<Conflict>(HasSubstr("offline")));
  EXPECT_EQ(status().prompts, 0);
}

TEST_F(CaptureTest, OtherLayersThanTheLedgersAreRefused) {
  capture_prompts(id_prompts(2));
  options_.layers = {0, 1, 2};
  EXPECT_THAT([&] { capture(); }, ThrowsMessage<Conflict>(HasSubstr("[0,1,2]")));
  expect_complete(2);
}

TEST_F(CaptureTest, AnEmptyPromptFileIsRefused) {
  for (const char* text : {"", "\n \n\t\n"}) {
    EXPECT_THAT([&] { capture_prompts(text); }, ThrowsMessage<InvalidArgument>(HasSubstr("prompts.jsonl holds no prompt")));
    EXPECT_EQ(status().prompts, 0);
    EXPECT_FALSE(status().prompts_closed) << "the right file must still be taken";
  }
  EXPECT_EQ(capture_prompts(id_prompts(2)).captured, 2);
}

TEST_F(CaptureTest, WhatIsMissingIsNamed) {
  options_.prompts = folder_.path() / "none.jsonl";
  EXPECT_THAT([&] { capture(); }, ThrowsMessage<NotFound>(HasSubstr("none.jsonl")));
  options_.tokenizer = folder_.path() / "none.model";
  EXPECT_THAT([&] { capture(); }, ThrowsMessage<NotFound>(HasSubstr("none.model")));
}

TEST_F(CaptureTest, AWrongConfigurationIsRefusedAndLeavesNoLedger) {
  const CaptureOptions good = options_;
  const auto refused = [&](const std::function<void(CaptureOptions&)>& change, const std::string& part) {
    options_ = good;
    change(options_);
    EXPECT_THAT([&] { capture_prompts(id_prompts(1)); }, ThrowsMessage<InvalidArgument>(HasSubstr(part)));
    EXPECT_FALSE(std::filesystem::exists(options_.ledger)) << part;
  };
  refused([](auto& options) { options.layers = {1, 2}; }, "layers [1, 2] cannot be captured: three different ones from 0 to 7");
  refused([](auto& options) { options.layers = {1, 1, 2}; }, "layers [1, 1, 2] cannot be captured");
  refused([](auto& options) { options.layers = {1, 2, 8}; }, "layers [1, 2, 8] cannot be captured");
  refused([](auto& options) { options.layers = {-1, 2, 3}; }, "layers [-1, 2, 3] cannot be captured");
  refused([](auto& options) { options.dtype = "float3"; }, "float3");
  refused([](auto& options) { options.dtype = "int64"; }, "features cannot be stored as int64");
  refused([](auto& options) { options.lease_tasks = 0; }, "must be 1 or more");
  refused([](auto& options) { options.lease_ms = 0; }, "must be 1 or more");
  refused([](auto& options) { options.threads = 0; }, "must be 1 or more");
  refused([](auto& options) { options.max_attempts = 0; }, "must be 1 or more");
  write_target(good.target, 6);
  refused([](auto&) {}, "not three different ones for a target of 6 layers: name them");
  std::filesystem::remove(good.target / "config.json");
  options_ = good;
  EXPECT_THROW(capture_prompts(id_prompts(1)), NotFound);
  EXPECT_FALSE(std::filesystem::exists(good.ledger));
}

}  // namespace
}  // namespace draftflow
