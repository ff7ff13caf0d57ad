// SPDX-License-Identifier: Apache-2.0
#include "chaos/checker.h"

#include <fmt/format.h>
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <thread>

#include "chaos/history.h"
#include "chaos/queue_checker.h"
#include "chaos/roles.h"
#include "chaos/tables.h"
#include "draftflow/base/error.h"
#include "ledger/sql/recount.h"

namespace draftflow::chaos {
namespace {

class Checker {
 public:
  explicit Checker(Stage& stage)
      : stage_(stage), plan_(stage.plan), tables_(plan_.ledger), store_(open_store(plan_, 0)), samples_(tables_.samples()) {}

  std::vector<std::string> run() {
    check_prompts();
    for (const GroupPlan& group : plan_.groups) {
      if (group.queue) {
        for (const std::string& one : check_queue(plan_, group, tables_)) wrong("{}", one);
      } else {
        check_group(group);
      }
    }
    check_store();
    check_counters();
    return wrong_;
  }

 private:
  static std::set<std::string> set_of(const std::vector<std::string>& ids) { return {ids.begin(), ids.end()}; }

  template <class... Args>
  void wrong(fmt::format_string<Args...> text, Args&&... args) {
    constexpr std::size_t kMost = 30;
    if (wrong_.size() < kMost) wrong_.push_back(fmt::format(text, std::forward<Args>(args)...));
  }

  // --- each prompt has become a sample, or failed with a reason
  void check_prompts() {
    std::vector<std::string> ids;
    for (const SampleRow& sample : samples_) ids.push_back(sample.id);
    const std::set<std::string> committed = set_of(ids);
    if (tables_.ledger().all_committed_ids() != ids)
      wrong("all_committed_ids() are not the samples in the order of their rows");
    if (committed.size() != ids.size()) wrong("a sample is committed twice");
    for (const PromptRow& prompt : tables_.prompts()) {
      const bool poisoned = kind_of(plan_, prompt.id) == Kind::kPoisoned;
      const bool done = prompt.state == 2, failed = prompt.state == 3;
      if (done != committed.contains(prompt.id)) {
        wrong("prompt {} is in state {}, but its sample is {}", prompt.id, prompt.state, done ? "not committed" : "committed");
      }
      if (done == poisoned || failed != poisoned || (failed && prompt.reason.empty())) {
        wrong("prompt {}, {}, ended in state {}: '{}'", prompt.id, poisoned ? "poisoned" : "sound", prompt.state,
              prompt.reason);
      }
    }
  }

  // --- each sample is in the final checkpoint exactly once in each pass, or dropped, or failed
  std::optional<History> final_history(const GroupPlan& group) {
    std::vector<CheckpointFile> files = list_checkpoints(plan_.checkpoints(group));
    for (CheckpointFile& file : list_checkpoints(aside(plan_.checkpoints(group)))) files.push_back(std::move(file));
    std::sort(files.begin(), files.end());
    while (!files.empty() && !tables_.is_on_line(group.name, files.back().timeline, files.back().step)) files.pop_back();
    if (files.empty()) return std::nullopt;
    return load_history(files.back().path);
  }

