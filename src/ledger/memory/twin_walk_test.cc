// SPDX-License-Identifier: Apache-2.0
//
// The ledger in memory and the one in SQLite tables play the same random walk, wrong calls among it, and must say the same
// after each verb: answers, their order, errors with their texts, and status. A failure prints its seed; DRAFTFLOW_SEED repeats
// it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <numeric>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "ledger/ledger_story.h"
#include "ledger/sql/recount.h"

namespace draftflow {
namespace {

using testing_support::make_ref;
using testing_support::make_task;

// One of the two ledgers, by two objects, as two processes have it; and the leases that its callers hold.
struct Side {
  std::string name;  // of the ledger, in messages
  std::array<std::unique_ptr<Ledger>, 2> objects;
  std::vector<PromptLease> prompts;
  std::map<std::string, std::vector<RefLease>> refs;
};

// Ids, tokens and names are each ledger's own.
std::string without_names(std::string text, const Side& side) {
  for (std::size_t at = 0; (at = text.find(side.name, at)) != std::string::npos;) text.replace(at, side.name.size(), "NAME");
  std::size_t digits = 0;
  for (std::size_t at = 0; at <= text.size(); ++at) {
    if (at < text.size() && std::string_view("0123456789abcdef").find(text[at]) != std::string_view::npos) {
      ++digits;
      continue;
    }
    if (digits == 32) {
      text.replace(at - 32, 32, "HEX");
      at -= 29;
    }
    digits = 0;
  }
  return text;
}

std::string text_of(const LedgerStatus& status) {
  std::string text =
      fmt::format("{} prompts {} {} {} {} {} {} samples {} {} {} {}", status.run_id, status.prompts, status.prompts_pending,
                  status.prompts_leased, status.prompts_done, status.prompts_failed, status.prompts_closed, status.committed,
                  status.freed, status.resident_bytes, status.committed_tokens);
  for (const GroupStatus& group : status.groups) {
    text += fmt::format("\n{} {} {} open {} available {} leased {} windowed {} trained {} durable {} dropped {} failed {}",
                        group.group, static_cast<int>(group.kind), group.window, group.open, group.available, group.leased,
                        group.windowed, group.trained, group.durable, group.dropped, group.failed);
    text += fmt::format(" cap {} timeline {} {} steps {} {} pinned {}", group.max_window_tokens, group.timeline, group.width,
                        group.trained_step, group.durable_step, group.pinned);
  }
  return text;
}

std::string text_of(const std::vector<SampleRef>& refs) {
  std::string text;
  for (const SampleRef& ref : refs) text += sample_ref_to_json(ref) + "\n";
  return text;
}

std::string text_of(const std::vector<std::string>& ids) {
  std::string text;
  for (const std::string& id : ids) text += id + " ";
  return text;
}

class TwinWalk {
 public:
  explicit TwinWalk(std::uint64_t seed) : random_(seed) {
    open();
    sides_[0].name = "mem://" + sides_[0].objects[0]->id();
    sides_[1].name = file().string();
    GroupConfig first{.group = GroupId("train"), .window = 2};
    if (seed % 3 == 0) first.window = 6, first.max_window_tokens = 30;  // of a width of 2 or 3, as well as of 1
    both([&](Side& side) { return declare_group(side, first); });
    if (seed % 2 == 0) return;  // bytes go sooner where only one group has to let them go
    names_.emplace_back("queue");
    both([&](Side& side) { return declare_group(side, {.group = GroupId("queue"), .kind = GroupKind::kQueue}); });
  }

