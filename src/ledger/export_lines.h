// SPDX-License-Identifier: Apache-2.0
//
// The lines of an exported ledger (docs/formats/ledger_export.md) as values, and their JSON. Says nothing of how a ledger keeps
// them. Pure functions; any thread. Private to this room.
//
//   write(to_line(ExportedCheckpoint{.group = "train", .timeline = 1, .step = 8}));
//   const ExportedLine line = parse_line(text);                             // Corrupt, naming the field
//   if (const auto* group = std::get_if<ExportedGroup>(&line)) ...
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "draftflow/ledger/types.h"

namespace draftflow {

constexpr int kExportVersion = 1;

// First. The counters are for people, and held against what was read.
struct ExportedHeader {
  LedgerStatus status;  // without the groups; nothing is leased
};
struct ExportedFact {
  std::string key, value;
};
struct ExportedTokens {  // a part of the counts
  std::vector<TokenCount> counts;
};
struct ExportedPrompt {
  std::string task;   // prompt_task_to_json
  std::string state;  // "pending", "done", "failed"
  std::int64_t attempts = 0, expiries = 0;
  std::optional<std::string> ended_token = {}, reason = {};
};
struct ExportedGroup {
  GroupConfig config;
  bool open = true;
  std::int64_t next_row = 0, durable_windows = 0, released_windows = 0;
  std::int64_t timeline = 0, width = 1, trained_step = 0, durable_step = 0;
  std::int64_t pass_windows = 0;  // of each pass, once the stream has ended; config has the passes
};
struct ExportedTimeline {
  std::string group;
  std::int64_t number = 0, parent = 0, first_step = 0, first_window = 0, width = 1, lost = 0;
  std::string launch = {};
  std::vector<std::pair<std::int64_t, std::string>> ranks = {};  // that entered it, each with its holder
};
struct ExportedCheckpoint {
  std::string group;
  std::int64_t timeline = 0, step = 0;
  bool abandoned = false;
};
struct ExportedWindow {
  std::string group;
  std::int64_t number = 0;
  std::optional<std::int64_t> timeline = {}, step = {};  // that trained it
};
// What a group has made of a sample: "available", "windowed", "trained", "durable", "acked", "failed", "dropped". A group that
// the sample never was of is not named. Of several passes it is what the first one has made of it.
struct ExportedPlace {
  std::string state;
  std::optional<std::int64_t> window = {}, position = {};  // of windows
  std::int64_t attempts = 0;                               // of a queue
  std::optional<std::string> ended_token = {}, reason = {};
  std::vector<std::pair<std::int64_t, std::string>> later_failures = {};  // windows of later passes, with the reason
};
struct ExportedSample {
  std::string state;                                          // "needed", "may_go", "going", "freed"
  std::string ref;                                            // sample_ref_to_json
  std::vector<std::pair<std::string, ExportedPlace>> groups;  // in the order of the groups
};
struct ExportedEnd {
  std::int64_t lines = 0;  // before this one
};

using ExportedLine = std::variant<ExportedHeader, ExportedFact, ExportedTokens, ExportedPrompt, ExportedGroup, ExportedTimeline,
                                  ExportedCheckpoint, ExportedWindow, ExportedSample, ExportedEnd>;

std::string to_line(const ExportedLine& line);     // without a line break
ExportedLine parse_line(const std::string& text);  // Corrupt; InvalidArgument for another version

}  // namespace draftflow