  void check_group(const GroupPlan& group) {
    const auto found = final_history(group);
    if (!found) {
      if (!group.closed) wrong("group {} has no final checkpoint", group.name);
      return;
    }
    const History& history = *found;
    const auto dropped = tables_.dropped(group.name);
    check_windows(group, history);
    std::map<std::string, int> seen;
    std::vector<std::string> trained;
    for (const TrainedWindow& window : history.windows) {
      for (std::size_t i = 0; i < window.ids.size(); ++i) {
        const std::string& id = window.ids[i];
        ++seen[id];
        if (!window.failed[i]) trained.push_back(id);
        check_failure(group, id, window.number, window.failed[i]);
      }
    }
    check_passes(group, history, seen);
    for (const auto& [id, reason] : dropped) {
      ++seen[id];
      if (reason != "rewound" && (reason != "tail shorter than a window" || group.tail == TailPolicy::kCarry)) {
        wrong("group {}: sample {} is dropped because of '{}'", group.name, id, reason);
      }
    }
    for (const auto& [id, times] : seen) {
      if (times != 1) wrong("group {}: sample {} was trained, failed or dropped {} times", group.name, id, times);
    }
    std::vector<std::string> by_ledger = tables_.ledger().trained_ids(GroupId(group.name));
    if (group.closed) by_ledger.resize(std::min(by_ledger.size(), trained.size()));
    if (by_ledger != trained) {
      wrong(
          "group {}: the final checkpoint was trained on {} samples, trained_ids() are {}, and they are not the same in the "
          "same order",
          group.name, trained.size(), by_ledger.size());
    }
    if (!group.closed) check_complete(group, history, seen, dropped.size());
  }

  // The ledger tells of the same windows, each of W samples and at one step.
  void check_windows(const GroupPlan& group, const History& history) {
    const std::vector<WindowRow> rows = tables_.windows(group.name);
    if (rows.size() != history.windows.size() && !(group.closed && rows.size() > history.windows.size())) {
      wrong("group {}: the final checkpoint has {} windows, the ledger {}", group.name, history.windows.size(), rows.size());
    }
    std::int64_t step = 0;
    for (std::size_t i = 0; i < std::min(rows.size(), history.windows.size()); ++i) {
      const TrainedWindow& window = history.windows[i];
      const WindowRow& row = rows[i];
      std::map<std::string, bool> failed;
      for (std::size_t p = 0; p < window.ids.size(); ++p) failed[window.ids[p]] = window.failed[p];
      const bool same_reasons =
          std::ranges::all_of(failed, [&](const auto& one) { return one.second == row.reasons.contains(one.first); });
      if (window.number != static_cast<std::int64_t>(i) || window.ids.size() != static_cast<std::size_t>(group.window) ||
          window.step <= step) {
        wrong("group {}: place {} of the history is window {} of {} samples at step {}, after step {}", group.name, i,
              window.number, window.ids.size(), window.step, step);
      }
      if (window.ids != row.ids || row.step != window.step || !same_reasons) {
        wrong("group {}: window {} is at step {} in the history, at step {} in the ledger, with other samples or failures",
              group.name, i, window.step, row.step.value_or(0));
      }
      step = window.step;
    }
  }

  // Each pass goes over the windows of the first one, in their order; from here on a sample is counted once for all of them.
  void check_passes(const GroupPlan& group, const History& history, std::map<std::string, int>& seen) {
    if (group.passes == 1) return;
    const auto passes = static_cast<std::size_t>(group.passes);
    const std::size_t each = windows_of_a_pass(group, history);
    if (each * passes != history.windows.size()) {
      wrong("group {}: {} windows are not {} passes", group.name, history.windows.size(), passes);
    }
    for (std::size_t i = each; each > 0 && i < history.windows.size(); ++i) {
      if (history.windows[i].ids == history.windows[i % each].ids) continue;
      wrong("group {}: window {} has other samples than window {} of the first pass", group.name, i, i % each);
    }
    for (auto& [id, times] : seen) {
      if (times != group.passes) wrong("group {}: sample {} was in {} windows of {} passes", group.name, id, times, passes);
      times = 1;
    }
  }

  static std::size_t windows_of_a_pass(const GroupPlan& group, const History& history) {
    return history.windows.size() / static_cast<std::size_t>(group.passes);
  }

