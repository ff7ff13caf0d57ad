// SPDX-License-Identifier: Apache-2.0
//
// Whole training runs over a real ledger and a real store.
#include "draftflow/train/trainer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "draftflow/base/error.h"
#include "draftflow/ledger/ledger.h"
#include "draftflow/loader/ingest.h"
#include "testing/temp_folder.h"
#include "train/checkpoint.h"
#include "train/testing.h"

namespace draftflow {
namespace {

constexpr int kSamples = 26, kWindow = 4;  // six windows and a tail of two

class TestRun {
 public:
  TestRun() { testing_support::write_target(folder_.path() / "target"); }

  // Samples as a capture worker leaves them; the one named `poisoned` holds a NaN. Of all that are asked for, `captured` are
  // there.
  void fill_stream(int poisoned = -1, int captured = kSamples) {
    const auto ledger = open_sqlite_ledger(options().ledger);
    const auto store = open_store();
    std::vector<PromptTask> tasks;
    std::vector<std::vector<TokenCount>> counts;
    for (int i = 0; i < kSamples; ++i) {
      tasks.push_back({.task_id = TaskId(name(i)), .run_id = RunId("test")});
      tasks.back().payload = "{}";
      counts.push_back({{i % testing_support::kVocab, 3, 0}});
    }
    ledger->declare("kind", "stream");
    ledger->ingest_prompts(tasks, counts);
    ledger->close_prompts();
    for (int i = 0; i < captured; ++i) {
      const auto answer = ledger->lease_prompts(HolderId("worker"), 1, 60'000);
      ASSERT_EQ(answer.leases.size(), 1u);
      TensorMap features = testing_support::make_features(static_cast<std::uint64_t>(i), 6 + i % 5);
      if (i == poisoned) {
        features[2].second = from_torch(at::full({1, 6 + i % 5, testing_support::kHidden}, std::nan(""), at::kFloat));
      }
      ledger->commit_sample(store->put(features, SampleId(name(i)), {.run_id = RunId("test"), .num_tokens = 6 + i % 5}),
                            answer.leases[0]);
    }
  }

  std::unique_ptr<FeatureStore> open_store() const {
    return create_shared_dir_store(folder_.path() / "store", StoreId("features"), {.free_space_floor_bytes = 0});
  }
  static std::string name(int i) { return fmt::format("test:{:08}", i); }

  TrainOptions options() const {
    TrainOptions options;
    options.target = folder_.path() / "target";
    options.ledger = folder_.path() / "ledger.sqlite3";
    options.store = folder_.path() / "store" / "features";
    options.out = folder_.path() / "train";
    options.window = kWindow;
    options.batch = 2;
    options.ttt_length = 2;
    options.learning_rate = 1e-2;
    options.checkpoint_every = 2;
    options.draft_vocab = 24;
    return options;
  }

  // Trains; with stop_after > 0 the run is stopped after that many steps of this call.
  TrainProgress train(const TrainOptions& with, int stop_after = 0) {
    std::atomic<bool> stop = false;
    int steps = 0;
    return run_train(
        with, [&](const TrainProgress&) { stop = ++steps == stop_after; }, stop);
  }

  std::string draft_bytes() const { return read_text_file(folder_.path() / "train/draft/model.safetensors"); }
  const std::filesystem::path& path() const { return folder_.path(); }

 private:
  testing_support::TempFolder folder_;
};

TEST(Trainer, TrainsEveryWindowOnceAndFreesItsBytes) {
  TestRun run;
  run.fill_stream();
  const TrainProgress end = run.train(run.options());
  EXPECT_EQ(end.step, 6);
  EXPECT_EQ(end.total_steps, 6);
  EXPECT_EQ(end.samples, 24);
  const auto ledger = open_sqlite_ledger(run.options().ledger);
  const LedgerStatus status = ledger->status();
  EXPECT_EQ(status.of(GroupId("train")).durable, 24);
  EXPECT_EQ(status.of(GroupId("train")).dropped, 2);
  EXPECT_EQ(status.freed, kSamples);
  EXPECT_EQ(status.resident_bytes, 0u);
  EXPECT_EQ(run.open_store()->health().resident_samples, 0u);
  EXPECT_EQ(ledger->trained_ids(GroupId("train")).size(), 24u);
}

TEST(Trainer, AnInterruptedRunGoesOnToTheSameNumbers) {
  TestRun straight, broken;
  straight.fill_stream();
  broken.fill_stream();
  straight.train(straight.options());
  EXPECT_EQ(broken.train(broken.options(), 1).step, 1);
  EXPECT_FALSE(std::filesystem::exists(broken.path() / "train/draft"));
  EXPECT_EQ(broken.train(broken.options(), 3).step, 4);
  EXPECT_EQ(broken.train(broken.options()).step, 6);
  EXPECT_EQ(broken.draft_bytes(), straight.draft_bytes());
  EXPECT_EQ(open_sqlite_ledger(broken.options().ledger)->trained_ids(GroupId("train")),
            open_sqlite_ledger(straight.options().ledger)->trained_ids(GroupId("train")));
  broken.train(broken.options());  // a finished run is only exported again
  EXPECT_EQ(broken.draft_bytes(), straight.draft_bytes());
}

TEST(Trainer, AStreamOfTwoEpochsIsTrainedTwiceAndThenFreed) {
  TestRun straight, broken;
  const auto twice = [](TestRun& run) {
    TrainOptions options = run.options();
    options.epochs = 2;
    return options;
  };
  straight.fill_stream();
  broken.fill_stream();
  EXPECT_EQ(straight.train(twice(straight)).step, 12);
  const auto ledger = open_sqlite_ledger(straight.options().ledger);
  const std::vector<std::string> ids = ledger->trained_ids(GroupId("train"));
  ASSERT_EQ(ids.size(), 48u);
  EXPECT_TRUE(std::equal(ids.begin(), ids.begin() + 24, ids.begin() + 24));
  EXPECT_EQ(ledger->status().freed, kSamples);
  EXPECT_EQ(straight.open_store()->health().resident_samples, 0u);
  EXPECT_EQ(broken.train(twice(broken), 4).step, 4);
  EXPECT_EQ(broken.open_store()->health().resident_samples, static_cast<std::uint64_t>(kSamples));
  EXPECT_EQ(broken.train(twice(broken), 5).step, 9);
  EXPECT_EQ(broken.train(twice(broken)).step, 12);
  EXPECT_EQ(broken.draft_bytes(), straight.draft_bytes());
}

// As after a SIGKILL between two checkpoints: what was trained since is forgotten by the weights, so it is trained again.
TEST(Trainer, StepsAfterTheLastCheckpointAreTrainedAgain) {
  TestRun straight, broken;
  straight.fill_stream();
  broken.fill_stream();
  straight.train(straight.options());
  TrainOptions rare = broken.options();
  rare.checkpoint_every = 100;
  // The callback runs between the ledger's `trained` and any checkpoint: an exception there leaves no chance to save.
  std::atomic<bool> stop = false;
  int steps = 0;
  EXPECT_THROW(run_train(
                   rare,
                   [&](const TrainProgress&) {
                     if (++steps == 3) throw std::runtime_error("killed");
                   },
                   stop),
               std::runtime_error);
  EXPECT_EQ(open_sqlite_ledger(rare.ledger)->status().of(GroupId("train")).trained_step, 3);
  broken.train(broken.options());
  EXPECT_EQ(broken.draft_bytes(), straight.draft_bytes());
}

TEST(Trainer, APoisonedSampleIsFailedByNameAndTheRestGoesOn) {
  TestRun run;
  run.fill_stream(/*poisoned=*/5);
  const TrainProgress end = run.train(run.options());
  EXPECT_EQ(end.step, 6);
  EXPECT_EQ(end.samples, 23);
  EXPECT_EQ(end.failed, 1);
  EXPECT_EQ(open_sqlite_ledger(run.options().ledger)->status().of(GroupId("train")).failed, 1);
}

// An older checkpoint, put back from a copy: what was trained after it is freed.
TEST(Trainer, AnOlderCheckpointIsRefusedUnlessTheLossIsAccepted) {
  TestRun run;
  run.fill_stream();
  const auto checkpoints = run.path() / "train/checkpoints";
  run.train(run.options(), 2);
  std::filesystem::copy(checkpoints, run.path() / "copy", std::filesystem::copy_options::recursive);
  run.train(run.options(), 3);
  std::filesystem::remove_all(checkpoints);
  std::filesystem::copy(run.path() / "copy", checkpoints, std::filesystem::copy_options::recursive);
  try {
    run.train(run.options());
    FAIL() << "samples are lost and nobody says so";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("12 samples trained after it are freed"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("--accept-loss"), std::string::npos) << error.what();
  }
  TrainOptions accepting = run.options();
  accepting.accept_loss = true;
  const TrainProgress end = run.train(accepting);
  EXPECT_EQ(end.lost, 12);
  EXPECT_EQ(end.step, 3);  // of 26 samples 12 are lost and 2 are the tail
  const GroupStatus group = open_sqlite_ledger(run.options().ledger)->status().of(GroupId("train"));
  EXPECT_EQ(group.dropped, 14);
  EXPECT_EQ(group.durable, 12);
}

// Runs all ranks of a launch, each on a thread.
std::vector<TrainProgress> train_ranks(const TestRun& run, TrainOptions options, int ranks, const std::string& launch) {
  std::vector<TrainProgress> ends(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  options.ranks = ranks;
  options.launch = launch;
  options.rendezvous = "file://" + (run.path() / ("meet-" + launch)).string();
  for (int rank = 0; rank < ranks; ++rank) {
    options.rank = rank;
    threads.emplace_back([&ends, options, rank] {
      const std::atomic<bool> stop = false;
      try {
        ends[static_cast<std::size_t>(rank)] = run_train(options, {}, stop);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << rank << ": " << error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return ends;
}

double greatest_difference(const std::filesystem::path& a, const std::filesystem::path& b) {
  const TensorMap one = read_safetensors(a), two = read_safetensors(b);
  double greatest = 0;
  for (const auto& [name, tensor] : one) {
    const at::Tensor other = to_torch(*find_tensor(two, name));
    const at::Tensor difference = (to_torch(tensor).to(at::kDouble) - other.to(at::kDouble)).abs();
    if (difference.numel() > 0) greatest = std::max(greatest, difference.max().item<double>());
  }
  return greatest;
}

TEST(Trainer, RanksTrainToTheNumbersOfOneProcess) {
  for (const char* const loss : {"kl", "lambda"}) {
    SCOPED_TRACE(loss);
    TestRun alone, together;
    const auto prepare = [&](TestRun& run) {
      run.fill_stream(/*poisoned=*/5);
      TrainOptions options = run.options();
      options.dtype = "float64";
      options.loss = loss;
      options.batch = 1;
      return options;
    };
    const TrainProgress end = alone.train(prepare(alone));
    const auto ends = train_ranks(together, prepare(together), 2, "a");
    for (const TrainProgress& rank : ends) {
      EXPECT_EQ(rank.step, end.step);
      EXPECT_EQ(rank.samples, end.samples);
      EXPECT_EQ(rank.tokens, end.tokens);
      EXPECT_EQ(rank.failed, 1);
      EXPECT_NEAR(rank.loss_total, end.loss_total, 1e-9);
      EXPECT_NEAR(rank.grad_norm, end.grad_norm, 1e-9);
    }
    EXPECT_LT(
        greatest_difference(alone.path() / "train/draft/model.safetensors", together.path() / "train/draft/model.safetensors"),
        1e-9);
    const GroupStatus group = open_sqlite_ledger(together.options().ledger)->status().of(GroupId("train"));
    EXPECT_EQ(group.width, 2);
    EXPECT_EQ(group.failed, 1) << "reported by the rank that met it, whoever acknowledged";
    EXPECT_EQ(group.durable, 23);
    EXPECT_EQ(open_sqlite_ledger(together.options().ledger)->trained_ids(GroupId("train")),
              open_sqlite_ledger(alone.options().ledger)->trained_ids(GroupId("train")));
    EXPECT_EQ(together.open_store()->health().resident_samples, 0u);
  }
}

TEST(Trainer, ARankWhoseOthersDoNotComeStopsWhenAsked) {
  TestRun run;
  TrainOptions options = run.options();
  options.ranks = 2;
  options.launch = "alone";
  options.rendezvous = "file://" + (run.path() / "meet").string();
  std::atomic<bool> stop = false;
  std::thread asks([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    stop = true;
  });
  EXPECT_EQ(run_train(options, {}, stop).step, 0);
  asks.join();
  EXPECT_FALSE(std::filesystem::exists(options.out)) << "nothing was begun";
}

// Windows of one or two samples: of four ranks two have none ever, and take every step all the same.
TEST(Trainer, WindowsWithACapAreTrainedAlikeByAnyNumberOfRanks) {
  TestRun alone, changing;
  const auto prepare = [&](TestRun& run) {
    run.fill_stream(/*poisoned=*/5);
    TrainOptions options = run.options();
    options.dtype = "float64";
    options.batch = 1;
    options.max_window_tokens = 18;
    options.total_steps = 14;
    return options;
  };
  const TrainProgress end = alone.train(prepare(alone));
  // Of 6, 7, 8, 9, 10, 6 ... tokens: windows of 6 and 7, 8 and 9, 10 and 6, 7 and 8, 9 alone, and so on; a tail of 10 and 6.
  EXPECT_EQ(end.step, 14);
  EXPECT_EQ(end.samples, 23);
  TrainOptions options = prepare(changing);
  changing.train(options, 3);
  const auto ends = train_ranks(changing, options, 4, "wide");
  for (const TrainProgress& rank : ends) {
    EXPECT_EQ(rank.step, end.step);
    EXPECT_EQ(rank.samples, end.samples);
    EXPECT_EQ(rank.tokens, end.tokens);
    EXPECT_NEAR(rank.loss_total, end.loss_total, 1e-9);
    EXPECT_NEAR(rank.grad_norm, end.grad_norm, 1e-9);
  }
  EXPECT_LT(
      greatest_difference(alone.path() / "train/draft/model.safetensors", changing.path() / "train/draft/model.safetensors"),
      1e-9);
  const auto ledger = open_sqlite_ledger(changing.options().ledger);
  EXPECT_EQ(ledger->trained_ids(GroupId("train")), open_sqlite_ledger(alone.options().ledger)->trained_ids(GroupId("train")));
  EXPECT_EQ(ledger->status().of(GroupId("train")).max_window_tokens, 18);
  EXPECT_EQ(ledger->status().freed, kSamples);
}

// A stream whose second window does not come: what was trained is saved while the trainer waits, or is not.
TEST(Trainer, WhileDataStaysAwayItSavesUnlessToldNotTo) {
  for (const bool saves : {true, false}) {
    SCOPED_TRACE(saves);
    TestRun run;
    TrainOptions options = run.options();
    options.checkpoint_every = 100;
    options.checkpoint_on_pressure = saves;
    run.fill_stream(/*poisoned=*/-1, /*captured=*/kWindow);
    std::atomic<bool> stop = false;
    std::thread trainer([&] { run_train(options, {}, stop); });
    const auto ledger = open_sqlite_ledger(options.ledger);
    const auto step_of = [&](std::int64_t GroupStatus::*step) { return ledger->status().of(GroupId("train")).*step; };
    const auto wanted = saves ? &GroupStatus::durable_step : &GroupStatus::trained_step;
    for (int i = 0; i < 1200 && step_of(wanted) == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_EQ(step_of(wanted), 1);
    if (!saves) {
      std::this_thread::sleep_for(std::chrono::milliseconds(3500));
      EXPECT_EQ(step_of(&GroupStatus::durable_step), 0);
    }
    stop = true;
    trainer.join();
    EXPECT_EQ(step_of(&GroupStatus::durable_step), 1) << "at the end it saves in any case";
  }
}

// Two, then one, then four ranks in one stream; what was trained is the same.
TEST(Trainer, TheNumberOfRanksChangesWithinARun) {
  TestRun alone, changing;
  const auto prepare = [&](TestRun& run) {
    run.fill_stream();
    TrainOptions options = run.options();
    options.dtype = "float64";
    options.batch = 1;
    return options;
  };
  alone.train(prepare(alone));
  TrainOptions options = prepare(changing);
  changing.train(options, 2);
  EXPECT_EQ(train_ranks(changing, options, 4, "wide").at(3).step, 6);
  EXPECT_LT(
      greatest_difference(alone.path() / "train/draft/model.safetensors", changing.path() / "train/draft/model.safetensors"),
      1e-9);
  EXPECT_EQ(open_sqlite_ledger(changing.options().ledger)->trained_ids(GroupId("train")),
            open_sqlite_ledger(alone.options().ledger)->trained_ids(GroupId("train")));
}

TEST(Trainer, OtherOptionsAndOtherLedgersAreRefused) {
  TestRun run;
  run.fill_stream();
  run.train(run.options(), 2);
  TrainOptions other = run.options();
  other.learning_rate = 1e-3;
  EXPECT_THROW(run.train(other), InvalidArgument);
  TestRun second;
  second.fill_stream();
  TrainOptions foreign = second.options();
  foreign.out = run.options().out;
  EXPECT_THROW(second.train(foreign), Conflict);
}

TEST(Trainer, ASecondTrainerInTheSameFolderIsRefused) {
  TestRun run;
  run.fill_stream();
  std::atomic<bool> stop = false;
  bool refused = false;
  run_train(
      run.options(),
      [&](const TrainProgress&) {
        stop = true;
        try {
          run.train(run.options());
        } catch (const Unavailable& error) {
          refused = std::string(error.what()).find("another trainer works in") == 0;
        }
      },
      stop);
  EXPECT_TRUE(refused);
  EXPECT_EQ(run.train(run.options()).step, 6);  // the lock went with its holder
}

TEST(Trainer, AnotherTargetOfTheSameShapeIsRefusedOnResume) {
  TestRun run;
  run.fill_stream();
  run.train(run.options(), 2);
  const auto file = run.options().target / "model.safetensors";
  TensorMap tensors = read_safetensors(file);
  tensors[0].second = from_torch(to_torch(tensors[0].second) * 1.5);
  write_safetensors(file, tensors);
  EXPECT_THROW(run.train(run.options()), InvalidArgument);
}

TEST(Trainer, ATokenThatTheTargetLacksFailsItsSampleOnly) {
  TestRun run;
  make_folders(run.path() / "files");
  for (int i = 0; i < 8; ++i) {
    TensorMap features = testing_support::make_features(static_cast<std::uint64_t>(i), 40);
    if (i == 3) {
      at::Tensor ids = to_torch(features[0].second).clone();
      ids[5] = 1000;
      features[0].second = from_torch(ids);
    }
    write_safetensors(run.path() / "files" / fmt::format("{}.safetensors", i), features);
  }
  const std::atomic<bool> stop = false;
  run_ingest({.folder = run.path() / "files", .ledger = run.options().ledger}, {}, stop);
  TrainOptions options = run.options();
  options.store.clear();
  const TrainProgress end = run.train(options);
  EXPECT_EQ(end.step, 2);
  EXPECT_EQ(end.failed, 1);
  EXPECT_EQ(end.samples, 7);
}

TEST(Trainer, RefusesWhatCannotTrain) {
  TestRun run;
  run.fill_stream();
  const auto refused = [&](auto change) {
    TrainOptions options = run.options();
    change(options);
    EXPECT_THROW(run.train(options), InvalidArgument);
  };
  refused([](TrainOptions& o) { o.window = 5; });   // batch 2 does not divide it
  refused([](TrainOptions& o) { o.ranks = 4; });    // nor do 4 ranks with batch 2
  refused([](TrainOptions& o) { o.rank = 1; });     // of one
  refused([](TrainOptions& o) { o.ranks = 2; });    // nowhere to meet
  refused([](TrainOptions& o) { o.window = 28; });  // more than there are samples
  refused([](TrainOptions& o) { o.learning_rate = 0; });
  refused([](TrainOptions& o) { o.dtype = "float16"; });
  refused([](TrainOptions& o) { o.max_window_tokens = 100; });  // of how many steps?
  refused([](TrainOptions& o) { o.max_window_tokens = -1; });
  refused([](TrainOptions& o) { o.loss = "ce"; });
  refused([](TrainOptions& o) {
    o.heads = 3;
    o.kv_heads = 2;
  });
  refused([](TrainOptions& o) { o.draft_vocab = 41; });
  refused([](TrainOptions& o) { o.store.clear(); });
  EXPECT_EQ(open_sqlite_ledger(run.options().ledger)->status().of(GroupId("train")).trained, 0);
}

TEST(Trainer, AnOfflineSetIsReadForSeveralEpochsAndResumes) {
  const auto write_files = [](const std::filesystem::path& folder) {
    make_folders(folder);
    for (int i = 0; i < 10; ++i) {
      write_safetensors(folder / fmt::format("{:04}.safetensors", i),
                        testing_support::make_features(static_cast<std::uint64_t>(i), 6 + i % 5));
    }
  };
  TestRun straight, broken;
  const std::atomic<bool> stop = false;
  for (TestRun* run : {&straight, &broken}) {
    write_files(run->path() / "files");
    run_ingest({.folder = run->path() / "files", .ledger = run->options().ledger}, {}, stop);
  }
  const auto offline = [](TestRun& run) {
    TrainOptions options = run.options();
    options.store.clear();
    options.epochs = 3;
    return options;
  };
  TrainOptions capped = offline(straight);
  capped.max_window_tokens = 20;
  capped.total_steps = 9;
  EXPECT_THROW(straight.train(capped), InvalidArgument);  // its windows are found by counting samples
  EXPECT_EQ(straight.train(offline(straight)).step, 6);   // two windows an epoch
  EXPECT_EQ(broken.train(offline(broken), 3).step, 3);
  EXPECT_EQ(broken.train(offline(broken)).step, 6);
  EXPECT_EQ(broken.draft_bytes(), straight.draft_bytes());
  EXPECT_TRUE(std::filesystem::exists(broken.path() / "files/0009.safetensors"));  // the user's own files stay
}

TEST(Trainer, TrainsOnTheRealFeatureFiles) {
  DRAFTFLOW_REQUIRE_REAL_DATA(features, "features-torch");
  DRAFTFLOW_REQUIRE_REAL_DATA(model, "stories260k-hf");
  TestRun run;
  const std::atomic<bool> stop = false;
  EXPECT_EQ(run_ingest({.folder = features, .ledger = run.options().ledger}, {}, stop).committed, 64);
  TrainOptions options = run.options();
  options.target = model;
  options.store.clear();
  options.window = options.batch = 8;
  options.draft_vocab = 128;
  std::vector<double> losses;
  run_train(
      options, [&](const TrainProgress& p) { losses.push_back(p.loss_total); }, stop);
  ASSERT_EQ(losses.size(), 8u);
  EXPECT_LT(losses.back(), losses.front());
}

TEST(Trainer, AConsumeOnceStoreIsRefusedAtStart) {
  TestRun run;
  run.fill_stream();
  create_shared_dir_store(run.path() / "store", StoreId("once"), {.kind = StoreKind::kConsumeOnce});
  TrainOptions with = run.options();
  with.store = run.path() / "store" / "once";
  std::string message;
  try {
    run.train(with);
  } catch (const InvalidArgument& error) {
    message = error.what();
  }
  EXPECT_NE(message.find("is consume_once"), std::string::npos) << message;
}

}  // namespace
}  // namespace draftflow
