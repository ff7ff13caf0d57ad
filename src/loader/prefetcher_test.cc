// SPDX-License-Identifier: Apache-2.0
#include "draftflow/loader/prefetcher.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <span>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int kLong = 3'600'000;  // ms; a test that waits this long hangs
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

Tensor ints(std::vector<std::int64_t> shape, const std::vector<std::int64_t>& values) {
  return Tensor::copy_of(DType::kInt64, std::move(shape), std::as_bytes(std::span(values)));
}

Tensor floats(std::vector<std::int64_t> shape, std::vector<float> values) {
  values.resize(tensor_bytes(DType::kFloat32, shape) / sizeof(float), 1.0F);
  return Tensor::copy_of(DType::kFloat32, std::move(shape), std::as_bytes(std::span(values)));
}

// Three tokens of a vocabulary of 40, two features.
TensorMap good_tensors(float first = 1.0F) {
  return {{"input_ids", ints({3}, {7, 39, 0})},
          {"loss_mask", ints({3}, {0, 1, 1})},
          {"hidden_state", floats({1, 3, 2}, {first})},
          {"aux_hidden_state", floats({1, 3, 6}, {})}};
}

TensorMap with(const std::string& name, Tensor tensor) {
  TensorMap tensors = good_tensors();
  for (auto& [key, old] : tensors) {
    if (key == name) old = std::move(tensor);
  }
  return tensors;
}

// --- one sample

std::string wrong(const TensorMap& tensors, LoaderOptions options = {.hidden_size = 2, .vocab_size = 40}) {
  return check_eagle3_sample(tensors, options).value_or("nothing is wrong");
}

TEST(CheckEagle3Sample, AGoodOnePasses) {
  EXPECT_EQ(check_eagle3_sample(good_tensors(), {.hidden_size = 2, .vocab_size = 40}), std::nullopt);
  EXPECT_EQ(check_eagle3_sample(good_tensors(), {}), std::nullopt);
  TensorMap extra = good_tensors();
  extra.emplace_back("position_ids", ints({1}, {0}));
  EXPECT_EQ(check_eagle3_sample(extra, {.hidden_size = 2, .vocab_size = 40}), std::nullopt);
}

TEST(CheckEagle3Sample, EachMissingTensorIsNamed) {
  for (const char* name : {"input_ids", "loss_mask", "hidden_state", "aux_hidden_state"}) {
    TensorMap tensors = good_tensors();
    std::erase_if(tensors, [&](const auto& entry) { return entry.first == name; });
    EXPECT_EQ(wrong(tensors), fmt::format("there is no tensor '{}'", name));
  }
}

TEST(CheckEagle3Sample, TokensAndMaskMustMatch) {
  const std::string rule = "input_ids and loss_mask must be int64 [T] with T >= 1: found ";
  EXPECT_EQ(wrong(with("loss_mask", ints({2}, {1, 1}))), rule + "int64 [3] and int64 [2]");
  EXPECT_EQ(wrong(with("loss_mask", floats({3}, {}))), rule + "int64 [3] and float32 [3]");
  EXPECT_EQ(wrong(with("input_ids", ints({1, 3}, {1, 2, 3}))), rule + "int64 [1, 3] and int64 [3]");
  EXPECT_EQ(wrong(with("input_ids", ints({}, {1}))), rule + "int64 [] and int64 [3]");
  TensorMap empty = with("input_ids", ints({0}, {}));
  empty[1].second = ints({0}, {});
  EXPECT_EQ(wrong(empty), rule + "int64 [0] and int64 [0]");
}

TEST(CheckEagle3Sample, TokensOutsideTheVocabularyAreNamed) {
  EXPECT_EQ(wrong(with("input_ids", ints({3}, {0, 40, 1}))), "input_ids holds token 40: 0 to 39 are allowed");
  EXPECT_EQ(wrong(with("input_ids", ints({3}, {0, -1, 1}))), "input_ids holds token -1: 0 to 39 are allowed");
  EXPECT_EQ(wrong(with("input_ids", ints({3}, {0, -1, 1})), {}), "input_ids holds token -1: 0 and more are allowed");
  EXPECT_EQ(wrong(with("input_ids", ints({3}, {0, 40, 1})), {}), "nothing is wrong");
}

