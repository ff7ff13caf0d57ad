// SPDX-License-Identifier: Apache-2.0
//
// The books counted anew: kept counters and sets against the rows, the rules that tie them together, and each record against
// its row. Says what the SQL ledger says of the same finding.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <utility>

#include "draftflow/base/text.h"
#include "ledger/memory/memory_ledger.h"

namespace draftflow {

using memory::Group;
using memory::RowSet;

namespace {

using RowList = std::vector<std::int64_t>;  // ascending

class Recount {
 public:
  explicit Recount(const MemoryBooks& books) : books_(books), claims_(static_cast<std::size_t>(books.committed)) {}

  std::vector<std::string> run() && {
    prompts();
    for (const Group& group : books_.groups) group.is_queue() ? queue(group) : windows(group);
    samples();
    return std::move(found_);
  }

 private:
  void say(std::string finding) { found_.push_back(std::move(finding)); }
  void count(const std::string& what, std::int64_t kept, std::int64_t rows) {
    if (kept != rows) say(miscounted(what, kept, rows));
  }
  void same_rows(const std::string& what, const RowSet& kept, const RowList& rows) {
    RowList all;
    for (std::int64_t row = kept.next(0); row >= 0; row = kept.next(row + 1)) all.push_back(row);
    if (all != rows) say(fmt::format("{}: their set has {}, the rows {} or others", what, all.size(), rows.size()));
  }
  // Rows that must not be there: the first of them by name.
  void none(const std::string& what, const RowList& rows) {
    if (!rows.empty()) say(fmt::format("{}: {}, '{}' among them", what, rows.size(), printable(id_of(rows.front()))));
  }

  const memory::Sample& sample(std::int64_t row) const { return books_.samples[row]; }
  const std::string& id_of(std::int64_t row) const { return sample(row).ref.sample_id.str(); }
  std::int64_t find_sample(const std::string& id) const {
    return books_.sample_index.find(id, [&](std::int64_t row) -> std::string_view { return id_of(row); });
  }

  // --- prompts
  void prompts() {
    RowList pending, failed;
    std::int64_t leased = 0, done = 0;
    std::set<std::pair<std::int64_t, std::int64_t>> expiries;
    std::map<std::string, std::set<std::int64_t>> holders;
    for (std::int64_t row = 0; row < books_.prompt_count; ++row) {
      const memory::Prompt& prompt = books_.prompts[row];
      if (prompt.state == kPending) pending.push_back(row);
      if (prompt.state == kPromptFailed) failed.push_back(row);
      leased += prompt.state == kLeased ? 1 : 0;
      done += prompt.state == kDone ? 1 : 0;
      one_prompt(row, prompt);
      const auto hold = books_.holds.find(row);
      if (prompt.state != kLeased || hold == books_.holds.end()) continue;
      expiries.emplace(hold->second.expires_ms, row);
      holders[hold->second.holder].insert(row);
    }
    count("prompts pending", books_.pending, static_cast<std::int64_t>(pending.size()));
    count("prompts leased", books_.leased, leased);
    count("prompts done", books_.done, done);
    count("prompts failed", static_cast<std::int64_t>(books_.failed_prompts.size()), static_cast<std::int64_t>(failed.size()));
    for (const std::int64_t row : failed) {
      if (!books_.failed_prompts.contains(row)) {
        say(fmt::format("prompt '{}' has failed without a reason", printable(books_.prompts[row].task_id)));
      }
    }
    same_rows("prompts pending", books_.pending_prompts, pending);
    if (expiries != books_.prompt_expiries) say("prompts leased: their times are not those of their leases");
    if (holders != books_.prompt_holders) say("prompts leased: their holders are not those of their leases");
  }

