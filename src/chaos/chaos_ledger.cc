// SPDX-License-Identifier: Apache-2.0
#include "chaos/chaos_ledger.h"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>

#include "ledger/sql/recount.h"

namespace draftflow::chaos {

ChaosLedger::ChaosLedger(Stage& stage) : stage_(stage) {
  const bool lossy = !stage_.plan.lossy.empty() && ::getpid() % 3 == 0;
  with_patience(stage_, [&] { ledger_ = open_ledger(lossy ? stage_.plan.lossy : stage_.plan.ledger); });
}

std::size_t ChaosLedger::index_of(const GroupId& group) const {
  const auto& groups = stage_.plan.groups;
  const auto at = std::find_if(groups.begin(), groups.end(), [&](const GroupPlan& one) { return one.name == group.str(); });
  return static_cast<std::size_t>(at - groups.begin());
}

// `newest` was the newest timeline before the call began; the call has succeeded.
void ChaosLedger::judge(const char* verb, const GroupId& group, std::int64_t timeline, std::int64_t newest) {
  if (newest <= timeline) return;
  stage_.violation(fmt::format("group {}: {} of timeline {} succeeded, although timeline {} had taken over before", group.str(),
                               verb, timeline, newest));
}

TimelineInfo ChaosLedger::open_timeline(const TimelineRequest& request) {
  const TimelineInfo info = patient(&Ledger::open_timeline, request);
  stage_.board.note_timeline(index_of(request.group), info.number);
  return info;
}

WindowAnswer ChaosLedger::read_window(const GroupId& group, std::int64_t timeline, std::int64_t number,
                                      const WindowShare& share) {
  return of_timeline("read_window", group, timeline,
                     [&](std::int64_t line) { return patient(&Ledger::read_window, group, line, number, share); });
}

void ChaosLedger::report_failed(const GroupId& group, std::int64_t timeline, std::int64_t window,
                                const std::vector<FailedSample>& failed) {
  if (stage_.plan.bug == Bug::kForgottenFailure) return;
  of_timeline("report_failed", group, timeline,
              [&](std::int64_t line) { patient(&Ledger::report_failed, group, line, window, failed); });
}

void ChaosLedger::trained(const GroupId& group, std::int64_t timeline, std::int64_t window, std::int64_t step,
                          const std::vector<FailedSample>& failed) {
  of_timeline("trained", group, timeline,
              [&](std::int64_t line) { patient(&Ledger::trained, group, line, window, step, failed); });
}

void ChaosLedger::checkpointed(const GroupId& group, std::int64_t timeline, std::int64_t step) {
  of_timeline("checkpointed", group, timeline, [&](std::int64_t line) { patient(&Ledger::checkpointed, group, line, step); });
}

void ChaosLedger::commit_sample(const SampleRef& ref, const PromptLease& lease) {
  if (stage_.plan.bug == Bug::kSplitCommit) return commit_in_two_steps(ref, lease);
  patient(&Ledger::commit_sample, ref, lease);
}

// What commit_sample would be with a transaction for each half.
void ChaosLedger::commit_in_two_steps(const SampleRef& ref, const PromptLease& lease) {
  const auto raw = testing_support::as_sql(open_sqlite_ledger(stage_.plan.ledger));
  with_patience(stage_, [&] {
    sql::Database& db = raw->database();
    sql::Transaction transaction(db);
    const std::int64_t done = db.run(
        "UPDATE prompt SET state = 2, ended_token = token, token = NULL, holder = NULL,"
        " expires_ms = NULL WHERE task_id = ?1 AND token = ?2 AND state = 1",
        lease.task.task_id.str(), lease.token);
    if (done == 0) throw Conflict("the lease was lost");
    db.run("UPDATE run SET prompts_leased = prompts_leased - 1, prompts_done = prompts_done + 1 WHERE id = 1");
    transaction.commit();
  });
  if (stage_.random.below(20) == 0) ::raise(SIGKILL);
  patient(&Ledger::commit_samples, std::vector<SampleRef>{ref}, std::vector<std::vector<TokenCount>>{});
}

}  // namespace draftflow::chaos