  // False: they differ, and the test has failed.
  bool step() {
    struct Action {
      void (TwinWalk::*verb)();
      char of;  // w: of windows, q: of a queue, mostly; a: of any group, or none
      int weight;
    };
    static constexpr Action kActions[] = {
        {&TwinWalk::ingest, 'a', 2},      {&TwinWalk::lease_prompts, 'a', 3}, {&TwinWalk::commit, 'a', 4},
        {&TwinWalk::fail_prompt, 'a', 1}, {&TwinWalk::extend_prompt, 'a', 1}, {&TwinWalk::holders, 'q', 1},
        {&TwinWalk::wait, 'a', 1},        {&TwinWalk::offline, 'a', 1},       {&TwinWalk::read_window, 'w', 4},
        {&TwinWalk::trained, 'w', 6},     {&TwinWalk::report, 'w', 1},        {&TwinWalk::checkpoint, 'w', 3},
        {&TwinWalk::resume, 'w', 1},      {&TwinWalk::sweep, 'a', 3},         {&TwinWalk::lease_refs, 'q', 6},
        {&TwinWalk::ack, 'q', 5},         {&TwinWalk::fail_refs, 'q', 1},     {&TwinWalk::retry, 'q', 1},
        {&TwinWalk::look, 'a', 1},        {&TwinWalk::rarely, 'a', 1},        {&TwinWalk::by_hand, 'a', 2},
        {&TwinWalk::drop_refs, 'a', 2}};
    static const int kWeights = std::accumulate(std::begin(kActions), std::end(kActions), 0,
                                                [](int sum, const Action& action) { return sum + action.weight; });
    int left = below(kWeights);
    const Action* action = kActions;
    for (; left >= action->weight; ++action) left -= action->weight;
    std::string name = names_[random_.below(names_.size())];
    for (int i = 0; i < 5 && action->of == (name.starts_with("queue") ? 'w' : 'q'); ++i) {
      name = names_[random_.below(names_.size())];
    }
    group_ = GroupId(name);
    object_ = random_.below(2);
    if (action->of == 'w' && life().timeline == 0 && !one_in(10)) resume();
    (this->*action->verb)();
    if (same_) both([&](Side& side) { return text_of(side.objects[0]->status()); });
    return same_;
  }

