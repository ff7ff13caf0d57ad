// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/base/text.h"
#include "ledger/sql/rows.h"

namespace draftflow {

std::int64_t SqlLedger::ingest_prompts(const std::vector<PromptTask>& tasks,
                                       const std::vector<std::vector<TokenCount>>& counts) {
  check_counts(tasks.size(), "prompts", counts.size());
  std::int64_t added = 0;
  TokenSums sums;
  sql::Transaction transaction(*db_);
  const bool closed = db_->find("SELECT prompts_closed FROM run WHERE id = 1") == 1;
  std::int64_t row = db_->find("SELECT prompts FROM run WHERE id = 1").value_or(0);
  std::optional<std::string> run_id = declared("run_id");
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const std::string& task_id = tasks[i].task_id.str();
    if (db_->run("INSERT INTO prompt(row, task_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING", row, task_id) == 0) {
      refuse_other_payload(tasks[i]);
      continue;
    }
    if (run_id && *run_id != tasks[i].run_id.str()) throw refusals::other_run(tasks[i], *run_id, db_->name());
    if (closed) throw refusals::prompts_closed(task_id, db_->name());
    if (!run_id) note_run_id(tasks[i].run_id);
    run_id = tasks[i].run_id.str();
    db_->run("INSERT INTO prompt_task(row, json) VALUES (?1, ?2)", row, task_json(tasks[i]));
    if (!counts.empty()) sums.add(counts[i], row);
    ++row;
    ++added;
  }
  add_token_counts(sums);
  db_->run("UPDATE run SET prompts = prompts + ?1, prompts_pending = prompts_pending + ?1 WHERE id = 1", added);
  transaction.commit();
  return added;
}

void SqlLedger::refuse_other_payload(const PromptTask& task) {
  sql::Query found =
      db_->query("SELECT t.json FROM prompt p JOIN prompt_task t ON t.row = p.row WHERE p.task_id = ?1", task.task_id.str());
  if (!found.step() || prompt_task_from_json(found.text(0)).payload == prompt_task_from_json(task_json(task)).payload) return;
  throw refusals::other_text(task.task_id.str(), db_->name());
}

void SqlLedger::close_prompts() {
  if (db_->find("SELECT prompts_closed FROM run WHERE id = 1") == 1) return;
  sql::Transaction transaction(*db_);
  db_->run("UPDATE run SET prompts_closed = 1 WHERE id = 1");
  transaction.commit();
}

// Whoever finds a time further ahead than now + this knows that the clock was set back. It only grows, so it is written down
// once for each length.
void SqlLedger::note_lease(std::int64_t lease_ms) {
  if (lease_ms <= longest_noted_ms_) return;
  db_->run("UPDATE run SET longest_lease_ms = ?1 WHERE id = 1 AND longest_lease_ms < ?1", lease_ms + kClockSlackMs);
}

// An expired lease keeps its token until somebody else takes the prompt: its holder may still commit, if only slow.
bool SqlLedger::take_back_expired(std::int64_t now) {
  db_->run(
      "UPDATE prompt SET expires_ms = ?1 WHERE state = 1 AND expires_ms > ?1 + (SELECT longest_lease_ms FROM run WHERE id ="
      " 1)",
      now);
  const std::int64_t poisoned = db_->run(
      "UPDATE prompt SET state = 3, expiries = expiries + 1, token = NULL, holder = NULL, expires_ms = NULL, reason = ?3"
      " WHERE state = 1 AND expires_ms <= ?1 AND expiries + 1 >= ?2",
      now, kMaxExpiries, poison_reason());
  const std::int64_t back = db_->run(
      "UPDATE prompt SET state = 0, expiries = expiries + 1, expires_ms = NULL WHERE state = 1 AND expires_ms <= ?1", now);
  if (poisoned + back == 0) return false;
  db_->run(
      "UPDATE run SET prompts_leased = prompts_leased - ?1 - ?2, prompts_pending = prompts_pending + ?1,"
      " prompts_failed = prompts_failed + ?2 WHERE id = 1",
      back, poisoned);
  return true;
}

// In order, so that no engine looks for it from the first prompt on, over all that are done.
bool SqlLedger::may_lease_prompts(std::int64_t now) {
  return db_->find("SELECT row FROM prompt WHERE state = 0 ORDER BY row LIMIT 1").has_value() ||
         db_->find(
                "SELECT 1 FROM prompt WHERE state = 1 AND expires_ms <= ?1 UNION ALL SELECT 1 FROM prompt"
                " WHERE state = 1 AND expires_ms > ?1 + (SELECT longest_lease_ms FROM run WHERE id = 1)"
                " LIMIT 1",
                now)
             .has_value();
}