TEST(CheckEagle3Sample, AMaskIsZeroesAndOnes) {
  EXPECT_EQ(wrong(with("loss_mask", ints({3}, {0, 1, 2}))), "loss_mask holds 2: 0 and 1 are allowed");
  EXPECT_EQ(wrong(with("loss_mask", ints({3}, {-1, 1, 1}))), "loss_mask holds -1: 0 and 1 are allowed");
}

TEST(CheckEagle3Sample, HiddenStatesMustHaveTheirShape) {
  EXPECT_EQ(wrong(with("hidden_state", floats({3, 2}, {}))),
            "hidden_state is float32 [3, 2]: a floating type [1, 3, 2] is allowed");
  EXPECT_EQ(wrong(with("hidden_state", floats({2, 3, 2}, {}))),
            "hidden_state is float32 [2, 3, 2]: a floating type [1, 3, 2] is allowed");
  EXPECT_EQ(wrong(with("hidden_state", floats({1, 4, 2}, {}))),
            "hidden_state is float32 [1, 4, 2]: a floating type [1, 3, 2] is allowed");
  EXPECT_EQ(wrong(with("hidden_state", floats({1, 3, 5}, {}))),
            "hidden_state is float32 [1, 3, 5]: a floating type [1, 3, 2] is allowed");
  EXPECT_EQ(wrong(with("hidden_state", ints({1, 3, 2}, std::vector<std::int64_t>(6)))),
            "hidden_state is int64 [1, 3, 2]: a floating type [1, 3, 2] is allowed");
  EXPECT_EQ(wrong(with("aux_hidden_state", floats({1, 3, 2}, {}))),
            "aux_hidden_state is float32 [1, 3, 2]: a floating type [1, 3, 6] is allowed");
  EXPECT_EQ(wrong(with("aux_hidden_state", floats({1, 2, 6}, {})), {}),
            "aux_hidden_state is float32 [1, 2, 6]: a floating type [1, 3, H] is allowed");
}

TEST(CheckEagle3Sample, WhatIsNotFiniteIsNamedWithItsPlace) {
  EXPECT_EQ(wrong(with("hidden_state", floats({1, 3, 2}, {1, 1, 1, kNaN}))), "hidden_state holds NaN at element 3");
  EXPECT_EQ(wrong(with("aux_hidden_state", floats({1, 3, 6}, {1, -kInfinity}))),
            "aux_hidden_state holds infinity at element 1");
}

// --- windows, from a real ledger and a real store

class PrefetcherTest : public ::testing::Test {
 protected:
  PrefetcherTest() {
    ledger_->declare_group({.group = group_, .window = 2});
    timeline_ = ledger_->open_timeline({.group = group_});
  }

  static std::unique_ptr<FeatureStore> open_store(const std::filesystem::path& root) {
    return create_shared_dir_store(root, StoreId("features"), {.free_space_floor_bytes = 0});
  }

  SampleRef commit(const std::string& id, const TensorMap& tensors) {
    const SampleRef ref = store_->put(tensors, SampleId(id), {.run_id = RunId("run"), .num_tokens = 3});
    ledger_->commit_samples({ref}, {});
    return ref;
  }

  // The only file in the store whose bytes hold the id, with one byte of its last tensor turned.
  void spoil_file(const std::string& id) const {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_.path() / "features")) {
      const std::string name = entry.path().string();
      if (!name.ends_with(".safetensors") || name.find(id) == std::string::npos) continue;
      std::filesystem::permissions(entry.path(), std::filesystem::perms::owner_write, std::filesystem::perm_options::add);
      FILE* file = std::fopen(name.c_str(), "r+b");
      std::fseek(file, -1, SEEK_END);
      const int last = std::fgetc(file);
      std::fseek(file, -1, SEEK_END);
      std::fputc(last ^ 1, file);
      std::fclose(file);
      return;
    }
    FAIL() << "no file of sample " << id;
  }

  std::unique_ptr<WindowSource> stream() { return make_stream_source(*fetching_, group_, timeline_); }
  LoadedAnswer next(Prefetcher& prefetcher) { return prefetcher.next(stop_, kLong); }

  const testing_support::TempFolder folder_;
  const GroupId group_{"train"};
  const std::unique_ptr<Ledger> ledger_ = open_sqlite_ledger(folder_.path() / "ledger.sqlite3");
  const std::unique_ptr<Ledger> fetching_ = open_sqlite_ledger(folder_.path() / "ledger.sqlite3");  // of the other thread
  const std::unique_ptr<FeatureStore> store_ = open_store(folder_.path());
  const LoaderOptions options_{.windows_ahead = 2, .hidden_size = 2, .vocab_size = 40};
  TimelineInfo timeline_;
  std::atomic<bool> stop_{false};
};

