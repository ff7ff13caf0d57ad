// SPDX-License-Identifier: Apache-2.0
#include "cli/run_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "cli/config.h"
#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr std::size_t kMaxHoldersShown = 20;

std::int64_t waiting_of(const GroupStatus& group) {
  return group.available + group.leased + group.windowed;
}

// The group that keeps the others' bytes: the open one that has the most before it.
GroupStatus slowest_group(const LedgerStatus& status) {
  const GroupStatus* slowest = nullptr;
  for (const GroupStatus& group : status.groups) {
    if (group.open && (slowest == nullptr || waiting_of(group) > waiting_of(*slowest))) slowest = &group;
  }
  return slowest != nullptr ? *slowest : status.of(GroupId("train"));
}

std::int64_t seen_by(const GroupStatus& group) {
  return group.trained + group.durable + group.failed;
}

// How far the slowest group is behind the next one; 0 if it is the only one.
std::int64_t lag_of(const LedgerStatus& status, const GroupStatus& slowest) {
  std::optional<std::int64_t> next;
  for (const GroupStatus& group : status.groups) {
    if (group.open && group.group != slowest.group) next = std::max(next.value_or(0), waiting_of(group));
  }
  return next ? waiting_of(slowest) - *next : 0;
}

// Why nothing is captured, or that it is.
std::string capture_text(const RunView& view) {
  const LedgerStatus& s = view.status;
  std::int64_t workers = 0, leased = 0, expired = 0;
  for (const HolderLeases& one : view.leases) {
    if (!one.group.empty()) continue;
    ++workers;
    leased += one.count;
    expired += one.expired;
  }
  if (leased > expired) {
    return fmt::format("{} prompts are leased by {} worker{}", leased, workers, workers == 1 ? "" : "s");
  }
  if (leased > 0 && s.prompts_pending == 0) {
    return fmt::format("{} prompts are leased, every lease has run out, and no worker asks", leased);
  }
  if (s.prompts_pending > 0) return fmt::format("{} prompts wait and no worker takes them", s.prompts_pending + leased);
  return "none is waiting, and they are not closed";
}

std::string waits_text(const RunView& view, const std::string& name, std::int64_t waiting) {
  const LedgerStatus& s = view.status;
  if (s.prompts_pending + s.prompts_leased == 0) {
    return fmt::format("the prompts: group '{}' waits for samples ({} are there), {}", name, waiting, capture_text(view));
  }
  return fmt::format("capture: group '{}' waits for samples ({} are there), {}", name, waiting, capture_text(view));
}

std::string paused_text(const RunView& view, const GroupStatus& group, std::int64_t waiting, std::int64_t window) {
  const LedgerStatus& s = view.status;
  const std::string name = printable(group.group);
  const std::string paused = fmt::format("producers pause, {} are resident and {} may be", human_bytes(s.resident_bytes),
                                         human_bytes(view.budget.high_bytes));
  if (const std::int64_t lag = lag_of(s, group); lag >= window) {
    return fmt::format("group '{}': {}; it is {} samples behind the other groups and keeps {}", name, paused, lag,
                       group.pinned);
  }
  if (waiting < window) {
    return fmt::format("checkpoints: {}; group '{}' has used what is there, and its bytes go only with a checkpoint", paused,
                       name);
  }
  return fmt::format("training: {}; {} samples wait for group '{}'", paused, waiting, name);
}

std::string lease_line(const HolderLeases& one) {
  const double seconds = std::abs(static_cast<double>(one.expires_in_ms)) / 1000;
  std::string text = fmt::format("lease      {}: {} {}", printable(one.holder), one.count,
                                 one.group.empty() ? "prompts" : fmt::format("refs of queue '{}'", printable(one.group)));
  if (one.expired == one.count) return text + fmt::format(", ran out {} ago\n", human_seconds(seconds));
  text += fmt::format(", for another {}", human_seconds(seconds));
  return text + (one.expired > 0 ? fmt::format("; {} of them ran out\n", one.expired) : "\n");
}

