// SPDX-License-Identifier: Apache-2.0
#include "ledger/refusals.h"

#include <fmt/format.h>

#include "draftflow/base/text.h"

namespace draftflow::refusals {
namespace {

const char* name_of(TailPolicy tail) {
  return tail == TailPolicy::kDrop ? "drop" : "carry";
}

const char* name_of(GroupKind kind) {
  return kind == GroupKind::kWindows ? "group of windows" : "queue";
}

std::string name_of(const CheckpointMark& mark) {
  return fmt::format("checkpoint (timeline {}, step {}) of group '{}'", mark.timeline, mark.step, printable(mark.group.str()));
}

std::string rank_of(const TimelineRequest& request) {
  return fmt::format("rank {} of launch '{}', group '{}'", request.rank, printable(request.launch),
                     printable(request.group.str()));
}

std::string committed_as(const SampleRef& ref, std::uint64_t committed) {
  return fmt::format("sample '{}' is committed with generation {}; generation {}", printable(ref.sample_id.str()), committed,
                     ref.generation);
}

Conflict not_dropped(const SampleId& id, const std::string& group, const std::string& found) {
  return Conflict(fmt::format("sample '{}' of group '{}' {}: nothing was dropped; only what is available to the group can be",
                              printable(id.str()), printable(group), found));
}

}  // namespace

Conflict other_fact(const std::string& ledger, const std::string& key, const std::string& found, const std::string& value) {
  return Conflict(fmt::format("ledger {} says {} = '{}', not '{}': use the same settings as before, or another ledger", ledger,
                              printable(key), printable(found), printable(value)));
}

// --- prompts

Conflict other_run(const PromptTask& task, const std::string& run_id, const std::string& ledger) {
  return Conflict(
      fmt::format("prompt '{}' is of run '{}', but ledger {} keeps the books of run '{}': a ledger is of one run; "
                  "give this one a ledger of its own",
                  printable(task.task_id.str()), printable(task.run_id.str()), ledger, printable(run_id)));
}

InvalidArgument prompts_closed(const std::string& task_id, const std::string& ledger) {
  return InvalidArgument(fmt::format("prompt '{}' is new, but the prompts of ledger {} are closed: start another run for it",
                                     printable(task_id), ledger));
}

Conflict other_text(const std::string& task_id, const std::string& ledger) {
  return Conflict(
      fmt::format("prompt '{}' is on the books of ledger {} with another text: the prompts have changed since; start "
                  "another run for them",
                  printable(task_id), ledger));
}

Conflict unknown_prompt(const std::string& task_id, const std::string& ledger) {
  return Conflict(fmt::format("prompt '{}' is not in ledger {}: its lease is of another ledger", printable(task_id), ledger));
}

Conflict lost_prompt(const PromptLease& lease, std::int64_t state, const std::string& holder) {
  std::string now = "pending again";
  if (state == kLeased) now = fmt::format("leased to '{}'", printable(holder));
  if (state == kDone) now = "done";
  if (state == kPromptFailed) now = "failed";
  return Conflict(fmt::format("the lease {} on prompt '{}' was lost: the prompt is {}; drop this result and lease again",
                              printable(lease.token, 40), printable(lease.task.task_id.str()), now));
}

InvalidArgument no_prompt_to_drop(std::string_view task_id, const std::string& ledger) {
  return InvalidArgument(fmt::format("prompt '{}' is not in ledger {}: nothing was dropped", printable(task_id), ledger));
}

Conflict undroppable_prompt(std::string_view task_id, std::int64_t state, const std::string& holder) {
  if (state == kDone) {
    return Conflict(
        fmt::format("prompt '{}' is done, its sample is committed: nothing was dropped; drop the sample from the groups that "
                    "should not have it",
                    printable(task_id)));
  }
  return Conflict(
      fmt::format("prompt '{}' is leased to '{}': nothing was dropped; wait until it is done, or until its lease has run out",
                  printable(task_id), printable(holder)));
}

// --- samples

Conflict no_newer(const SampleRef& ref, std::uint64_t committed) {
  return Conflict(committed_as(ref, committed) + " is no newer: remove it from the store");
}

InvalidArgument comes_twice(const SampleRef& ref, std::uint64_t other) {
  return InvalidArgument(fmt::format("sample '{}' comes twice in one call, as generation {} and {}: commit the greater one",
                                     printable(ref.sample_id.str()), other, ref.generation));
}

Conflict taken_already(const SampleRef& ref, std::uint64_t committed) {
  return Conflict(committed_as(ref, committed) + " comes too late, a group has taken the sample: remove it from the store");
}

InvalidArgument unknown_sample(const SampleId& id, const std::string& ledger) {
  return InvalidArgument(fmt::format("sample '{}' is not in ledger {}: it cannot be freed", printable(id.str()), ledger));
}

Conflict not_handed_out(const SampleId& id) {
  return Conflict(fmt::format("sample '{}' was not handed out by freeable(): a checkpoint to resume from may still need it",
                              printable(id.str())));
}

// --- groups

InvalidArgument undeclared(const GroupId& group, const std::string& ledger) {
  return InvalidArgument(
      fmt::format("group '{}' is not declared in ledger {}: call declare_group first", printable(group.str()), ledger));
}

InvalidArgument declared_closed(const std::string& group, const std::string& ledger) {
  return InvalidArgument(
      fmt::format("group '{}' of ledger {} was closed: declare one of another name", printable(group), ledger));
}

InvalidArgument other_kind(const std::string& group, GroupKind is, GroupKind asked) {
  return InvalidArgument(
      fmt::format("group '{}' was declared as a {}, not as a {}: the kind is fixed for the run; declare one of "
                  "another name",
                  printable(group), name_of(is), name_of(asked)));
}

InvalidArgument other_window(const std::string& group, std::int64_t is, std::int64_t asked) {
  return InvalidArgument(
      fmt::format("group '{}' was declared with a window of {}, not {}: W is fixed for the run; use {} again or"
                  " start another run",
                  printable(group), is, asked, is));
}

InvalidArgument other_cap(const std::string& group, std::int64_t is, std::int64_t asked) {
  return InvalidArgument(
      fmt::format("group '{}' was declared with max_window_tokens {}, not {} (0: no cap): it is fixed for the run; use {} again"
                  " or start another run",
                  printable(group), is, asked, is));
}

InvalidArgument other_tail(const std::string& group, TailPolicy is, TailPolicy asked) {
  return InvalidArgument(fmt::format("group '{}' was declared with the tail policy '{}', not '{}': it is fixed for the run",
                                     printable(group), name_of(is), name_of(asked)));
}

InvalidArgument other_passes(const std::string& group, std::int64_t is, std::int64_t asked) {
  return InvalidArgument(
      fmt::format("group '{}' was declared with {} passes over its samples, not {}: they are fixed for the run",
                  printable(group), is, asked));
}

InvalidArgument is_queue(const char* verb, const std::string& group) {
  return InvalidArgument(
      fmt::format("{} on group '{}': it is a queue, which has no windows; its verbs are lease_refs, ack_refs and "
                  "fail_refs",
                  verb, printable(group)));
}

InvalidArgument is_windows(const char* verb, const std::string& group) {
  return InvalidArgument(
      fmt::format("{} on group '{}': it is a group of windows, which leases no refs; its verbs are open_timeline, "
                  "read_window and trained",
                  verb, printable(group)));
}

Conflict group_closed(const char* verb, const std::string& group) {
  return Conflict(fmt::format("{} on group '{}': the group was closed; stop", verb, printable(group)));
}

Conflict timeline_closed(const char* verb, std::int64_t timeline, const std::string& group) {
  return Conflict(fmt::format("{} on timeline {} of group '{}': the group was closed; stop", verb, timeline, printable(group)));
}

Conflict not_newest(const char* verb, std::int64_t timeline, const std::string& group, std::int64_t newest) {
  return Conflict(
      fmt::format("{} on timeline {} of group '{}': the newest timeline is {}; stop, another trainer took over (or open a "
                  "timeline first)",
                  verb, timeline, printable(group), newest));
}

// --- timelines

InvalidArgument closed_for_good(const std::string& group) {
  return InvalidArgument(fmt::format("group '{}' was closed: declare another one", printable(group)));
}

InvalidArgument uneven(const std::string& group, std::int64_t width, std::int64_t window) {
  return InvalidArgument(
      fmt::format("group '{}': {} ranks do not share a window of {} evenly ({} x {} + {}): take a number that "
                  "divides {}",
                  printable(group), width, window, window / width, width, window % width, window));
}

Conflict of_other_ledger(const CheckpointMark& mark, const std::string& id, const std::string& ledger) {
  return Conflict(fmt::format("{} is of ledger {}, not of ledger {} in {}: resume with its own ledger", name_of(mark),
                              printable(mark.ledger_id), id, ledger));
}

Conflict of_other_group(const CheckpointMark& mark, const std::string& group) {
  return Conflict(fmt::format("{} cannot be resumed by group '{}'", name_of(mark), printable(group)));
}

Conflict off_the_line(const CheckpointMark& mark, const std::string& ledger, const std::string& line) {
  return Conflict(
      fmt::format("{} is not on the line of ledger {} ({}): what it was trained on has been taken back; resume from a "
                  "checkpoint of that line",
                  name_of(mark), ledger, line.empty() ? "nothing was trained" : line));
}

void add_to_line(std::string& line, std::int64_t timeline, std::int64_t first_step, std::int64_t limit) {
  if (line.size() >= 400) return;
  line += fmt::format("{}timeline {} steps {} to {}", line.empty() ? "" : ", ", timeline, first_step, limit);
}

InvalidArgument bytes_lost(const std::string& group, std::int64_t passes, const TimelineRequest& request, std::int64_t lost,
                           std::int64_t durable_step) {
  const auto& resume = request.resume;
  const std::string from = resume ? fmt::format("the checkpoint (timeline {}, step {})", resume->timeline, resume->step)
                                  : std::string("nothing (no checkpoint was presented)");
  if (passes > 1) {
    return InvalidArgument(
        fmt::format("group '{}' of {} passes cannot start from {}: samples trained after it are freed, {} counting each pass; "
                    "resume from the checkpoint at step {}, or start another run",
                    printable(group), passes, from, lost, durable_step));
  }
  return InvalidArgument(
      fmt::format("group '{}' cannot start from {}: {} samples trained after it are freed and would be lost; resume "
                  "from the checkpoint at step {}, start another run, or accept the loss (--accept-loss)",
                  printable(group), from, lost, durable_step));
}

Conflict launch_ended(const TimelineRequest& request, std::int64_t newest, std::int64_t timeline) {
  return Conflict(
      fmt::format("{}: the launch ended when timeline {} took over from its timeline {}; stop, and start a launch of "
                  "another name",
                  rank_of(request), newest, timeline));
}

Conflict other_checkpoint(const TimelineRequest& request, std::int64_t parent, std::int64_t first_step) {
  return Conflict(
      fmt::format("{}: it has loaded the checkpoint (timeline {}, step {}), the other ranks (timeline {}, step {}): "
                  "all ranks of a launch resume from the same one",
                  rank_of(request), request.resume ? request.resume->timeline : 0, request.resume ? request.resume->step : 0,
                  parent, first_step));
}

Conflict other_width(const TimelineRequest& request, std::int64_t width) {
  return Conflict(fmt::format("{}: it says that {} ranks train, the others say {}", rank_of(request), request.width, width));
}

Conflict entered_before(const TimelineRequest& request, std::int64_t timeline) {
  return Conflict(
      fmt::format("{} has entered timeline {} before: a rank that died ends its launch; "
                  "start all ranks again under a name of another launch",
                  rank_of(request), timeline));
}

// --- windows

Conflict not_the_share(const WindowShare& share, std::int64_t timeline, const std::string& group, std::int64_t width) {
  return Conflict(fmt::format("rank {} of {} asks for a window of timeline {} of group '{}', which has {} ranks: stop",
                              share.rank, share.width, timeline, printable(group), width));
}

InvalidArgument not_dealt(std::int64_t number, const std::string& group, std::int64_t dealt) {
  return InvalidArgument(
      fmt::format("window {} of group '{}': {} are dealt, and they are dealt one by one", number, printable(group), dealt));
}

InvalidArgument no_step(const std::string& group, std::int64_t available, std::int64_t window, std::int64_t max_tokens) {
  const std::string cap = max_tokens > 0 ? fmt::format(", or max_window_tokens {}", max_tokens) : "";
  return InvalidArgument(
      fmt::format("group '{}': the stream ended with {} samples, and a window takes {}{}: there is no step to "
                  "train; nothing was dropped; take a window of {} or fewer in another group",
                  printable(group), available, window, cap, available));
}

InvalidArgument not_in_window(const SampleId& id, std::int64_t window, const std::string& group) {
  return InvalidArgument(fmt::format("sample '{}' is not in window {} of group '{}': its failure was not written",
                                     printable(id.str()), window, printable(group)));
}

InvalidArgument failed_too_late(std::int64_t window, const std::string& group, std::int64_t trained, std::int64_t dealt) {
  return InvalidArgument(
      fmt::format("a failure in window {} of group '{}' comes too late or too early: {} windows are trained, {} "
                  "dealt; report it before the window's step",
                  window, printable(group), trained, dealt));
}

Conflict trained_before(std::int64_t window, const std::string& group, std::int64_t its_step, std::int64_t its_timeline,
                        std::int64_t step, std::int64_t timeline) {
  return Conflict(fmt::format("window {} of group '{}' was trained at step {} of timeline {}, not at step {} of timeline {}",
                              window, printable(group), its_step, its_timeline, step, timeline));
}

InvalidArgument not_the_next(std::int64_t window, const std::string& group, std::int64_t dealt, std::int64_t next) {
  return InvalidArgument(
      fmt::format("window {} of group '{}' cannot be trained now: {} windows are dealt and the next to train is {}", window,
                  printable(group), dealt, next));
}

InvalidArgument step_is_done(std::int64_t window, const std::string& group, std::int64_t step, std::int64_t trained_step) {
  return InvalidArgument(
      fmt::format("window {} of group '{}' at step {}: step {} is done already, and one step trains one window", window,
                  printable(group), step, trained_step));
}

// --- checkpoints

InvalidArgument not_trained(std::int64_t step, std::int64_t timeline, const std::string& group, std::int64_t trained_step) {
  return InvalidArgument(
      fmt::format("checkpoint at step {} of timeline {}, group '{}': the newest trained step is {}; write a "
                  "checkpoint after its step is acknowledged",
                  step, timeline, printable(group), trained_step));
}

InvalidArgument before_timeline(std::int64_t step, std::int64_t timeline, const std::string& group, std::int64_t first_step) {
  return InvalidArgument(fmt::format("checkpoint at step {} of timeline {}, group '{}': the timeline starts at step {}", step,
                                     timeline, printable(group), first_step));
}

// --- queues

Conflict lost_ref(const RefLease& lease, const std::string& group, std::int64_t state, const std::string& holder) {
  std::string now = "available again";
  if (state < 0) now = "not in it";
  if (state == kAcked) now = "acked";
  if (state == kRefFailed) now = "failed";
  if (state == kRefLeased) now = fmt::format("leased to '{}'", printable(holder));
  return Conflict(
      fmt::format("the lease {} on sample '{}' of group '{}' was lost: the sample is {}; nothing was changed, drop this result "
                  "and lease again",
                  printable(lease.token, 40), printable(lease.ref.sample_id.str()), printable(group), now));
}

// --- drop_refs

InvalidArgument no_sample_to_drop(const SampleId& id, const std::string& ledger) {
  return InvalidArgument(fmt::format("sample '{}' is not in ledger {}: nothing was dropped", printable(id.str()), ledger));
}

Conflict undroppable_ref(const SampleId& id, const std::string& group, std::int64_t state, const std::string& holder) {
  std::string found = "was never in it";
  if (state == kRefLeased) found = fmt::format("is leased to '{}'", printable(holder));
  if (state == kAcked) found = "is acked";
  if (state == kRefFailed) found = "has failed";
  return not_dropped(id, group, found);
}

Conflict in_window(const SampleId& id, const std::string& group, std::int64_t window, bool trained) {
  return not_dropped(id, group, fmt::format("{} window {}", trained ? "was trained in" : "is in", window));
}

Conflict never_the_groups(const SampleId& id, const std::string& group) {
  return not_dropped(id, group, "was never the group's, which joined later");
}

// --- export, import

InvalidArgument no_export(const std::string& ledger) {
  return InvalidArgument(
      fmt::format("{}: a ledger in memory has no export and takes none, for it does not keep the texts of prompts that are "
                  "done; use a SQLite file or a PostgreSQL schema",
                  ledger));
}

}  // namespace draftflow::refusals