TEST_F(PrefetcherTest, WindowsComeInOrderWithTheirTensorsAndThenTheEnd) {
  for (int i = 0; i < 10; ++i) commit(fmt::format("s{}", i), good_tensors(static_cast<float>(i)));
  ledger_->close_prompts();
  const auto source = stream();
  Prefetcher prefetcher(*source, *store_, options_);
  for (int number = 0; number < 5; ++number) {
    const LoadedAnswer answer = next(prefetcher);
    ASSERT_EQ(answer.state, WindowState::kWindow);
    EXPECT_EQ(answer.window->number, number);
    ASSERT_EQ(answer.window->samples.size(), 2U);
    for (int i = 0; i < 2; ++i) {
      const LoadedSample& sample = answer.window->samples[static_cast<std::size_t>(i)];
      EXPECT_EQ(sample.ref.sample_id.str(), fmt::format("s{}", 2 * number + i));
      EXPECT_EQ(sample.failure, std::nullopt);
      ASSERT_EQ(sample.tensors.size(), 4U);
      EXPECT_EQ(find_tensor(sample.tensors, "hidden_state")->as<float>()[0], static_cast<float>(2 * number + i));
    }
  }
  EXPECT_EQ(next(prefetcher).state, WindowState::kEndOfStream);
  EXPECT_EQ(next(prefetcher).state, WindowState::kEndOfStream) << "the end must stay the end";
}

// A window that its cap made short: the rank takes part in its step without a sample.
TEST_F(PrefetcherTest, AShareOfAShortWindowMayBeEmpty) {
  const GroupId capped("capped");
  ledger_->declare_group({.group = capped, .window = 4, .max_window_tokens = 7});  // two samples of three tokens
  timeline_ = ledger_->open_timeline({.group = capped, .width = 4});
  for (int i = 0; i < 4; ++i) commit(fmt::format("s{}", i), good_tensors());
  ledger_->close_prompts();
  for (const int rank : {1, 3}) {
    const auto source = make_stream_source(*fetching_, capped, timeline_, {.rank = rank, .width = 4});
    Prefetcher prefetcher(*source, *store_, options_);
    const LoadedAnswer answer = next(prefetcher);
    ASSERT_EQ(answer.state, WindowState::kWindow);
    EXPECT_EQ(answer.window->number, 0);
    EXPECT_EQ(answer.window->samples.size(), rank == 1 ? 1U : 0U);
    EXPECT_EQ(next(prefetcher).state, WindowState::kEndOfStream) << "two are left, which do not reach the cap";
  }
}

TEST_F(PrefetcherTest, ABadSampleKeepsItsPlaceWithAReasonAndNeverStopsTheRest) {
  commit("good-0", good_tensors());
  const SampleRef removed = commit("removed", good_tensors());
  commit("corrupted", good_tensors());
  commit("nan", with("aux_hidden_state", floats({1, 3, 6}, {kNaN})));
  commit("misshapen", with("hidden_state", floats({1, 2, 2}, {})));
  commit("outside", with("input_ids", ints({3}, {1, 40, 2})));
  commit("bare", {{"input_ids", ints({3}, {1, 2, 3})}});
  commit("good-1", good_tensors());
  ledger_->close_prompts();
  ASSERT_TRUE(store_->remove(removed));
  spoil_file("corrupted");

  const auto source = stream();
  Prefetcher prefetcher(*source, *store_, options_);
  std::vector<LoadedSample> samples;
  for (LoadedAnswer answer = next(prefetcher); answer.state == WindowState::kWindow; answer = next(prefetcher)) {
    for (LoadedSample& sample : answer.window->samples) samples.push_back(std::move(sample));
  }
  ASSERT_EQ(samples.size(), 8U);
  std::vector<std::string> ids, failures;
  for (const LoadedSample& sample : samples) {
    ids.push_back(sample.ref.sample_id.str());
    failures.push_back(sample.failure.value_or(""));
    EXPECT_EQ(sample.tensors.empty(), sample.failure.has_value()) << ids.back();
  }
  EXPECT_THAT(ids, ElementsAre("good-0", "removed", "corrupted", "nan", "misshapen", "outside", "bare", "good-1"));
  EXPECT_THAT(failures, ElementsAre("", AllOf(HasSubstr("'removed'"), HasSubstr("freed, superseded or never written")),
                                    HasSubstr("corrupted"), "aux_hidden_state holds NaN at element 0",
                                    HasSubstr("hidden_state is float32 [1, 2, 2]"), HasSubstr("input_ids holds token 40"),
                                    "there is no tensor 'loss_mask'", ""));
}