std::string group_lines(const GroupStatus& g) {
  if (g.kind == GroupKind::kQueue) {
    return fmt::format(
        "queue      {}{}: {} available, {} leased, {} acknowledged; aside: {} dropped, {} failed; {} stay for it\n",
        printable(g.group), g.open ? "" : " (closed)", g.available, g.leased, g.durable, g.dropped, g.failed, g.pinned);
  }
  const std::string passes = g.passes > 1 ? fmt::format(", {} passes", g.passes) : "";
  const std::string cap = g.max_window_tokens > 0 ? fmt::format(" or {} tokens", g.max_window_tokens) : "";
  return fmt::format(
             "group      {}{}{}: {} available, {} in windows of {}{}, {} trained, {} durable; aside: {} dropped, {} failed\n",
             printable(g.group), g.open ? "" : " (closed)", passes, g.available, g.windowed, g.window, cap, g.trained,
             g.durable, g.dropped, g.failed) +
         fmt::format("           timeline {} with {} rank{}, trained to step {}, durable to step {}; {} samples stay for it\n",
                     g.timeline, g.width, g.width == 1 ? "" : "s", g.trained_step, g.durable_step, g.pinned);
}

}  // namespace

ByteBudget find_budget(std::uint64_t high_watermark, const std::filesystem::path& where, const StorePath& store) {
  if (high_watermark > 0) return {high_watermark, 0};
  std::error_code ignored;
  if (!is_ledger_url(where.string()) && std::filesystem::is_regular_file(where / "run.yaml", ignored)) {
    try {
      const RunConfig config = load_run_config(where / "run.yaml");
      return {config.capture.high_watermark_bytes, config.capture.low_watermark_bytes};
    } catch (const Error&) {  // of another version, say: the counters are shown all the same
    }
  }
  if (!store.path.empty()) return {open_store(store).store->health().max_resident_bytes, 0};
  return {};
}

std::optional<Starvation> find_starvation(const std::filesystem::path& where) {
  std::error_code ignored;
  if (is_ledger_url(where.string()) || !std::filesystem::is_directory(where / "metrics", ignored)) return std::nullopt;
  Starvation all;
  std::map<std::string, Json> producers, trainers;
  for (const auto& entry : std::filesystem::directory_iterator(where / "metrics", ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("capture-") && name != "train.jsonl") continue;
    for (const Json& record : read_metrics(entry.path())) {
      const auto process = record.find("process");
      if (process == record.end() || !process->is_string()) continue;
      (name == "train.jsonl" ? trainers : producers)[process->get<std::string>()] = record;
    }
  }
  for (const auto& [process, last] : producers) all.producers_paused_s += number_or(last, "paused_seconds", 0);
  for (const auto& [process, last] : trainers) all.trainers_waited_s += number_or(last, "total_wait_seconds", 0);
  return all;
}

RunRates rates_between(const LedgerStatus& before, const LedgerStatus& now, double seconds) {
  const GroupStatus slowest = slowest_group(now);
  return {static_cast<double>(now.committed - before.committed) / seconds,
          static_cast<double>(seen_by(slowest) - seen_by(before.of(GroupId(slowest.group)))) / seconds};
}

RunView look(Ledger& ledger, const ByteBudget& budget) {
  RunView view{.status = ledger.status(), .leases = ledger.leases(), .budget = budget, .rates = {}, .starvation = {}};
  return view;
}

