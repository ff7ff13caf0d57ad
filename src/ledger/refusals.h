// SPDX-License-Identifier: Apache-2.0
//
// What the ledger answers to a call that its books do not allow: one text for all backends. `ledger` is the name of the one
// that was asked. Pure functions; any thread. Private to this room.
//
//   throw refusals::unknown_prompt(task_id, db_->name());
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "draftflow/base/error.h"
#include "draftflow/ledger/types.h"

namespace draftflow {

// As the SQL tables write them (docs/formats/ledger.md).
enum PromptState : int { kPending = 0, kLeased = 1, kDone = 2, kPromptFailed = 3 };
enum SampleState : int { kNeeded = 0, kMayGo = 1, kGoing = 2, kFreed = 3 };
enum RefState : int { kAvailable = 0, kRefLeased = 1, kAcked = 2, kRefFailed = 3 };

namespace refusals {

Conflict other_fact(const std::string& ledger, const std::string& key, const std::string& found, const std::string& value);

// --- prompts
Conflict other_run(const PromptTask& task, const std::string& run_id, const std::string& ledger);
InvalidArgument prompts_closed(const std::string& task_id, const std::string& ledger);
Conflict other_text(const std::string& task_id, const std::string& ledger);
Conflict unknown_prompt(const std::string& task_id, const std::string& ledger);
Conflict lost_prompt(const PromptLease& lease, std::int64_t state, const std::string& holder);

InvalidArgument no_prompt_to_drop(std::string_view task_id, const std::string& ledger);
Conflict undroppable_prompt(std::string_view task_id, std::int64_t state, const std::string& holder);  // leased or done

// --- samples
Conflict no_newer(const SampleRef& ref, std::uint64_t committed);
InvalidArgument comes_twice(const SampleRef& ref, std::uint64_t other);
Conflict taken_already(const SampleRef& ref, std::uint64_t committed);
InvalidArgument unknown_sample(const SampleId& id, const std::string& ledger);
Conflict not_handed_out(const SampleId& id);

// --- groups
InvalidArgument undeclared(const GroupId& group, const std::string& ledger);
InvalidArgument declared_closed(const std::string& group, const std::string& ledger);
InvalidArgument other_kind(const std::string& group, GroupKind is, GroupKind asked);
InvalidArgument other_window(const std::string& group, std::int64_t is, std::int64_t asked);
InvalidArgument other_cap(const std::string& group, std::int64_t is, std::int64_t asked);
InvalidArgument other_tail(const std::string& group, TailPolicy is, TailPolicy asked);
InvalidArgument other_passes(const std::string& group, std::int64_t is, std::int64_t asked);
InvalidArgument is_queue(const char* verb, const std::string& group);
InvalidArgument is_windows(const char* verb, const std::string& group);
Conflict group_closed(const char* verb, const std::string& group);
Conflict timeline_closed(const char* verb, std::int64_t timeline, const std::string& group);
Conflict not_newest(const char* verb, std::int64_t timeline, const std::string& group, std::int64_t newest);

// --- timelines
InvalidArgument closed_for_good(const std::string& group);
InvalidArgument uneven(const std::string& group, std::int64_t width, std::int64_t window);
Conflict of_other_ledger(const CheckpointMark& mark, const std::string& id, const std::string& ledger);
Conflict of_other_group(const CheckpointMark& mark, const std::string& group);
Conflict off_the_line(const CheckpointMark& mark, const std::string& ledger, const std::string& line);
void add_to_line(std::string& line, std::int64_t timeline, std::int64_t first_step, std::int64_t limit);
InvalidArgument bytes_lost(const std::string& group, std::int64_t passes, const TimelineRequest& request, std::int64_t lost,
                           std::int64_t durable_step);
Conflict launch_ended(const TimelineRequest& request, std::int64_t newest, std::int64_t timeline);
Conflict other_checkpoint(const TimelineRequest& request, std::int64_t parent, std::int64_t first_step);
Conflict other_width(const TimelineRequest& request, std::int64_t width);
Conflict entered_before(const TimelineRequest& request, std::int64_t timeline);

// --- windows
Conflict not_the_share(const WindowShare& share, std::int64_t timeline, const std::string& group, std::int64_t width);
InvalidArgument not_dealt(std::int64_t number, const std::string& group, std::int64_t dealt);
InvalidArgument no_step(const std::string& group, std::int64_t available, std::int64_t window, std::int64_t max_tokens);
InvalidArgument not_in_window(const SampleId& id, std::int64_t window, const std::string& group);
InvalidArgument failed_too_late(std::int64_t window, const std::string& group, std::int64_t trained, std::int64_t dealt);
Conflict trained_before(std::int64_t window, const std::string& group, std::int64_t its_step, std::int64_t its_timeline,
                        std::int64_t step, std::int64_t timeline);
InvalidArgument not_the_next(std::int64_t window, const std::string& group, std::int64_t dealt, std::int64_t next);
InvalidArgument step_is_done(std::int64_t window, const std::string& group, std::int64_t step, std::int64_t trained_step);

// --- checkpoints
InvalidArgument not_trained(std::int64_t step, std::int64_t timeline, const std::string& group, std::int64_t trained_step);
InvalidArgument before_timeline(std::int64_t step, std::int64_t timeline, const std::string& group, std::int64_t first_step);

// --- queues
// `state` as RefState, or -1 for a sample that is not in the queue.
Conflict lost_ref(const RefLease& lease, const std::string& group, std::int64_t state, const std::string& holder);

// --- drop_refs
InvalidArgument no_sample_to_drop(const SampleId& id, const std::string& ledger);
Conflict undroppable_ref(const SampleId& id, const std::string& group, std::int64_t state, const std::string& holder);
Conflict in_window(const SampleId& id, const std::string& group, std::int64_t window, bool trained);
Conflict never_the_groups(const SampleId& id, const std::string& group);

// --- export, import
InvalidArgument no_export(const std::string& ledger);

}  // namespace refusals
}  // namespace draftflow