  void one_prompt(std::int64_t row, const memory::Prompt& prompt) {
    const std::string named = fmt::format("prompt '{}'", printable(prompt.task_id));
    if (books_.prompt_index.find(prompt.task_id,
                                 [&](std::int64_t at) -> std::string_view { return books_.prompts[at].task_id; }) != row) {
      say(named + " is not found by its id");
    }
    if ((prompt.state == kDone) != (prompt.task == nullptr)) say(named + " is done with its record, or not done and has none");
    if (prompt.task && prompt.task->task_id.str() != prompt.task_id) {
      say(fmt::format("{} has the record of prompt '{}'", named, printable(prompt.task->task_id.str())));
    }
    if ((prompt.token != 0) != books_.holds.contains(row)) say(named + " has a token and no holder, or a holder and no token");
    if (prompt.state == kLeased && prompt.token == 0) say(named + " is leased without a token");
    if (prompt.state > kLeased && prompt.token != 0) say(named + " has ended, and still has a token");
    if (prompt.state == kDone && find_sample(prompt.task_id) < 0) say(named + " is done without a sample");
  }

  // --- groups
  void queue(const Group& group) {
    const memory::Queue& queue = group.queue;
    const std::string named = fmt::format("queue '{}': ", printable(group.name));
    RowList available, gone_too_soon, unheld, missing, dropped;
    std::int64_t leased = 0, acked = 0, failed = 0;
    std::map<memory::LeaseNumber, std::size_t> held;
    for (std::int64_t row = 0; row < books_.committed; ++row) {
      const bool in_range = row >= queue.first_row && row < queue.end_row;
      const memory::QueueRef ref = in_range ? queue.refs[row] : memory::QueueRef{};
      if (ref.state == memory::QueueRef::kNotThere) {
        if (group.open && sample(row).state == kNeeded && !queue.dropped_rows.contains(row)) missing.push_back(row);
        continue;
      }
      if (queue.dropped_rows.contains(row)) dropped.push_back(row);
      if (ref.state == kAvailable) available.push_back(row);
      acked += ref.state == kAcked ? 1 : 0;
      failed += ref.state == kRefFailed ? 1 : 0;
      if (ref.state == kRefFailed && !queue.failed.contains(row)) unheld.push_back(row);
      if (ref.state >= kAcked && ref.token != 0) unheld.push_back(row);
      if (ref.state == kRefLeased) {
        ++leased;
        ++held[ref.token];
        if (ref.token == 0 || queue.leases.find(ref.token) == nullptr) unheld.push_back(row);
      }
      if (ref.state >= kAcked) continue;
      if (sample(row).state != kNeeded) gone_too_soon.push_back(row);
      if (group.open) ++claims_[static_cast<std::size_t>(row)];
    }
    count(named + "available", group.available, static_cast<std::int64_t>(available.size()));
    count(named + "leased", queue.leased, leased);
    count(named + "acked", queue.acked, acked);
    count(named + "failed", static_cast<std::int64_t>(queue.failed.size()), failed);
    if (group.open) count(named + "dropped", group.dropped, static_cast<std::int64_t>(queue.dropped_rows.size()));
    if (!group.open) count(named + "not done with, and the queue is closed", 0, leased + group.available);
    same_rows(named + "available", queue.available, available);
    none(named + "dropped, and in it", dropped);
    none(named + "not done with, and may go", gone_too_soon);
    none(named + "leased without a lease, ended with one, or failed without a reason", unheld);
    none(named + "samples that are there and not in it", missing);
    std::map<memory::LeaseNumber, std::size_t> leases;
    for (const memory::LeaseNumber number : queue.leases.all()) leases.emplace(number, queue.leases.of(number).held);
    if (leases != held) say(named + "leases do not hold what the refs say");
    const auto partition_id = [&](std::int64_t row) -> std::string_view { return id_of(row); };
    for (const std::int64_t width : queue.shards.wrong_widths(available, partition_id)) {
      say(fmt::format("{}the index of partitions into {} has other refs than are available", named, width));
    }
  }

