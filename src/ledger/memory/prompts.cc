// SPDX-License-Identifier: Apache-2.0
#include <openssl/evp.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "draftflow/base/text.h"
#include "ledger/memory/memory_ledger.h"

namespace draftflow {

using memory::LeaseNumber;
using memory::Prompt;

namespace {

std::array<unsigned char, 16> digest_of(const std::string& payload) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> whole{};
  if (EVP_Digest(payload.data(), payload.size(), whole.data(), nullptr, EVP_sha256(), nullptr) != 1) {
    throw std::runtime_error("libcrypto gives no SHA-256: texts of prompts cannot be told apart");
  }
  std::array<unsigned char, 16> digest{};
  std::copy_n(whole.begin(), digest.size(), digest.begin());
  return digest;
}

}  // namespace

std::int64_t MemoryLedger::find_prompt_row(std::string_view task_id) const {
  return books_->prompt_index.find(task_id, [&](std::int64_t row) -> std::string_view { return books_->prompts[row].task_id; });
}

std::int64_t MemoryLedger::ingest_prompts(const std::vector<PromptTask>& tasks,
                                          const std::vector<std::vector<TokenCount>>& counts) {
  check_counts(tasks.size(), "prompts", counts.size());
  const std::lock_guard lock(books_->mutex);
  std::unordered_map<std::string_view, std::array<unsigned char, 16>> of_this_call;
  std::vector<Prompt> made;
  TokenSums sums;
  const auto noted = books_->facts.find("run_id");
  std::optional<std::string> run_id;
  if (noted != books_->facts.end()) run_id = noted->second;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const std::string& task_id = tasks[i].task_id.str();
    const std::int64_t row = find_prompt_row(task_id);
    const auto twice = of_this_call.find(task_id);
    if (row >= 0 || twice != of_this_call.end()) {
      const auto& known = row >= 0 ? books_->prompts[row].payload : twice->second;
      if (digest_of(prompt_task_from_json(task_json(tasks[i])).payload) == known) continue;
      throw refusals::other_text(task_id, books_->name);
    }
    if (run_id && *run_id != tasks[i].run_id.str()) throw refusals::other_run(tasks[i], *run_id, books_->name);
    run_id = tasks[i].run_id.str();
    if (books_->prompts_closed) throw refusals::prompts_closed(task_id, books_->name);
    auto task = std::make_unique<PromptTask>(prompt_task_from_json(task_json(tasks[i])));
    const std::int64_t next = books_->prompt_count + static_cast<std::int64_t>(made.size());
    if (!counts.empty()) sums.add(counts[i], next);
    const auto digest = digest_of(task->payload);
    of_this_call.emplace(task_id, digest);
    made.push_back({.task_id = task_id, .payload = digest, .task = std::move(task)});
  }
  if (books_->prompt_count + static_cast<std::int64_t>(made.size()) > memory::kMostRows) {
    throw Exhausted("a ledger in memory holds at most 2^32 prompts: start another run");
  }
  make_whole([&] {
    if (!made.empty()) note_run_id(made.front().task->run_id);
    for (Prompt& prompt : made) {
      const std::int64_t row = books_->prompt_count++;
      books_->prompt_index.insert(prompt.task_id, row);
      books_->prompts.write(row) = std::move(prompt);
      books_->pending_prompts.insert(row);
      ++books_->pending;
    }
    add_token_counts(sums);
  });
  return static_cast<std::int64_t>(made.size());
}

void MemoryLedger::close_prompts() {
  const std::lock_guard lock(books_->mutex);
  if (!std::exchange(books_->prompts_closed, true)) note_change();
}

// --- leases

