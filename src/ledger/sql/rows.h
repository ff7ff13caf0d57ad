// SPDX-License-Identifier: Apache-2.0
//
// Rows of the ledger's tables as structs, shared by the .cc files of SqlLedger. Private to this folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "ledger/refusals.h"
#include "ledger/rules.h"
#include "ledger/sql/sql_ledger.h"

namespace draftflow {

struct SqlLedger::Group {
  std::int64_t id = 0;
  std::string name;
  std::int64_t window_size = 0, resumable_checkpoints = 0, tail = 0, open = 1;
  std::int64_t next_row = 0;   // samples before it are dealt, dropped or never were the group's
  std::int64_t available = 0;  // samples from there on that it may deal
  // Prefixes of one order: released <= durable <= trained <= dealt.
  std::int64_t windows = 0, trained_windows = 0, durable_windows = 0;
  std::int64_t released_windows = 0;  // of the first pass
  std::int64_t max_window_tokens = 0;
  std::int64_t passes = 1, pass_windows = 0;  // the windows of each pass, once the stream has ended; before: 0
  std::int64_t timeline = 0, width = 1, trained_step = 0, durable_step = 0;
  std::int64_t failed_trained = 0, failed_durable = 0, dropped = 0;
  std::int64_t kind = 0, max_attempts = 0;  // a queue has these, and of the above only id to open, available, dropped
  std::int64_t leased = 0, acked = 0, failed = 0;

  std::int64_t first_pass_windows() const { return pass_windows > 0 ? pass_windows : windows; }
  // Whether windows are to be dealt after the stream has ended.
  bool has_passes_left() const { return passes > 1 && (pass_windows == 0 ? windows > 0 : windows < passes * pass_windows); }
};

struct SqlLedger::NewSample {
  const SampleRef* ref = nullptr;
  std::string json;  // of the ref
  std::optional<sql::RefTemplates::Packed> packed;
  std::size_t tried = 0;  // templates that do not fit
};

// Of a sample in a queue.
struct SqlLedger::Place {
  std::int64_t row = 0, shard = 0;
};

// A ref in a queue, as a lease of it finds it.
struct SqlLedger::QueueRef {
  std::int64_t row = -1, state = 0, attempts = 0;
  std::string token, ended_token;
};

struct SqlLedger::Prompt {
  std::int64_t row = 0, state = 0, attempts = 0;
  std::string holder, token, ended_token;
};

enum Kind : int { kWindowGroup = 0, kQueueGroup = 1 };

constexpr const char* kPromptsFinished =
    "SELECT CASE WHEN prompts_closed = 1 AND prompts_pending = 0 AND prompts_leased = 0 THEN 1 ELSE 0 END FROM run WHERE id = "
    "1";
// What an open group claims no more may go, once no other does. To be followed by what tells the rows.
constexpr const char* kEndClaims =
    "UPDATE sample SET claims = claims - 1, state = CASE WHEN claims = 1 AND in_place = 0 THEN 1 ELSE state END"
    " WHERE state = 0 AND row IN ";

// The open groups that need the sample s: each that has it in a window not released, or may still deal it, and each queue in
// which it is available or leased. A window of a later pass needs nothing of its own: the first pass's is released last.
constexpr const char* kClaims =
    "((SELECT COUNT(*) FROM queue_ref q JOIN consumer c ON c.id = q.consumer WHERE q.row = s.row AND c.open = 1"
    " AND q.state < 2) + (SELECT COUNT(*) FROM consumer c WHERE c.open = 1 AND c.kind = 0 AND"
    " (EXISTS (SELECT 1 FROM window_ref w WHERE w.row = s.row AND w.consumer = c.id AND w.number >= c.released_windows"
    " AND (c.pass_windows = 0 OR w.number < c.pass_windows))"
    " OR (s.row >= c.next_row AND NOT EXISTS (SELECT 1 FROM dropped d WHERE d.row = s.row AND d.consumer = c.id)))))";

// What ref_of() takes, of `sample s` and `sample_ref r`.
constexpr const char* kRefColumns = "s.sample_id, s.generation, s.bytes, s.tokens, r.template, r.packed";

// Of a sample in a window, as exports tell it.
const char* window_state(std::int64_t window, std::int64_t trained_windows, std::int64_t durable_windows, bool failed);

}  // namespace draftflow