PromptAnswer SqlLedger::lease_prompts(const HolderId& holder, int max_tasks, std::int64_t lease_ms) {
  check_lease_ms(lease_ms);
  check_max_tasks(max_tasks);
  give_back_doubted();
  const std::int64_t now = db_->now_ms();
  PromptAnswer answer;
  answer.finished = db_->find(kPromptsFinished) == 1;
  // Waiting workers ask often: they must not queue for the write turn to hear that there is nothing.
  if (answer.finished || !may_lease_prompts(now)) return answer;

  sql::Transaction transaction(*db_);
  const bool back = take_back_expired(now);
  struct Pending {
    std::int64_t row, attempts, expiries;
  };
  std::vector<Pending> rows;
  {
    sql::Query pending = db_->query("SELECT row, attempts, expiries FROM prompt WHERE state = 0 ORDER BY row LIMIT ?1",
                                    std::min(max_tasks, kMaxLeaseBatch));
    while (pending.step()) rows.push_back({pending.integer(0), pending.integer(1), pending.integer(2)});
  }
  if (!rows.empty()) note_lease(lease_ms);
  for (const auto& [row, attempts, expiries] : rows) {
    sql::Query task = db_->query("SELECT json FROM prompt_task WHERE row = ?1", row);
    if (!task.step()) throw Corrupt(fmt::format("ledger {} has lost the text of prompt {}", db_->name(), row));
    PromptLease lease{.task = prompt_task_from_json(task.text(0)), .token = random_hex128(), .taken_over = expiries > 0};
    lease.task.attempt = static_cast<int>(attempts);
    db_->run("UPDATE prompt SET state = 1, holder = ?2, token = ?3, expires_ms = ?4 WHERE row = ?1", row, holder.str(),
             lease.token, now + lease_ms);
    answer.leases.push_back(std::move(lease));
  }
  db_->run("UPDATE run SET prompts_pending = prompts_pending - ?1, prompts_leased = prompts_leased + ?1 WHERE id = 1",
           rows.size());
  answer.finished = db_->find(kPromptsFinished) == 1;
  for (const PromptLease& lease : answer.leases) doubted_.emplace_back(holder.str(), lease.token);  // until the commit holds
  transaction.commit(back ? sql::Wakes::kWaiters : sql::Wakes::kNobody);
  doubted_.clear();
  if (!rows.empty()) longest_noted_ms_ = std::max(longest_noted_ms_, lease_ms);
  return answer;
}

void SqlLedger::give_back_doubted() {
  if (doubted_.empty()) return;
  sql::Transaction transaction(*db_);
  std::int64_t back = 0;
  for (const auto& [holder, token] : doubted_) {
    back += db_->run(
        "UPDATE prompt SET state = 0, ended_token = token, token = NULL, holder = NULL, expires_ms = NULL"
        " WHERE state = 1 AND holder = ?1 AND token = ?2",
        holder, token);
  }
  db_->run("UPDATE run SET prompts_leased = prompts_leased - ?1, prompts_pending = prompts_pending + ?1 WHERE id = 1", back);
  transaction.commit();
  doubted_.clear();
}

void SqlLedger::extend_leases(const HolderId& holder, std::int64_t lease_ms) {
  check_lease_ms(lease_ms);
  sql::Transaction transaction(*db_);
  note_lease(lease_ms);
  db_->run("UPDATE prompt SET expires_ms = ?2 WHERE state = 1 AND holder = ?1", holder.str(), db_->now_ms() + lease_ms);
  transaction.commit(sql::Wakes::kNobody);
  longest_noted_ms_ = std::max(longest_noted_ms_, lease_ms);
}