void MemoryLedger::hold(std::int64_t row, const std::string& holder, std::int64_t expires_ms) {
  Prompt& prompt = books_->prompts[row];
  if (prompt.state == kPending) {
    books_->pending_prompts.erase(row);
    --books_->pending;
    ++books_->leased;
    prompt.state = kLeased;
    books_->prompt_holders[holder].insert(row);
  } else {
    books_->prompt_expiries.erase({books_->holds.at(row).expires_ms, row});
  }
  books_->holds.insert_or_assign(row, memory::PromptHold{holder, expires_ms});
  books_->prompt_expiries.emplace(expires_ms, row);
}

void MemoryLedger::lay_down(std::int64_t row) {
  const memory::PromptHold& hold = books_->holds.at(row);
  books_->prompt_expiries.erase({hold.expires_ms, row});
  const auto rows = books_->prompt_holders.find(hold.holder);
  rows->second.erase(row);
  if (rows->second.empty()) books_->prompt_holders.erase(rows);
  books_->prompts[row].state = kPending;
  books_->pending_prompts.insert(row);
  --books_->leased;
  ++books_->pending;
}

// Of a prompt with a token, leased or pending: it is pending without one.
void MemoryLedger::end_lease(std::int64_t row, LeaseNumber ended) {
  Prompt& prompt = books_->prompts[row];
  if (prompt.state == kLeased) lay_down(row);
  books_->holds.erase(row);
  prompt.ended_token = ended;
  prompt.token = 0;
}

// An expired lease keeps its token until somebody else takes the prompt: its holder may still commit, if only slow.
bool MemoryLedger::take_back_expired(std::int64_t now) {
  const auto& expiries = books_->prompt_expiries;
  bool any = false;
  while (!expiries.empty()) {
    const bool first = books_->ran_out(expiries.begin()->first, now);
    if (!first && !books_->ran_out(expiries.rbegin()->first, now)) break;
    any = true;
    const std::int64_t row = first ? expiries.begin()->second : expiries.rbegin()->second;
    Prompt& prompt = books_->prompts[row];
    lay_down(row);
    if (++prompt.expiries < kMaxExpiries) continue;
    end_lease(row, prompt.ended_token);
    prompt.state = kPromptFailed;
    books_->pending_prompts.erase(row);
    --books_->pending;
    books_->failed_prompts[row] = poison_reason();
  }
  return any;
}

PromptAnswer MemoryLedger::lease_prompts(const HolderId& holder, int max_tasks, std::int64_t lease_ms) {
  check_lease_ms(lease_ms);
  check_max_tasks(max_tasks);
  const std::lock_guard lock(books_->mutex);
  const std::int64_t now = clock_.now_ms();
  PromptAnswer answer;
  make_whole([&] {
    const bool back = take_back_expired(now);
    for (int i = 0; i < std::min(max_tasks, kMaxLeaseBatch); ++i) {
      const std::int64_t row = books_->pending_prompts.next(0);
      if (row < 0) break;
      Prompt& prompt = books_->prompts[row];
      prompt.token = ++books_->last_lease;
      books_->longest_lease_ms = std::max(books_->longest_lease_ms, lease_ms);
      hold(row, holder.str(), now + lease_ms);
      answer.leases.push_back(
          {.task = *prompt.task, .token = books_->tokens.text_of(prompt.token), .taken_over = prompt.expiries > 0});
      answer.leases.back().task.attempt = prompt.attempts;
    }
    answer.finished = prompts_finished();
    return back || !answer.leases.empty();
  });
  return answer;
}

void MemoryLedger::extend_leases(const HolderId& holder, std::int64_t lease_ms) {
  check_lease_ms(lease_ms);
  const std::lock_guard lock(books_->mutex);
  books_->longest_lease_ms = std::max(books_->longest_lease_ms, lease_ms);
  const auto rows = books_->prompt_holders.find(holder.str());
  if (rows == books_->prompt_holders.end()) return;
  const std::int64_t expires_ms = clock_.now_ms() + lease_ms;
  make_whole([&] {
    for (const std::int64_t row : rows->second) hold(row, holder.str(), expires_ms);
  });
}