  // What failed in one pass is tried again in the next.
  void check_failure(const GroupPlan& group, const std::string& id, std::int64_t window, bool failed) {
    const Kind kind = kind_of(plan_, id);
    if (kind == Kind::kFitful) {
      if (failed == falters_in(plan_, id, window)) return;
      wrong("group {}: sample {} {} in window {}, and should not have", group.name, id, failed ? "failed" : "was trained on",
            window);
      return;
    }
    const bool may_fail = kind == Kind::kNotFinite || kind == Kind::kDeleted || kind == Kind::kDamaged;
    if (failed && !may_fail) wrong("group {}: sample {} failed, and nothing was wrong with it", group.name, id);
    if (!failed && kind == Kind::kNotFinite) wrong("group {}: sample {} was trained on, and holds a NaN", group.name, id);
  }

  void check_complete(const GroupPlan& group, const History& history, const std::map<std::string, int>& seen,
                      std::size_t dropped) {
    std::set<std::string> perhaps, missing;
    const std::set<std::string> all = members_of(plan_, group, samples_, perhaps);
    for (const std::string& id : all) {
      if (!seen.contains(id)) missing.insert(id);
    }
    for (const auto& [id, times] : seen) {
      if (!all.contains(id) && !perhaps.contains(id)) wrong("group {}: sample {} was freed before it joined", group.name, id);
    }
    // Carried: the last ones, fewer than a window.
    const auto carried = static_cast<std::int64_t>(missing.size());
    const bool at_the_end = std::ranges::all_of(missing, [&](const std::string& id) {
      const auto from = samples_.end() - carried;
      return std::any_of(from, samples_.end(), [&](const SampleRow& sample) { return sample.id == id; });
    });
    if (carried > 0 && (group.tail == TailPolicy::kDrop || carried >= group.window || !at_the_end)) {
      wrong("group {}: {} samples were never trained, failed or dropped, {} among them", group.name, carried, *missing.begin());
    }
    std::int64_t failed = 0, trained = 0;
    for (const TrainedWindow& window : history.windows) {
      failed += std::count(window.failed.begin(), window.failed.end(), true);
      trained += std::count(window.failed.begin(), window.failed.end(), false);
    }
    const GroupStatus status = tables_.ledger().status().of(GroupId(group.name));
    const bool right = status.available == carried && status.windowed == 0 && status.trained == 0 &&
                       status.durable == trained && status.failed == failed &&
                       status.dropped == static_cast<std::int64_t>(dropped);
    if (!right) {
      wrong(
          "group {}: status() says {} available, {} windowed, {} trained, {} durable, {} failed, {} dropped; found {}, 0, 0, "
          "{}, {}, {}",
          group.name, status.available, status.windowed, status.trained, status.durable, status.failed, status.dropped, carried,
          trained, failed, dropped);
    }
    claim_needed(group, history, all);
  }

  // --- what is needed is there, and nothing else
  void claim_needed(const GroupPlan& group, const History& history, const std::set<std::string>& all) {
    std::set<std::string> needed = all;
    for (const auto& [id, reason] : tables_.dropped(group.name)) needed.erase(id);
    const auto steps = tables_.checkpoint_steps(group.name);
    const auto resumable = static_cast<std::size_t>(group.resumable);
    const std::int64_t held = steps.size() < resumable ? -1 : steps[resumable - 1];
    const std::size_t last_pass = windows_of_a_pass(group, history) * static_cast<std::size_t>(group.passes - 1);
    for (const TrainedWindow& window : history.windows) {
      if (window.step > held || static_cast<std::size_t>(window.number) < last_pass) continue;
      for (const std::string& id : window.ids) needed.erase(id);
    }
    needed_.insert(needed.begin(), needed.end());
  }