std::string what_limits(const RunView& view) {
  const LedgerStatus& now = view.status;
  const GroupStatus group = slowest_group(now);
  // Under a cap even a few samples may make windows.
  const std::int64_t waiting = waiting_of(group), window = group.max_window_tokens > 0 ? 1 : std::max(group.window, 1);
  const bool captured = now.prompts_closed && now.prompts_pending + now.prompts_leased == 0;
  const bool full = view.budget.high_bytes > 0 && now.resident_bytes >= view.budget.high_bytes;
  const std::string name = printable(group.group);
  if (now.groups.empty()) return fmt::format("training: no trainer has come yet; {} samples wait", now.committed);
  if (std::none_of(now.groups.begin(), now.groups.end(), [](const GroupStatus& one) { return one.open; })) {
    return "training: every group was closed, and nobody takes samples";
  }
  if (captured && waiting < window) return "nothing: everything is captured and trained";
  if (full && !captured) return paused_text(view, group, waiting, window);
  if (waiting < window) return waits_text(view, name, waiting);
  const bool still = view.rates && view.rates->committed == 0 && view.rates->trained == 0;
  if (still) {
    return fmt::format(
        "training: nothing moves, {} samples wait for group '{}', whose trainer is not there or busy with one step", waiting,
        name);
  }
  if (waiting < 2 * window) {
    return fmt::format("capture: group '{}' takes samples as they come ({} wait)", name, waiting);
  }
  if (captured) return fmt::format("training: everything is captured, {} samples wait for group '{}'", waiting, name);
  if (view.rates && view.rates->committed == 0) {
    return fmt::format("training: producers pause or are slow, {} samples ({} resident) wait for group '{}'", waiting,
                       human_bytes(now.resident_bytes), name);
  }
  if (const std::int64_t lag = lag_of(now, group); lag >= std::max(2 * window, now.committed / 10)) {
    return fmt::format("group '{}': it is {} samples behind the other groups and keeps {}", name, lag, group.pinned);
  }
  return fmt::format("training: {} samples wait for group '{}'", waiting, name);
}

std::string run_view_text(const RunView& view) {
  const LedgerStatus& s = view.status;
  std::string text = fmt::format("run        {}   ledger {}\n", printable(s.run_id.empty() ? "-" : s.run_id), s.ledger_id);
  text +=
      fmt::format("prompts    {} on the books ({}): {} pending, {} leased, {} done, {} failed\n", s.prompts,
                  s.prompts_closed ? "closed" : "open", s.prompts_pending, s.prompts_leased, s.prompts_done, s.prompts_failed);
  text +=
      fmt::format("samples    {} committed, {} tokens\n", s.committed, human_count(static_cast<double>(s.committed_tokens)));
  text += fmt::format("bytes      {} resident", human_bytes(s.resident_bytes));
  if (view.budget.high_bytes > 0) {
    text += fmt::format(" of {} ({:.0f} %)", human_bytes(view.budget.high_bytes),
                        100 * static_cast<double>(s.resident_bytes) / static_cast<double>(view.budget.high_bytes));
  }
  text += fmt::format(", {} samples freed\n", s.freed);
  for (const GroupStatus& group : s.groups) text += group_lines(group);
  for (std::size_t i = 0; i < std::min(view.leases.size(), kMaxHoldersShown); ++i) text += lease_line(view.leases[i]);
  if (view.leases.size() > kMaxHoldersShown)
    text += fmt::format("lease      and {} holders more\n", view.leases.size() - kMaxHoldersShown);
  if (view.rates) {
    text += fmt::format("rates      {:.1f} samples/s committed, {:.1f} trained\n", view.rates->committed, view.rates->trained);
  }
  if (view.starvation) {
    text += fmt::format("waits      producers paused for {}, trainers waited for {}\n",
                        human_seconds(view.starvation->producers_paused_s), human_seconds(view.starvation->trainers_waited_s));
  }
  return text;
}

Json to_json(const RunView& view) {
  Json json = to_json(view.status);
  Json leases = Json::array();
  for (const HolderLeases& one : view.leases) {
    leases.push_back({{"holder", json_text(one.holder)},
                      {"group", one.group.empty() ? Json(nullptr) : Json(json_text(one.group))},
                      {"count", one.count},
                      {"expired", one.expired},
                      {"expires_in_s", static_cast<double>(one.expires_in_ms) / 1000}});
  }
  json["leases"] = std::move(leases);
  json["high_watermark_bytes"] = view.budget.high_bytes == 0 ? Json(nullptr) : Json(view.budget.high_bytes);
  if (view.rates) {
    json["committed_per_s"] = view.rates->committed;
    json["trained_per_s"] = view.rates->trained;
  }
  if (view.starvation) {
    json["producers_paused_s"] = view.starvation->producers_paused_s;
    json["trainers_waited_s"] = view.starvation->trainers_waited_s;
  }
  json["limit"] = what_limits(view);
  return json;
}

}  // namespace draftflow::cli
