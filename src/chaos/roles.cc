// SPDX-License-Identifier: Apache-2.0
#include "chaos/roles.h"

#include <fmt/format.h>

#include <chrono>
#include <sstream>
#include <thread>

#include "chaos/chaos_ledger.h"
#include "chaos/tables.h"
#include "draftflow/base/file.h"
#include "draftflow/flow/cross_check.h"

namespace draftflow::chaos {
namespace {

constexpr std::int64_t kPromptsAhead = 48;
constexpr std::int64_t kPromptsAtOnce = 200, kPromptsASecond = 150;  // so that the histories of a long run stay short
constexpr int kIngestBatch = 16;
constexpr int kFreeBatch = 24;
constexpr double kOrphanSeconds = 10;  // longer than any producer takes from put to commit

std::vector<std::string> ids_of(const std::vector<SampleRow>& samples, bool gone) {
  std::vector<std::string> ids;
  for (const SampleRow& sample : samples) {
    if (sample.gone == gone) ids.push_back(sample.id);
  }
  return ids;
}

// What a late group has joined at: the samples that were surely claimed by it ("member"), and those that surely were not
// ("stranger").
std::filesystem::path joined_file(const Plan& plan, const GroupPlan& group) {
  return plan.folder / (group.name + ".joined");
}

void sweep(Stage& stage, Ledger& ledger, FeatureStore& store, double age_s) {
  stage.board.add(Count::kOrphans, sweep_orphans(ledger, store, age_s).removed);
}

}  // namespace

int run_ingester(Stage& stage) {
  ChaosLedger ledger(stage);
  for (;;) {
    const LedgerStatus status = ledger.status();
    if (status.prompts_closed) return kFinished;
    stage.point(Point::kNone);
    if (stage.board.stop_ingest() != 0) {
      ledger.close_prompts();
      return kFinished;
    }
    const std::int64_t by_now = kPromptsAtOnce + (steady_ms() - stage.plan.started_ms) * kPromptsASecond / 1000;
    if (status.prompts_pending >= kPromptsAhead || status.prompts > by_now) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      continue;
    }
    std::vector<PromptTask> tasks;
    for (int i = 0; i < kIngestBatch; ++i) {
      PromptTask task{.task_id = TaskId(task_name(status.prompts + i)), .run_id = RunId("chaos")};
      task.source_id = fmt::format("chaos:{}", status.prompts + i);
      task.payload = R"({"text":"once upon"})";
      tasks.push_back(std::move(task));
    }
    ledger.ingest_prompts(tasks, {});
  }
}

int run_joiner(Stage& stage, std::size_t index) {
  const GroupPlan& group = stage.plan.groups.at(index);
  ChaosLedger ledger(stage);
  std::vector<SampleRow> before, after;
  const auto look = [&](std::vector<SampleRow>& samples) {
    with_patience(stage, [&] { samples = Tables(stage.plan.ledger).samples(); });
  };
  look(before);
  if (stage.plan.bug == Bug::kNoteBeforeJoining) {
    look(after);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }
  stage.point(Point::kNone);
  ledger.declare_group(config_of(stage.plan, group));
  stage.point(Point::kNone);
  if (stage.plan.bug != Bug::kNoteBeforeJoining) look(after);
  std::string text;
  for (const std::string& id : ids_of(before, true)) text += fmt::format("stranger {}\n", id);
  for (const std::string& id : ids_of(after, false)) text += fmt::format("member {}\n", id);
  replace_file(joined_file(stage.plan, group), text);
  return kFinished;
}

int run_closer(Stage& stage, std::size_t index) {
  ChaosLedger ledger(stage);
  stage.point(Point::kNone);
  ledger.close_group(GroupId(stage.plan.groups.at(index).name));
  stage.point(Point::kNone);
  return kFinished;
}

int run_collector(Stage& stage) {
  std::unique_ptr<FeatureStore> store;
  with_patience(stage, [&] { store = open_store(stage.plan, 0); });
  with_patience(stage, [&] { store->gc(); });
  ChaosLedger ledger(stage);
  with_patience(stage, [&] { sweep(stage, ledger, *store, kOrphanSeconds); });
  return kFinished;
}

int run_sweeper(Stage& stage) {
  ChaosLedger ledger(stage);
  std::unique_ptr<FeatureStore> store;
  with_patience(stage, [&] { store = open_store(stage.plan, 0); });
  free_bytes(stage, ledger, *store, std::nullopt);
  sweep(stage, ledger, *store, 0);
  return kFinished;
}

void log_launch(const Plan& plan, const std::string& launch, const std::string& what) {
  append_line(plan.folder / "launches.log", launch + " " + what);
}

void free_bytes(Stage& stage, Ledger& ledger, FeatureStore& store, std::optional<std::size_t> group) {
  stage.point(Point::kBeforeFreeable, group);
  for (;;) {
    const std::vector<SampleRef> refs = ledger.freeable(kFreeBatch);
    if (refs.empty()) return;
    stage.point(Point::kBeforeRemove, group);
    std::vector<SampleId> ids;
    for (const SampleRef& ref : refs) {
      store.remove(ref);
      ids.push_back(ref.sample_id);
    }
    stage.point(Point::kBeforeFreed, group);
    ledger.freed(ids);
    stage.board.add(Count::kFreed, static_cast<std::int64_t>(ids.size()));
  }
}

TensorMap read_bytes(Stage& stage, FeatureStore& store, const SampleRef& ref) {
  TensorMap tensors;
  const bool leased = stage.random.below(2) == 0;
  with_patience(stage, [&] {
    if (!leased) {
      tensors = store.read(ref);
      return;
    }
    Fetched fetched = store.get(ref);
    stage.point(Point::kNone);
    store.release(fetched.handle);
    tensors = std::move(fetched.tensors);
  });
  return tensors;
}

std::set<std::string> members_of(const Plan& plan, const GroupPlan& group, const std::vector<SampleRow>& samples,
                                 std::set<std::string>& perhaps) {
  std::set<std::string> all, claimed, strangers;
  if (group.late) {
    for (const std::string& line : read_lines(joined_file(plan, group))) {
      std::istringstream words(line);
      std::string what, id;
      words >> what >> id;
      (what == "member" ? claimed : strangers).insert(id);
    }
  }
  bool later = true;  // than the joining: from the end on
  for (auto sample = samples.rbegin(); sample != samples.rend(); ++sample) {
    later = later && !claimed.contains(sample->id) && !strangers.contains(sample->id);
    if (later || claimed.contains(sample->id)) {
      all.insert(sample->id);
    } else if (!strangers.contains(sample->id)) {
      perhaps.insert(sample->id);
    }
  }
  return all;
}

}  // namespace draftflow::chaos