bool MemoryLedger::extend_lease(const PromptLease& lease, std::int64_t lease_ms) {
  check_lease_ms(lease_ms);
  const std::lock_guard lock(books_->mutex);
  std::int64_t row = 0;
  const Prompt& prompt = find_prompt(lease, row);
  const LeaseNumber token = books_->tokens.number_of(lease.token);
  if (prompt.state > kLeased || token == 0 || prompt.token != token) return false;
  const memory::PromptHold& held = books_->holds.at(row);
  const std::int64_t now = clock_.now_ms();
  const bool long_enough = held.expires_ms >= now + (lease_ms + 1) / 2 && !books_->ran_out(held.expires_ms, now);
  if (prompt.state == kLeased && long_enough) return true;
  // It may have run out and been taken back, but nobody has it yet.
  make_whole([&] {
    books_->longest_lease_ms = std::max(books_->longest_lease_ms, lease_ms);
    hold(row, std::string(held.holder), now + lease_ms);
  });
  return true;
}

Prompt& MemoryLedger::find_prompt(const PromptLease& lease, std::int64_t& row) {
  row = find_prompt_row(lease.task.task_id.str());
  if (row < 0) throw refusals::unknown_prompt(lease.task.task_id.str(), books_->name);
  return books_->prompts[row];
}

bool MemoryLedger::said_before(const PromptLease& lease, const Prompt& prompt) const {
  const LeaseNumber token = books_->tokens.number_of(lease.token);
  return token != 0 && prompt.ended_token == token;
}

void MemoryLedger::check_held(const PromptLease& lease, const Prompt& prompt, std::int64_t row) const {
  const LeaseNumber token = books_->tokens.number_of(lease.token);
  if (prompt.state <= kLeased && token != 0 && prompt.token == token) return;
  const auto hold = books_->holds.find(row);
  throw refusals::lost_prompt(lease, prompt.state, hold == books_->holds.end() ? std::string() : hold->second.holder);
}

void MemoryLedger::fail_prompt(const PromptLease& lease, const std::string& reason, bool retryable, int max_attempts) {
  check_max_attempts(max_attempts);
  const std::lock_guard lock(books_->mutex);
  std::int64_t row = 0;
  Prompt& prompt = find_prompt(lease, row);
  if (prompt.state != kDone && said_before(lease, prompt)) return;
  check_held(lease, prompt, row);
  std::string why = printable(reason, kMaxReasonBytes);
  make_whole([&] {
    end_lease(row, prompt.token);
    ++prompt.attempts;
    if (retryable && prompt.attempts < max_attempts) return;
    prompt.state = kPromptFailed;
    books_->pending_prompts.erase(row);
    --books_->pending;
    books_->failed_prompts[row] = std::move(why);
  });
}

// Of a prompt that is held: its text is wanted no more.
void MemoryLedger::complete_prompt(std::int64_t row) {
  Prompt& prompt = books_->prompts[row];
  end_lease(row, prompt.token);
  prompt.state = kDone;
  prompt.task.reset();
  books_->pending_prompts.erase(row);
  --books_->pending;
  ++books_->done;
}

void MemoryLedger::return_leases(const HolderId& holder) {
  const std::lock_guard lock(books_->mutex);
  const auto rows = books_->prompt_holders.find(holder.str());
  if (rows == books_->prompt_holders.end()) return;
  make_whole([&] {
    const std::set<std::int64_t> held = rows->second;
    for (const std::int64_t row : held) end_lease(row, books_->prompts[row].token);
  });
}

std::vector<std::pair<std::string, std::string>> MemoryLedger::failed_prompts(int limit) {
  const std::lock_guard lock(books_->mutex);
  std::vector<std::pair<std::string, std::string>> failed;
  for (const auto& [row, reason] : books_->failed_prompts) {
    if (static_cast<std::int64_t>(failed.size()) >= limit) break;
    failed.emplace_back(books_->prompts[row].task_id, reason);
  }
  return failed;
}

}  // namespace draftflow