TEST_F(PrefetcherTest, FeaturesOfAnotherTargetStopTheRunByName) {
  for (const char* id : {"a", "b"}) commit(id, good_tensors());
  const auto source = stream();
  LoaderOptions wider = options_;
  wider.hidden_size = 3;
  Prefetcher prefetcher(*source, *store_, wider);
  try {
    next(prefetcher);
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr("sample 'a' holds hidden states of width 2, but the target given has width 3"));
  }
}

// A user's file that was replaced by one of a kind that is refused.
TEST_F(PrefetcherTest, ARefusedFileIsItsSamplesFailureToo) {
  std::vector<SampleRef> refs;
  for (const char* name : {"a.unknown", "b.unknown"}) {
    std::fclose(std::fopen((folder_.path() / name).c_str(), "w"));
    refs.push_back(make_file_ref(folder_.path() / name, good_tensors(), SampleId(name), {.run_id = RunId("run")}));
  }
  ledger_->commit_samples(refs, {});
  const auto files = open_files_store();
  EXPECT_THROW(files->read(refs[0]), InvalidArgument);
  const auto source = stream();
  Prefetcher prefetcher(*source, *files, options_);
  const LoadedAnswer answer = next(prefetcher);
  ASSERT_EQ(answer.state, WindowState::kWindow);
  EXPECT_THAT(answer.window->samples[1].failure.value_or(""), HasSubstr("b.unknown"));
}

TEST_F(PrefetcherTest, AWaitingStreamIsAskedAgain) {
  const auto source = stream();
  Prefetcher prefetcher(*source, *store_, options_);
  EXPECT_EQ(prefetcher.next(stop_, 1).state, WindowState::kWaiting);
  EXPECT_GT(prefetcher.wait_seconds(), 0);
  commit("a", good_tensors());
  commit("b", good_tensors());
  EXPECT_EQ(next(prefetcher).state, WindowState::kWindow);
}

TEST_F(PrefetcherTest, StopEndsAWaitAndLosesNoWindow) {
  const auto source = stream();
  Prefetcher prefetcher(*source, *store_, options_);
  std::thread stopper([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    stop_ = true;
  });
  EXPECT_EQ(next(prefetcher).state, WindowState::kWaiting);
  stopper.join();
  commit("a", good_tensors());
  commit("b", good_tensors());
  EXPECT_EQ(next(prefetcher).state, WindowState::kWaiting) << "a stopped trainer takes no more";
  stop_ = false;
  const LoadedAnswer answer = next(prefetcher);
  ASSERT_EQ(answer.state, WindowState::kWindow);
  EXPECT_EQ(answer.window->number, 0);
}

TEST_F(PrefetcherTest, ALostTimelineIsRethrownToTheCaller) {
  commit("a", good_tensors());
  commit("b", good_tensors());
  const auto source = stream();
  Prefetcher prefetcher(*source, *store_, options_);
  EXPECT_EQ(next(prefetcher).state, WindowState::kWindow);
  ledger_->open_timeline({.group = group_});
  EXPECT_THROW(next(prefetcher), Conflict);
  EXPECT_THROW(next(prefetcher), Conflict) << "and again, rather than waiting for ever";
}

TEST_F(PrefetcherTest, ClosingWhileWaitingForWindowsEnds) {
  const auto source = stream();
  Prefetcher prefetcher(*source, *store_, options_);
  EXPECT_EQ(prefetcher.next(stop_, 1).state, WindowState::kWaiting);
}

TEST_F(PrefetcherTest, SenselessOptionsAreRefused) {
  const auto source = stream();
  EXPECT_THROW(Prefetcher(*source, *store_, {.windows_ahead = 0}), InvalidArgument);
  EXPECT_THROW(Prefetcher(*source, *store_, {.windows_ahead = -1}), InvalidArgument);
}

// --- with a source and a store of the test's own

// Numbers windows of no samples, up to a limit, and counts how many were asked for.
class CountingSource : public WindowSource {
 public:
  WindowAnswer next() override {
    if (asked == 1000) return {.state = WindowState::kEndOfStream, .window = std::nullopt};
    return {.state = WindowState::kWindow, .window = Window{.number = asked++, .refs = {}}};
  }
  bool wait(std::int64_t) override { return true; }
  std::atomic<int> asked{0};
};