  void check_store() {
    std::map<std::string, std::uint64_t> committed;
    for (const SampleRow& sample : samples_) {
      committed[sample.id] = sample.generation;
      const bool needed = needed_.contains(sample.id);
      if (needed != sample.needed || needed == sample.gone) {
        wrong("sample {} is {} by a group, but the ledger says {}", sample.id, needed ? "needed" : "not needed",
              sample.needed ? "needed" : (sample.gone ? "freed" : "may go"));
      }
    }
    std::set<std::string> there;
    std::uint64_t count = 0, bytes = 0;
    store_->for_each(
        [&](const ResidentSample& found) {
          const std::string& id = found.sample_id.str();
          ++count;
          bytes += found.bytes;
          const auto at = committed.find(id);
          if (at == committed.end() || at->second != found.generation) {
            wrong("sample {} generation {} is resident, but generation {} is committed", id, found.generation,
                  at == committed.end() ? 0 : at->second);
          } else if (!needed_.contains(id)) {
            wrong("sample {} generation {} is resident, and no group needs it", id, found.generation);
          } else {
            there.insert(id);
          }
          return true;
        },
        [&](const std::filesystem::path& file, const std::string& what) { wrong("{} is damaged: {}", file.string(), what); });
    for (const std::string& id : needed_) {
      if (!there.contains(id) && kind_of(plan_, id) != Kind::kDeleted) {
        wrong("sample {} generation {} is needed, and its bytes are gone", id, committed[id]);
      }
    }
    for (const std::string& id : there) check_bytes(id);
    check_account(count, bytes);
    for (const auto& entry : std::filesystem::directory_iterator(plan_.disk() / "features" / "tmp")) {
      wrong("{} is left, although a gc has been", entry.path().string());
    }
  }

  // A process that died in the midst of a step leaves the figures too high, until a gc has seen that step for 10 s.
  void check_account(std::uint64_t count, std::uint64_t bytes) {
    constexpr int kSeconds = 15;
    const auto right = [&](const StoreHealth& health) {
      return health.resident_samples == count && health.resident_bytes == bytes && health.live_leases == 0;
    };
    StoreHealth health = store_->health();
    for (int i = 0; i < kSeconds && !right(health) && health.resident_samples >= count && health.resident_bytes >= bytes; ++i) {
      std::this_thread::sleep_for(std::chrono::seconds(1));
      store_->gc();
      health = store_->health();
    }
    if (right(health)) return;
    wrong("the store counts {} samples, {} bytes and {} leases; found {}, {} and none", health.resident_samples,
          health.resident_bytes, health.live_leases, count, bytes);
  }

  void check_bytes(const std::string& id) {
    const Kind kind = kind_of(plan_, id);
    try {
      const auto ref = tables_.ledger().get_committed(SampleId(id));
      const auto failure = check_tensors(stage_, id, store_->read(ref.value()));
      if (failure.has_value() != (kind == Kind::kNotFinite))
        wrong("sample {} is resident with {}", id, failure.value_or("no NaN"));
    } catch (const Corrupt& error) {
      if (kind != Kind::kDamaged) wrong("sample {}: {}", id, error.what());
    }
  }

  // --- the ledger's counters, counted again
  void check_counters() {
    testing::TestPartResultArray results;
    {
      testing::ScopedFakeTestPartResultReporter reporter(
          testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &results);
      testing_support::expect_books_balance(tables_.ledger());
      testing_support::expect_prompts_match_samples(tables_.ledger());
    }
    for (int i = 0; i < results.size(); ++i) {
      if (results.GetTestPartResult(i).failed()) wrong("the books do not balance: {}", results.GetTestPartResult(i).message());
    }
    if (is_ledger_url(plan_.ledger)) return;
    sql::Query integrity = tables_.ledger().database().query("PRAGMA integrity_check");
    if (!integrity.step() || integrity.text(0) != "ok") wrong("the ledger's file is damaged: {}", integrity.text(0));
  }

  Stage& stage_;
  const Plan& plan_;
  Tables tables_;
  std::unique_ptr<FeatureStore> store_;
  const std::vector<SampleRow> samples_;
  std::set<std::string> needed_;
  std::vector<std::string> wrong_;
};

}  // namespace

std::vector<std::string> check_books(Stage& stage) {
  return Checker(stage).run();
}

}  // namespace draftflow::chaos