  void windows(const Group& group) {
    const memory::WindowsGroup& of = group.windows;
    const std::string named = fmt::format("group '{}': ", printable(group.name));
    const std::int64_t dealt = of.dealt(), first_pass = of.first_pass();
    const auto placed = static_cast<std::int64_t>(of.rows.size());
    count(named + "samples in windows", placed, of.first_of(dealt));
    const bool order = 0 <= of.released_windows && of.released_windows <= of.durable_windows &&
                       of.durable_windows <= of.trained_windows && of.trained_windows <= dealt &&
                       of.released_windows <= first_pass && of.durable_step <= of.trained_step;
    if (group.open && !order) say(named + "released, durable, trained and dealt windows out of their order");
    if (of.pass_windows > dealt || first_pass > dealt ||
        (of.pass_windows > 0 && dealt > of.pass_windows * group.config.passes)) {
      say(named + "more or fewer windows than its passes have");
    }
    std::int64_t misfits = 0;
    for (std::int64_t number = 0; number < dealt; ++number) misfits += fits(group, number) ? 0 : 1;
    count(named + "windows with gaps", 0, misfits);
    if (placed != of.first_of(dealt) || misfits > 0 || first_pass > dealt) return;  // places mean nothing
    std::int64_t failed_trained = 0, failed_durable = 0;
    for (std::int64_t number = 0; number < dealt; ++number) {
      one_window(group, named, number);
      (number < of.durable_windows ? failed_durable : failed_trained) += of.windows[static_cast<std::size_t>(number)].failed;
    }
    count(named + "failed and durable", of.failed_durable, failed_durable);
    count(named + "failed and trained", of.failed_trained, failed_trained);
    if (!std::is_sorted(of.rows.begin(), of.rows.begin() + of.first_of(first_pass), std::less_equal<>())) {
      say(named + "windows out of their order");
    }
    std::int64_t available = 0;
    for (std::int64_t row = of.next_row; group.open && row < books_.committed; ++row) {
      if (of.dropped_rows.contains(row)) continue;
      available += sample(row).state == kNeeded ? 1 : 0;
      ++claims_[static_cast<std::size_t>(row)];
    }
    count(named + "available", group.available, available);
    count(named + "dropped", group.dropped, static_cast<std::int64_t>(of.dropped_rows.size()));
    for (std::int64_t at = of.first_of(of.released_windows); group.open && at < of.first_of(first_pass); ++at) {
      ++claims_[of.rows[static_cast<std::size_t>(at)]];
    }
  }

  // Whether the window has as many refs, of as many tokens, as its group's windows may have.
  bool fits(const Group& group, std::int64_t number) const {
    const memory::WindowsGroup& of = group.windows;
    const std::int64_t first = of.first_of(number), end = of.first_of(number + 1), cap = group.config.max_window_tokens;
    if (first < 0 || first >= end || end > static_cast<std::int64_t>(of.rows.size())) return false;
    if (cap == 0) return end - first == group.config.window;
    std::int64_t tokens = 0;
    for (std::int64_t at = first; at < end; ++at) tokens += sample(of.rows[static_cast<std::size_t>(at)]).ref.tokens;
    return end - first <= group.config.window && (tokens <= cap || end - first == 1);
  }

