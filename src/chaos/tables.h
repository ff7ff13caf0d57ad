// SPDX-License-Identifier: Apache-2.0
//
// Tables: a ledger's tables as somebody sees them who does not trust its functions: the supervisor and the checker count rows
// themselves. Not while a process is stopped, which may hold the ledger. Used by one thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/ledger/ledger.h"
#include "ledger/sql/sql_ledger.h"

namespace draftflow::chaos {

struct TimelineRow {
  std::int64_t number = 0, parent = 0, first_step = 0;
};

struct WindowRow {
  std::int64_t number = 0;
  std::optional<std::int64_t> step;
  std::vector<std::string> ids;                // in dealing order
  std::map<std::string, std::string> reasons;  // of those that failed
};

struct SampleRow {
  std::string id;
  std::uint64_t generation = 0;
  bool needed = false;  // by some group, as the ledger has it
  bool gone = false;    // handed out to be freed, or freed
};

struct QueueRow {
  std::string id, token, reason;         // the token that ended it
  std::int64_t state = 0, attempts = 0;  // 0 available, 1 leased, 2 acked, 3 failed
};

struct PromptRow {
  std::string id, reason;
  std::int64_t state = 0;
};

class Tables {
 public:
  explicit Tables(const std::string& ledger);

  SqlLedger& ledger() { return *ledger_; }
  bool has_group(const std::string& group);
  std::int64_t trained_step(const std::string& group);
  std::vector<TimelineRow> timelines(const std::string& group);          // from the newest on
  std::vector<std::int64_t> checkpoint_steps(const std::string& group);  // that a resume may still need, from the newest on
  std::vector<WindowRow> windows(const std::string& group);
  std::map<std::string, std::string> dropped(const std::string& group);  // id, reason
  std::vector<QueueRow> queue(const std::string& group);                 // in commit order
  bool is_claimed(const std::string& queue, const std::string& id);      // available or leased
  std::vector<SampleRow> samples();                                      // in commit order
  std::vector<PromptRow> prompts();

  // Whether weights of this timeline and step have seen what the ledger says that the group has trained until then.
  bool is_on_line(const std::string& group, std::int64_t timeline, std::int64_t step);
  // How many samples a resume from this step would lose.
  std::int64_t lost_after(const std::string& group, std::int64_t step);

 private:
  std::int64_t id_of(const std::string& group);
  std::unique_ptr<SqlLedger> ledger_;
};

}  // namespace draftflow::chaos