  // Everything that the two can be asked, and that each one's books balance.
  void compare_all() {
    for (Side& side : sides_) {
      for (const std::string& finding : side.objects[0]->check()) ADD_FAILURE() << side.name << ": " << finding;
    }
    both([](Side& side) { return text_of(side.objects[0]->all_committed_ids()); });
    both([](Side& side) {
      std::string text;
      for (const auto& [token, count, row] : side.objects[0]->token_counts())
        text += fmt::format("{} {} {} ", token, count, row);
      return text;
    });
    for (const std::string& name : names_) {
      both([&](Side& side) { return text_of(side.objects[0]->trained_ids(GroupId(name))); });
      both([&](Side& side) { return failed_text(side, GroupId(name), 1000); });
    }
    both([](Side& side) { return text_of(side.objects[0]->resident_refs(0, 10'000).refs); });
    const LedgerStatus status = sides_[0].objects[0]->status();
    seen["freed"] += static_cast<int>(status.freed);
    seen["dropped"] += std::accumulate(status.groups.begin(), status.groups.end(), 0,
                                       [](int sum, const GroupStatus& group) { return sum + static_cast<int>(group.dropped); });
    seen["acked"] += std::accumulate(status.groups.begin(), status.groups.end(), 0, [](int sum, const GroupStatus& group) {
      return sum + static_cast<int>(group.kind == GroupKind::kQueue ? group.durable : 0);
    });
  }

  std::map<std::string, int> seen;  // kinds of answers, so that a walk that does nothing is found

 private:
  std::filesystem::path file() const { return folder_.path() / "l.sqlite3"; }

  void open() {
    for (std::size_t i = 0; i < 2; ++i) {
      const LedgerClock clock{fmt::format("boot {}", boot_), [this] { return now_ms_; }};
      sides_[0].objects[i] = open_memory_ledger(books_, clock);
      sides_[1].objects[i] = open_sqlite_ledger(file(), clock);
      dynamic_cast<SqlLedger&>(*sides_[1].objects[i]).database().script("PRAGMA synchronous = OFF");  // nothing loses power
    }
  }

  // Makes the call on both; what it says must be the same.
  template <class Call>
  void both(Call&& call) {
    std::array<std::string, 2> said;
    std::string kind = "answer";
    for (std::size_t i = 0; i < 2; ++i) {
      try {
        said[i] = call(sides_[i]);
      } catch (const Error& error) {
        kind = error_kind_name(error.kind());
        said[i] = fmt::format("{}: {}", kind, without_names(error.what(), sides_[i]));
      }
    }
    ++seen[kind];
    last_ = kind;
    if (said[0] == said[1]) return;
    same_ = false;
    ADD_FAILURE() << "in memory: " << said[0] << "\nin SQLite: " << said[1];
  }
  Ledger& of(Side& side) const { return *side.objects[object_]; }
  static std::string declare_group(Side& side, const GroupConfig& config) {
    side.objects[0]->declare_group(config);
    return "";
  }
  int below(int bound) { return static_cast<int>(random_.below(static_cast<std::uint64_t>(bound))); }
  bool one_in(int n) { return below(n) == 0; }
  HolderId any_holder() { return HolderId(fmt::format("h{}", below(3))); }

  // --- prompts
  void ingest() {
    std::vector<PromptTask> tasks;
    std::vector<std::vector<TokenCount>> counts;
    for (int i = below(4); i >= 0; --i) {
      tasks.push_back(make_task(fmt::format("p{}", below(60))));
      if (one_in(60)) tasks.back().payload = R"({"text":"another"})";
      if (one_in(150)) tasks.back().payload = "{broken";
      counts.push_back({{below(5), below(3), 0}, {below(5), one_in(100) ? -1 : 2, 0}});
    }
    if (one_in(60)) counts.pop_back();
    if (one_in(2)) counts.clear();
    both([&](Side& side) { return fmt::format("{} new", of(side).ingest_prompts(tasks, counts)); });
  }
  void lease_prompts() {
    const HolderId holder = any_holder();
    const int most = one_in(40) ? 0 : 1 + below(3);
    const std::int64_t lease_ms = one_in(60) ? 0 : 1 + below(90);
    both([&](Side& side) {
      const PromptAnswer answer = of(side).lease_prompts(holder, most, lease_ms);
      std::string text = answer.finished ? "finished" : "";
      for (const PromptLease& lease : answer.leases) {
        text += fmt::format("\n{} {}", lease.taken_over, prompt_task_to_json(lease.task));
      }
      side.prompts.insert(side.prompts.end(), answer.leases.begin(), answer.leases.end());
      return text;
    });
  }
  // A lease of late, as this side has it, or a wrong one.
  std::function<PromptLease(const Side&)> any_prompt() {
    const auto back = random_.below(10);
    const int wrong = below(40);
    return [back, wrong](const Side& side) {
      if (side.prompts.empty()) return PromptLease{.task = make_task("p1"), .token = "t"};
      PromptLease lease = side.prompts[side.prompts.size() - 1 - std::min<std::size_t>(back, side.prompts.size() - 1)];
      if (wrong == 0) lease.token.clear();
      if (wrong == 1) lease.token = std::string(32, 'f');
      if (wrong == 2) lease.task.task_id = TaskId("ghost");
      return lease;
    };
  }
  void commit() {
    const auto lease = any_prompt();
    const std::uint64_t generation = 1 + random_.below(3), bytes = 50 + random_.below(50);
    const std::string uri = std::array{"", "mem://s/{}?generation=1", "file:///data"}[random_.below(12) % 3];
    const bool other = one_in(60);
    both([&](Side& side) {
      const PromptLease mine = lease(side);
      SampleRef ref = make_ref(other ? "other" : mine.task.task_id.str(), generation, bytes);
      if (!uri.empty()) ref.feature_store_uri = uri;
      of(side).commit_sample(ref, mine);
      return "";
    });
  }
  void fail_prompt() {
    const auto lease = any_prompt();
    const bool retryable = one_in(2);
    const int attempts = below(30) == 0 ? 0 : 2;
    both([&](Side& side) {
      of(side).fail_prompt(lease(side), "why \x01", retryable, attempts);
      return "";
    });
  }
  void extend_prompt() {
    const auto lease = any_prompt();
    const std::int64_t lease_ms = below(80);
    both([&](Side& side) { return fmt::format("{}", of(side).extend_lease(lease(side), lease_ms)); });
  }
  void holders() {
    const HolderId holder = any_holder();
    const int what = below(4);
    both([&](Side& side) {
      if (what == 0) of(side).extend_leases(holder, 50);
      if (what == 1) of(side).return_leases(holder);
      if (what == 2) of(side).extend_refs(group_, holder, 50);
      if (what == 3) of(side).return_refs(group_, holder);
      return "";
    });
  }
  void wait() { now_ms_ = one_in(12) ? std::max<std::int64_t>(1, now_ms_ - below(400)) : now_ms_ + below(50); }
  void offline() {
    std::vector<SampleRef> refs;
    std::vector<std::vector<TokenCount>> counts;
    for (int i = below(5); i >= 0; --i) {
      refs.push_back(make_ref(one_in(5) ? fmt::format("p{}", below(60)) : fmt::format("file{}", below(300))));
      if (one_in(3)) refs.back().feature_store_uri = "file:///x";
      refs.back().num_tokens = one_in(100) ? -1 : below(30);
      counts.push_back({{below(5), 1, 0}});
    }
    if (one_in(2)) counts.clear();
    both([&](Side& side) { return fmt::format("{} new", of(side).commit_samples(refs, counts)); });
  }

  // --- windows
  struct Life {
    std::int64_t timeline = 0, next = 0, trained = 0;  // windows
    int width = 1;
  };
  Life& life() { return lives_[group_.str()]; }
  std::int64_t about(std::int64_t number) { return one_in(6) ? number + below(3) - 1 : number; }
  void read_window() {
    Life& mine = life();
    const std::int64_t number = about(mine.next), timeline = one_in(20) ? mine.timeline - 1 : mine.timeline;
    const WindowShare share{.rank = one_in(20) ? mine.width : below(mine.width), .width = mine.width};
    const int size = sides_[1].objects[0]->status().of(group_).window;
    bool given = false;
    both([&](Side& side) {
      const WindowAnswer answer = of(side).read_window(group_, timeline, number, share);
      given = answer.window.has_value();
      if (given && share.rank == 0) seen["short"] += static_cast<int>(answer.window->refs.size()) * share.width < size ? 1 : 0;
      return fmt::format("{} {}", static_cast<int>(answer.state), given ? text_of(answer.window->refs) : "");
    });
    if (given) mine.next = number + 1;
  }
  std::vector<FailedSample> any_failed() {
    std::vector<FailedSample> failed;
    for (const std::string& id : sides_[1].objects[0]->all_committed_ids()) {
      if (one_in(40)) failed.push_back({SampleId(id), "not finite \x02"});
    }
    if (failed.size() > 1) failed.erase(failed.begin() + 1, failed.end());
    return failed;
  }
  void trained() {
    const std::int64_t window = about(life().trained);
    const std::int64_t step = about(sides_[1].objects[0]->status().of(group_).trained_step + 1 + below(2));
    const auto failed = one_in(3) ? any_failed() : std::vector<FailedSample>{};
    both([&](Side& side) {
      of(side).trained(group_, life().timeline, window, step, failed);
      return "";
    });
    if (last_ == "answer" && window == life().trained) ++life().trained;
  }
  void report() {
    const std::int64_t window = about(life().trained);
    const auto failed = any_failed();
    both([&](Side& side) {
      of(side).report_failed(group_, life().timeline, window, failed);
      return "";
    });
  }
  void checkpoint() {
    const std::int64_t step =
        sides_[1].objects[0]->status().of(group_).trained_step - (one_in(3) ? 1 : 0) + (one_in(10) ? 1 : 0);
    both([&](Side& side) {
      of(side).checkpointed(group_, life().timeline, step);
      return "";
    });
    marks_[group_.str()].push_back({"", group_, life().timeline, step});
  }
  void resume() {
    TimelineRequest request{.group = group_, .width = 1 + below(3), .accept_loss = one_in(2)};
    request.rank = below(request.width + (one_in(20) ? 1 : 0));
    if (one_in(3)) request.launch = fmt::format("launch{}", below(4));
    const auto& marks = marks_[group_.str()];
    if (!marks.empty() && !one_in(6)) {
      request.resume = marks[marks.size() - 1 - random_.below(std::min<std::size_t>(marks.size(), 4))];
      if (one_in(40)) request.resume->group = GroupId("elsewhere");
    }
    const bool foreign = one_in(40);
    both([&](Side& side) {
      TimelineRequest mine = request;
      if (mine.resume) mine.resume->ledger_id = foreign ? std::string("feed") : side.objects[0]->id();
      const TimelineInfo info = of(side).open_timeline(mine);
      EXPECT_EQ(info.ledger_id, side.objects[0]->id());
      life() = {.timeline = info.number, .next = info.first_window, .trained = info.first_window, .width = request.width};
      seen["lost"] += static_cast<int>(info.lost);
      return fmt::format("{} {} {} {}", info.number, info.first_step, info.first_window, info.lost);
    });
  }
  void sweep() {
    std::vector<SampleId> ids;
    const int most = below(6);
    const bool forget = one_in(4);
    both([&](Side& side) {
      ids.clear();
      const auto refs = of(side).freeable(most);
      for (const SampleRef& ref : refs) ids.push_back(ref.sample_id);
      return text_of(refs);
    });
    if (one_in(20)) ids.emplace_back(fmt::format("p{}", below(60)));
    if (forget) return;
    both([&](Side& side) {
      of(side).freed(ids);
      return "";
    });
  }

  // --- queues
  void lease_refs() {
    static constexpr std::array kWidths{1, 2, 3, 5, 7, 8, 42, 43, 64, 100, 2000, 11, 13, 4};
    RefRequest request{.group = group_, .holder = any_holder(), .max_refs = one_in(60) ? 0 : 1 + below(6)};
    request.lease_ms = 1 + below(80);
    if (one_in(4)) request.max_tokens = 1 + below(40);
    if (one_in(2)) {
      const int count = kWidths[random_.below(kWidths.size())];
      request.partition = Partition{below(count), count};
    }
    both([&](Side& side) {
      const QueueAnswer answer = of(side).lease_refs(request);
      std::string text = fmt::format("{}", static_cast<int>(answer.state));
      for (const RefLease& lease : answer.leases) text += fmt::format("\n{} {}", lease.attempt, sample_ref_to_json(lease.ref));
      auto& mine = side.refs[group_.str()];
      mine.insert(mine.end(), answer.leases.begin(), answer.leases.end());
      return text;
    });
  }
  std::function<std::vector<RefLease>(const Side&)> some_refs() {
    std::vector<std::size_t> back;
    for (int i = below(4); i >= 0; --i) back.push_back(random_.below(14));
    const int wrong = below(40);
    return [this, back, wrong](const Side& side) {
      std::vector<RefLease> some;
      const auto all = side.refs.find(group_.str());
      if (all == side.refs.end() || all->second.empty()) return some;
      for (const std::size_t at : back)
        some.push_back(all->second[all->second.size() - 1 - std::min(at, all->second.size() - 1)]);
      if (wrong == 0) some.back().token.clear();
      if (wrong == 1) some.back().token = "none";
      if (wrong == 2) some.back().ref = make_ref("ghost");
      if (wrong == 3) some.front().token = some.back().token;
      return some;
    };
  }
  void ack() {
    const auto some = some_refs();
    both([&](Side& side) {
      of(side).ack_refs(group_, some(side));
      return "";
    });
  }
  void fail_refs() {
    const auto some = some_refs();
    const bool retryable = !one_in(3);
    both([&](Side& side) {
      of(side).fail_refs(group_, some(side), "why \x03", retryable);
      return "";
    });
  }
  void retry() {
    std::vector<SampleId> ids;
    for (int i = below(8); i >= 0; --i) ids.emplace_back(fmt::format("{}{}", one_in(2) ? "p" : "file", below(60)));
    both([&](Side& side) {
      for (const FailedSample& one : side.objects[0]->failed_refs(group_, 3)) ids.push_back(one.sample_id);
      return fmt::format("{}", of(side).retry_failed(group_, ids));
    });
  }

  // --- by hand
  void by_hand() {
    std::vector<TaskId> ids;
    for (int i = below(3); i >= 0; --i) ids.emplace_back(fmt::format("p{}", below(60)));
    if (one_in(3)) ids.push_back(ids.front());
    const auto& held = sides_[0].prompts;  // of any age
    if (one_in(2) && !held.empty()) {
      ids = {held[held.size() - 1 - random_.below(std::min<std::size_t>(held.size(), 8))].task.task_id};
    }
    if (one_in(30)) ids.emplace_back("ghost");
    const int what = below(4);
    const bool dry_run = one_in(4);
    both([&](Side& side) {
      if (what == 0) {
        const std::int64_t dropped = of(side).drop_prompts(ids, "no \x04", dry_run);
        seen["prompts dropped by hand"] += static_cast<int>(dropped);
        return fmt::format("{} dropped", dropped);
      }
      if (what == 1) {
        for (const auto& [task, reason] : of(side).failed_prompts(2)) ids.emplace_back(task);
        return fmt::format("{} again", of(side).retry_prompts(ids));
      }
      std::string text;
      for (const HolderLeases& one : of(side).leases()) {
        text += fmt::format("{} {} {} {} {}\n", one.holder, one.group, one.count, one.expired, one.expires_in_ms);
      }
      return text;
    });
    if (what == 0 && one_in(2)) both([&](Side& side) { return fmt::format("{}", of(side).retry_prompts(ids)); });
  }
  // Of the newest samples most are available.
  void drop_refs() {
    const auto all = sides_[1].objects[0]->all_committed_ids();
    std::vector<SampleId> ids;
    for (int i = below(3); i >= 0 && !all.empty(); --i) {
      ids.emplace_back(all[all.size() - 1 - random_.below(std::min<std::size_t>(all.size(), one_in(3) ? 60 : 6))]);
    }
    if (one_in(30)) ids.emplace_back("ghost");
    const GroupId group = one_in(60) ? GroupId("nobody") : group_;
    const bool dry_run = one_in(4);
    both([&](Side& side) {
      const std::int64_t dropped = of(side).drop_refs(group, ids, "no \x05", dry_run);
      seen["dropped by hand"] += static_cast<int>(dropped);
      return fmt::format("{} dropped", dropped);
    });
  }

  // --- the rest
  static std::string failed_text(Side& side, const GroupId& group, int limit) {
    std::string text;
    for (const FailedSample& one : side.objects[0]->failed_refs(group, limit)) {
      text += fmt::format("{}: {}\n", one.sample_id.str(), one.reason);
    }
    return text;
  }
  void look() {
    const SampleId id(fmt::format("p{}", below(60)));
    const int from = below(60), limit = below(6);
    both([&](Side& side) {
      const std::optional<SampleRef> ref = of(side).get_committed(id);
      EXPECT_EQ(ref.has_value(), of(side).is_committed(id));
      return ref ? sample_ref_to_json(*ref) : "";
    });
    both([&](Side& side) {
      const RefPage page = of(side).resident_refs(from, limit);
      return fmt::format("{} {}", page.next.value_or(-1), text_of(page.refs));
    });
    both([&](Side& side) { return failed_text(side, group_, limit); });
    both([&](Side& side) {
      std::string text;
      for (const auto& [task, reason] : of(side).failed_prompts(limit)) text += fmt::format("{}: {}\n", task, reason);
      return text;
    });
  }
  void rarely() {
    const int what = below(10);
    GroupConfig config{.group = group_, .window = below(5), .resumable_checkpoints = below(4), .max_attempts = 1 + below(3)};
    config.tail = one_in(2) ? TailPolicy::kDrop : TailPolicy::kCarry;
    if (what < 4 && names_.size() < 5) {
      const bool queue = what < 2;
      config.group = GroupId(fmt::format("{}{}", queue ? "queue" : "late", names_.size()));
      config.window = queue ? 0 : 1 + below(4);
      config.resumable_checkpoints = 1 + below(2);
      config.kind = queue ? GroupKind::kQueue : GroupKind::kWindows;
      config.passes = queue ? 1 : 1 + below(3);
      config.max_window_tokens = one_in(2) ? below(60) : 0;
      names_.push_back(config.group.str());
    }
    const std::string key = fmt::format("key{}", below(3)), value = one_in(20) ? "\xff" : fmt::format("value{}", below(2));
    if (what == 9 && one_in(3)) {
      ++boot_;
      now_ms_ = 1;
      open();
    }
    both([&](Side& side) {
      if (what < 5) return declare_group(side, config);
      if (what == 5 && closes_) of(side).close_group(group_);
      if (what == 6 && closes_) of(side).close_prompts();
      if (what == 7) of(side).declare(key, value);
      return of(side).declared(key).value_or("nothing");
    });
    closes_ = one_in(4);
  }

  const testing_support::TempFolder folder_;
  const std::shared_ptr<MemoryBooks> books_ = make_memory_ledger();
  Random random_;
  std::int64_t now_ms_ = 1;
  int boot_ = 1;
  std::array<Side, 2> sides_;
  std::vector<std::string> names_{"train"};
  GroupId group_{"train"};
  std::size_t object_ = 0;
  std::string last_;  // what the last call came to: "answer", or the kind of error
  bool same_ = true, closes_ = false;
  std::map<std::string, Life> lives_;
  std::map<std::string, std::vector<CheckpointMark>> marks_;
};

TEST(TwinWalk, MemoryAndSqliteSayTheSameAfterEveryVerb) {
  const char* given = std::getenv("DRAFTFLOW_SEED");
  const std::uint64_t first = given != nullptr ? std::strtoull(given, nullptr, 10) : 1;
  const std::uint64_t seeds = given != nullptr ? 1 : 250;
  std::map<std::string, int> seen;
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
    SCOPED_TRACE(fmt::format("seed {} (DRAFTFLOW_SEED={} repeats this walk)", seed, seed));
    TwinWalk walk(seed);
    // A few long walks come to what needs a long story; many short ones to what needs luck.
    const int steps = seed % 20 == 0 || given != nullptr ? 1500 : 150;
    for (int i = 0; i < steps; ++i) {
      if (!walk.step()) FAIL() << "after verb " << i;
    }
    walk.compare_all();
    if (::testing::Test::HasFailure()) return;
    for (const auto& [kind, count] : walk.seen) seen[kind] += count;
  }
  if (given != nullptr) return;
  for (const char* kind : {"answer", "Conflict", "InvalidArgument"}) EXPECT_GT(seen[kind], 1000) << kind;
  for (const char* kind : {"acked", "short"}) EXPECT_GT(seen[kind], 500) << kind;
  for (const char* kind : {"freed", "dropped", "lost", "dropped by hand", "prompts dropped by hand"})
    EXPECT_GT(seen[kind], 50) << kind;
}

}  // namespace
}  // namespace draftflow