TEST_F(PrefetcherTest, NoMoreThanTheAllowedWindowsAreFetchedAhead) {
  CountingSource source;
  LoaderOptions options = options_;
  options.windows_ahead = 3;
  Prefetcher prefetcher(source, *store_, options);
  for (int taken = 0; taken < 5; ++taken) {
    while (source.asked < taken + 3) std::this_thread::yield();  // it does fetch that far,
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(source.asked, taken + 3) << "after " << taken << " taken";  // and no further
    EXPECT_EQ(next(prefetcher).window->number, taken);
  }
}  // and closing with windows unread ends

// Never has a window, and is woken by nobody but the test.
class WaitingSource : public WindowSource {
 public:
  WindowAnswer next() override {
    ++asked;
    return {};
  }
  bool wait(std::int64_t timeout_ms) override {
    EXPECT_LE(timeout_ms, 100);  // closing is bounded
    ++waited;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return woken.exchange(false);
  }
  std::atomic<int> asked{0}, waited{0};
  std::atomic<bool> woken{false};
};

TEST_F(PrefetcherTest, AWaitingSourceIsAskedWhenItIsWokenAndEachSecond) {
  WaitingSource source;
  Prefetcher prefetcher(source, *store_, options_);
  while (source.waited < 45) std::this_thread::yield();  // of 100 ms each
  EXPECT_LE(source.asked, 1 + source.waited / 10);
  EXPECT_GE(source.asked, 1 + 44 / 10);
  const int asked = source.asked;
  for (int i = 0; i < 20; ++i) {
    source.woken = true;
    while (source.woken) std::this_thread::yield();
  }
  EXPECT_GE(source.asked, asked + 19);
}

TEST_F(PrefetcherTest, AnInterruptEndsNextAndLosesNothing) {
  const auto source = stream();
  Prefetcher prefetcher(*source, *store_, options_);
  struct CalledAway {};
  {
    const InterruptScope scope([] { throw CalledAway(); });
    EXPECT_THROW(next(prefetcher), CalledAway);
  }
  commit("a", good_tensors());
  commit("b", good_tensors());
  EXPECT_EQ(next(prefetcher).window->number, 0);
}

class FailingStore : public FeatureStore {
 public:
  explicit FailingStore(std::function<void()> fail) : fail_(std::move(fail)) {}
  SampleRef put(const TensorMap&, const SampleId&, const PutMetadata&, const PutFence&) override {
    throw InvalidArgument("read-only");
  }
  TensorMap read(const SampleRef&, const std::vector<std::string>&) override {
    fail_();
    return good_tensors();
  }
  Fetched get(const SampleRef& ref, const GetOptions& options) override {
    return {read(ref, options.names), {ref.sample_id, ref.generation, ""}};
  }
  void release(const FeatureHandle&) override {}
  bool remove(const SampleRef&) override { return false; }
  std::uint64_t abort(const SampleId&) override { return 0; }
  GcReport gc() override { return {}; }
  StoreHealth health() override { return {}; }
  StoreKind kind() const override { return StoreKind::kLedgered; }
  void for_each(const std::function<bool(const ResidentSample&)>&,
                const std::function<void(const std::filesystem::path&, const std::string&)>&) override {}
  SampleRef find(const SampleId& id, std::optional<std::uint64_t>) override { throw NotFound(id.str()); }

 private:
  std::function<void()> fail_;
};

// Condemning the sample would lose it for a hiccup of the machine.
TEST_F(PrefetcherTest, TheMachinesTroubleIsThrownNotBlamedOnTheSample) {
  commit("a", good_tensors());
  commit("b", good_tensors());
  const auto with_trouble = [this](std::function<void()> trouble) {
    timeline_ = ledger_->open_timeline({.group = group_});
    const auto source = stream();
    FailingStore store(std::move(trouble));
    Prefetcher prefetcher(*source, store, options_);
    next(prefetcher);
  };
  EXPECT_THROW(with_trouble([] { throw Exhausted("no descriptors"); }), Exhausted);
  EXPECT_THROW(with_trouble([] { throw Unavailable("an I/O error"); }), Unavailable);
  EXPECT_THROW(with_trouble([] { throw std::bad_alloc(); }), std::bad_alloc);
  EXPECT_NO_THROW(with_trouble([] {}));
}

}  // namespace
}  // namespace draftflow
