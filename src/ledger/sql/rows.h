// SPDX-License-Identifier: Apache-2.0
//
// Rows of the ledger's tables as structs, shared by the .cc files of SqlLedger. Private to this folder.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "ledger/sql/sql_ledger.h"

namespace draftflow {

struct SqlLedger::Group {
  std::int64_t id = 0;
  std::string name;
  std::int64_t window_size = 0, resumable_checkpoints = 0, tail = 0, open = 1;
  std::int64_t next_row = 0;   // samples before it are dealt, dropped or never were the group's
  std::int64_t available = 0;  // samples from there on that it may deal
  // Prefixes of one order: released <= durable <= trained <= dealt.
  std::int64_t windows = 0, trained_windows = 0, durable_windows = 0, released_windows = 0;
  std::int64_t timeline = 0, width = 1, trained_step = 0, durable_step = 0;
  std::int64_t failed_trained = 0, failed_durable = 0, dropped = 0;
};

struct SqlLedger::Prompt {
  std::int64_t row = 0, state = 0, attempts = 0;
  std::string holder, token, ended_token;
};

enum PromptState : int { kPending = 0, kLeased = 1, kDone = 2, kPromptFailed = 3 };
enum SampleState : int { kNeeded = 0, kMayGo = 1, kGoing = 2, kFreed = 3 };

}  // namespace draftflow