  void one_window(const Group& group, const std::string& named, std::int64_t number) {
    const memory::WindowsGroup& of = group.windows;
    const memory::Window& window = of.windows[static_cast<std::size_t>(number)];
    const std::int64_t first = of.first_of(number), end = of.first_of(number + 1), passes = group.config.passes;
    const std::int64_t original = number % std::max<std::int64_t>(of.first_pass(), 1);
    const bool trained = number < of.trained_windows;
    // Whether any window of the sample, this one among them, is still to become durable.
    const bool again = passes > 1 && (of.pass_windows == 0 || of.durable_windows <= (passes - 1) * of.pass_windows + original);
    RowList needed, other_pass, dropped;
    std::int64_t going = 0, from_original = of.first_of(original);
    for (std::int64_t at = first; at < end; ++at) {
      const std::int64_t row = of.rows[static_cast<std::size_t>(at)];
      going += sample(row).state >= kGoing ? 1 : 0;
      if (group.open && sample(row).state != kNeeded && number >= of.durable_windows) needed.push_back(row);
      if (group.open && sample(row).state != kNeeded && again) other_pass.push_back(row);
      if (of.dropped_rows.contains(row)) dropped.push_back(row);
      if (of.rows[static_cast<std::size_t>(from_original++)] != row) {
        say(fmt::format("{}window {} of a later pass has other samples than window {}", named, number, original));
      }
    }
    const auto from = of.reasons.lower_bound(static_cast<std::uint64_t>(first));
    const auto to = of.reasons.lower_bound(static_cast<std::uint64_t>(end));
    count(fmt::format("{}window {}: failed", named, number), window.failed, trained ? std::distance(from, to) : 0);
    count(fmt::format("{}window {}: samples that were handed to a sweeper", named, number), window.going, going);
    if ((window.step > 0) != trained) say(fmt::format("{}window {} is trained out of the order", named, number));
    none(named + "needed for training, and may go", needed);
    none(named + "bytes went that another pass needs", other_pass);
    none(named + "samples dropped, and in a window", dropped);
  }

  // --- samples
  void samples() {
    RowList resident, may_go, going, wrong_claims, claimed, in_place;
    std::int64_t tokens = 0, bytes = 0, freed = 0;
    for (std::int64_t row = 0; row < books_.committed; ++row) {
      const memory::Sample& one = sample(row);
      tokens += one.ref.tokens;
      freed += one.state == kFreed ? 1 : 0;
      if (one.state == kMayGo) may_go.push_back(row);
      if (one.state == kGoing) going.push_back(row);
      if (one.state != kFreed && !one.in_place) {
        resident.push_back(row);
        bytes += static_cast<std::int64_t>(one.ref.bytes);
      }
      if (one.state == kNeeded && one.claims != claims_[static_cast<std::size_t>(row)]) wrong_claims.push_back(row);
      if (one.state != kNeeded && one.claims != 0) claimed.push_back(row);
      if (one.state != kNeeded && one.in_place) in_place.push_back(row);
      one_sample(row, one);
    }
    count("committed tokens", books_.committed_tokens, tokens);
    count("samples freed", books_.freed, freed);
    count("resident bytes", books_.resident_bytes, bytes);
    same_rows("samples resident", books_.resident, resident);
    same_rows("samples that may go", books_.may_go, may_go);
    same_rows("samples handed to a sweeper", books_.going, going);
    none("samples whose claims are not those of the groups", wrong_claims);
    none("files in place that may go", in_place);
    none("samples that may go and are claimed", claimed);
  }

  void one_sample(std::int64_t row, const memory::Sample& one) {
    const std::string named = fmt::format("sample '{}'", printable(id_of(row)));
    if (find_sample(id_of(row)) != row) say(named + " is not found by its id");
    const SampleRef ref = one.ref.unpack();
    const auto held = [&](const char* what, std::int64_t on_row, std::int64_t in_ref) {
      if (on_row != in_ref) say(fmt::format("{}: {} is {} in its row and {} in its ref", named, what, on_row, in_ref));
    };
    held("in place", one.in_place ? 1 : 0, is_in_place(ref) ? 1 : 0);
    held("bytes", static_cast<std::int64_t>(one.ref.bytes), static_cast<std::int64_t>(ref.estimated_bytes));
    held("tokens", one.ref.tokens, ref.num_tokens);
  }

  const MemoryBooks& books_;
  std::vector<std::int32_t> claims_;  // of each sample, by the groups
  std::vector<std::string> found_;
};

}  // namespace

std::vector<std::string> MemoryLedger::check() {
  const std::lock_guard lock(books_->mutex);
  return Recount(*books_).run();
}

}  // namespace draftflow