bool SqlLedger::extend_lease(const PromptLease& lease, std::int64_t lease_ms) {
  check_lease_ms(lease_ms);
  const std::string& task_id = lease.task.task_id.str();
  // Mostly it has time enough, and nothing is written.
  const std::int64_t now = db_->now_ms();
  if (db_->find("SELECT row FROM prompt WHERE task_id = ?1 AND state = 1 AND token = ?2 AND expires_ms >= ?3 AND expires_ms <="
                " ?4 + (SELECT longest_lease_ms FROM run WHERE id = 1)",
                task_id, lease.token, now + (lease_ms + 1) / 2, now)) {
    return true;
  }
  sql::Transaction transaction(*db_);
  const Prompt prompt = find_prompt(task_id);
  if (prompt.state > kLeased || lease.token.empty() || prompt.token != lease.token) return false;
  // It may have run out and been taken back, but nobody has it yet.
  note_lease(lease_ms);
  db_->run("UPDATE prompt SET state = 1, expires_ms = ?2 WHERE row = ?1", prompt.row, db_->now_ms() + lease_ms);
  db_->run("UPDATE run SET prompts_leased = prompts_leased + ?1, prompts_pending = prompts_pending - ?1 WHERE id = 1",
           prompt.state == kPending ? 1 : 0);
  transaction.commit(sql::Wakes::kNobody);
  longest_noted_ms_ = std::max(longest_noted_ms_, lease_ms);
  return true;
}

SqlLedger::Prompt SqlLedger::find_prompt(const std::string& task_id) {
  sql::Query query =
      db_->query("SELECT row, state, attempts, holder, token, ended_token FROM prompt WHERE task_id = ?1", task_id);
  if (!query.step()) throw refusals::unknown_prompt(task_id, db_->name());
  Prompt prompt;
  prompt.row = query.integer(0);
  prompt.state = query.integer(1);
  prompt.attempts = query.integer(2);
  prompt.holder = query.text(3);
  prompt.token = query.text(4);
  prompt.ended_token = query.text(5);
  return prompt;
}

void SqlLedger::fail_prompt(const PromptLease& lease, const std::string& reason, bool retryable, int max_attempts) {
  check_max_attempts(max_attempts);
  const std::string& task_id = lease.task.task_id.str();
  sql::Transaction transaction(*db_);
  const Prompt prompt = find_prompt(task_id);
  if (prompt.state != kDone && !lease.token.empty() && prompt.ended_token == lease.token) return;  // said before
  if (prompt.state > kLeased || lease.token.empty() || prompt.token != lease.token)
    throw refusals::lost_prompt(lease, prompt.state, prompt.holder);
  const bool again = retryable && prompt.attempts + 1 < max_attempts;
  db_->run(
      "UPDATE prompt SET state = ?2, attempts = attempts + 1, reason = ?3, ended_token = token, token = NULL, holder = NULL,"
      " expires_ms = NULL WHERE row = ?1",
      prompt.row, static_cast<int>(again ? kPending : kPromptFailed), printable(reason, kMaxReasonBytes));
  db_->run(
      "UPDATE run SET prompts_leased = prompts_leased - ?1, prompts_pending = prompts_pending + ?2 - (1 - ?1),"
      " prompts_failed = prompts_failed + 1 - ?2 WHERE id = 1",
      prompt.state == kLeased ? 1 : 0, again ? 1 : 0);
  transaction.commit();
}

void SqlLedger::complete_prompt(const PromptLease& lease, const Prompt& prompt) {
  if (prompt.state > kLeased || lease.token.empty() || prompt.token != lease.token) {
    throw refusals::lost_prompt(lease, prompt.state, prompt.holder);
  }
  db_->run(
      "UPDATE prompt SET state = 2, ended_token = token, token = NULL, holder = NULL, expires_ms = NULL, reason = NULL"
      " WHERE row = ?1",
      prompt.row);
  db_->run(
      "UPDATE run SET prompts_leased = prompts_leased - ?1, prompts_pending = prompts_pending - (1 - ?1),"
      " prompts_done = prompts_done + 1 WHERE id = 1",
      prompt.state == kLeased ? 1 : 0);
}

void SqlLedger::return_leases(const HolderId& holder) {
  sql::Transaction transaction(*db_);
  const std::int64_t back = db_->run(
      "UPDATE prompt SET state = 0, ended_token = token, token = NULL, holder = NULL, expires_ms = NULL"
      " WHERE state = 1 AND holder = ?1",
      holder.str());
  db_->run("UPDATE run SET prompts_leased = prompts_leased - ?1, prompts_pending = prompts_pending + ?1 WHERE id = 1", back);
  transaction.commit();
}

std::vector<std::pair<std::string, std::string>> SqlLedger::failed_prompts(int limit) {
  std::vector<std::pair<std::string, std::string>> failed;
  sql::Query query = db_->query("SELECT task_id, reason FROM prompt WHERE state = 3 ORDER BY row LIMIT ?1", std::max(limit, 0));
  while (query.step()) failed.emplace_back(query.text(0), query.text(1));
  return failed;
}

}  // namespace draftflow
