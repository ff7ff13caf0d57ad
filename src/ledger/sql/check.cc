// SPDX-License-Identifier: Apache-2.0
//
// The books counted anew: kept counters against rows, the rules that tie the tables together, and each record against its row.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/ledger/partition.h"
#include "ledger/sql/rows.h"

namespace draftflow {
namespace {

constexpr std::int64_t kPage = 1024;   // records read at once
constexpr std::size_t kMaxNamed = 20;  // records that are named one by one
constexpr const char* kPrompts = "prompt p";
constexpr const char* kSamples = "sample s";

class Recount {
 public:
  explicit Recount(sql::Database& db) : db_(db) {}
  std::vector<std::string> take() { return std::move(found_); }

  // A counter that is kept, and what it counts.
  template <class... Args>
  void count(const std::string& what, std::int64_t kept, const std::string& sql, const Args&... args) {
    const std::int64_t rows = db_.find(sql, args...).value_or(0);
    if (rows != kept) say(miscounted(what, kept, rows));
  }

  void same(const std::string& what, const std::string& kept, const std::string& rows, std::int64_t id) {
    count(what, db_.find(kept, id).value_or(0), rows, id);
  }

  // Rows that must not be there; `one` names one of them.
  template <class... Args>
  void none(const std::string& what, const std::string& one, const std::string& rows, const Args&... args) {
    sql::Query query = db_.query(fmt::format("SELECT COUNT(*), MIN({}) FROM {}", one, rows), args...);
    if (!query.step() || query.integer(0) == 0) return;
    say(fmt::format("{}: {}, '{}' among them", what, query.integer(0), printable(query.text(1))));
  }

  void say(std::string finding) { found_.push_back(std::move(finding)); }

  // Of records: the first few by name, then how many more.
  void say_record(const std::string& finding) {
    if (++records_ <= kMaxNamed) say(finding);
  }
  void end_records() {
    if (records_ > kMaxNamed) say(fmt::format("and {} records more", records_ - kMaxNamed));
  }

 private:
  sql::Database& db_;
  std::vector<std::string> found_;
  std::size_t records_ = 0;
};

void recount_run(Recount& recount, const LedgerStatus& status) {
  recount.count("prompts", status.prompts, "SELECT COUNT(*) FROM prompt");
  recount.count("prompts by number", status.prompts, "SELECT MAX(row) + 1 FROM prompt");
  recount.count("prompts with a record", status.prompts, "SELECT COUNT(*) FROM prompt_task t JOIN prompt p ON p.row = t.row");
  constexpr const char* kStates[] = {"pending", "leased", "done", "failed"};
  const std::int64_t kept[] = {status.prompts_pending, status.prompts_leased, status.prompts_done, status.prompts_failed};
  for (int state = 0; state < 4; ++state) {
    recount.count(fmt::format("prompts {}", kStates[state]), kept[state], "SELECT COUNT(*) FROM prompt WHERE state = ?1",
                  state);
  }
  recount.none("prompts leased without holder, token or time", "p.task_id",
               std::string(kPrompts) + " WHERE p.state = 1 AND (p.holder IS NULL OR p.token IS NULL OR p.expires_ms IS NULL)");
  recount.none("prompts ended or pending that still have a time to run out", "p.task_id",
               std::string(kPrompts) + " WHERE p.state <> 1 AND p.expires_ms IS NOT NULL");
  recount.none("prompts failed without a reason", "p.task_id",
               std::string(kPrompts) + " WHERE p.state = 3 AND p.reason IS NULL");
  recount.none(
      "prompts done without a sample", "p.task_id",
      std::string(kPrompts) + " WHERE p.state = 2 AND NOT EXISTS (SELECT 1 FROM sample s WHERE s.sample_id = p.task_id)");
  recount.count("samples committed", status.committed, "SELECT COUNT(*) FROM sample");
  recount.count("samples with a ref", status.committed, "SELECT COUNT(*) FROM sample_ref r JOIN sample s ON s.row = r.row");
  recount.count("samples by number", status.committed, "SELECT MAX(row) + 1 FROM sample");
  recount.count("committed tokens", status.committed_tokens, "SELECT SUM(tokens) FROM sample");
  recount.count("samples freed", status.freed, "SELECT COUNT(*) FROM sample WHERE state = 3");
  recount.count("resident bytes", static_cast<std::int64_t>(status.resident_bytes),
                "SELECT SUM(bytes) FROM sample WHERE state < 3 AND in_place = 0");
}

void recount_queue(Recount& recount, std::int64_t id, const GroupStatus& queue) {
  const std::string named = fmt::format("queue '{}': ", printable(queue.group));
  const auto refs = [](const char* where) {
    return std::string("queue_ref q JOIN sample s ON s.row = q.row WHERE q.consumer = ?1 AND ") + where;
  };
  const auto count = [&](const char* what, std::int64_t kept, const char* where) {
    recount.count(named + what, kept, "SELECT COUNT(*) FROM " + refs(where), id);
  };
  const auto none = [&](const char* what, const char* where) { recount.none(named + what, "s.sample_id", refs(where), id); };
  count("available", queue.available, "q.state = 0");
  count("leased", queue.leased, "q.state = 1");
  count("acked", queue.durable, "q.state = 2");
  count("failed", queue.failed, "q.state = 3");
  recount.count(named + "dropped", queue.dropped, "SELECT COUNT(*) FROM dropped WHERE consumer = ?1", id);
  recount.count(named + "samples in windows", 0, "SELECT COUNT(*) FROM window_ref WHERE consumer = ?1", id);
  none("dropped, and in it", "EXISTS (SELECT 1 FROM dropped d WHERE d.consumer = q.consumer AND d.row = q.row)");
  none("not done with, and may go", "q.state < 2 AND s.state > 0");
  if (queue.open) {
    recount.none(named + "samples that are there and not in it", "s.sample_id",
                 std::string(kSamples) +
                     " WHERE s.state = 0 AND NOT EXISTS (SELECT 1 FROM queue_ref q WHERE q.row = s.row AND q.consumer = ?1)"
                     " AND NOT EXISTS (SELECT 1 FROM dropped d WHERE d.row = s.row AND d.consumer = ?1)",
                 id);
  } else {
    none("not done with, and the queue is closed", "q.state < 2");
  }
  // What a lease leaves behind, by state.
  none("available with a time to run out", "q.state = 0 AND q.expires_ms IS NOT NULL");
  none("leased without holder, token or time", "q.state = 1 AND (q.holder IS NULL OR q.token IS NULL OR q.expires_ms IS NULL)");
  none("done with, and still leased",
       "q.state > 1 AND (q.holder IS NOT NULL OR q.token IS NOT NULL OR q.expires_ms IS NOT NULL)");
  none("done with by no lease", "q.state > 1 AND q.ended_token IS NULL");
  none("acked with a reason of failure", "q.state = 2 AND q.reason IS NOT NULL");
  none("failed without a reason or an attempt", "q.state = 3 AND (q.reason IS NULL OR q.attempts = 0)");
}

std::string refs_in_windows(const char* where) {
  return std::string(
             "window_ref w JOIN training_window t ON t.consumer = w.consumer AND t.number = w.number JOIN consumer c ON c.id ="
             " w.consumer JOIN sample s ON s.row = w.row WHERE w.consumer = ?1 AND ") +
         where;
}

void recount_passes(Recount& recount, std::int64_t id, const GroupStatus& group) {
  const std::string named = fmt::format("group '{}': ", printable(group.group));
  // Each pass has a sample in one window.
  recount.count(named + "samples in more windows than passes", 0,
                "SELECT COUNT(*) FROM (SELECT row FROM window_ref WHERE consumer = ?1 GROUP BY row HAVING COUNT(*) >"
                " (SELECT CASE WHEN pass_windows = 0 THEN 1 ELSE passes END FROM consumer WHERE id = ?1)) AS x",
                id);
  recount.count(
      named + "samples of a later pass that are not those of the first", 0,
      "SELECT COUNT(*) FROM window_ref w JOIN consumer c ON c.id = w.consumer WHERE w.consumer = ?1 AND c.pass_windows"
      " > 0 AND w.number >= c.pass_windows AND NOT EXISTS (SELECT 1 FROM window_ref f WHERE f.consumer = w.consumer"
      " AND f.number = w.number % c.pass_windows AND f.position = w.position AND f.row = w.row)",
      id);
  if (group.open && group.passes > 1) {
    recount.none(named + "bytes went that another pass needs", "s.sample_id",
                 refs_in_windows("s.state > 0 AND (c.pass_windows = 0 OR"
                                 " c.durable_windows <= (c.passes - 1) * c.pass_windows + w.number % c.pass_windows)"),
                 id);
  }
  recount.none(named + "more or fewer windows than its passes have", "c.name",
               "consumer c WHERE c.id = ?1 AND c.pass_windows > 0 AND NOT (c.pass_windows <= c.windows AND c.windows <="
               " c.passes * c.pass_windows AND c.released_windows <= c.pass_windows AND c.passes > 1)",
               id);
}

void recount_windows(Recount& recount, std::int64_t id, const GroupStatus& group) {
  const std::string named = fmt::format("group '{}': ", printable(group.group));
  const auto count = [&](const char* what, std::int64_t kept, const char* where) {
    recount.count(named + what, kept, "SELECT COUNT(*) FROM " + refs_in_windows(where), id);
  };
  const auto same = [&](const char* what, const char* kept, const char* rows) { recount.same(named + what, kept, rows, id); };
  recount.count(named + "refs in its queue", 0, "SELECT COUNT(*) FROM queue_ref WHERE consumer = ?1", id);
  count("windowed", group.windowed, "t.step IS NULL");
  count("trained", group.trained, "t.step > c.durable_step AND w.reason IS NULL");
  count("durable", group.durable, "t.step <= c.durable_step AND w.reason IS NULL");
  count("failed", group.failed, "t.step IS NOT NULL AND w.reason IS NOT NULL");
  recount.count(named + "dropped", group.dropped, "SELECT COUNT(*) FROM dropped WHERE consumer = ?1", id);
  recount.count(
      named + "available", group.available,
      "SELECT COUNT(*) FROM sample s JOIN consumer c ON c.id = ?1 WHERE c.open = 1 AND s.row >= c.next_row AND s.state"
      " = 0 AND NOT EXISTS (SELECT 1 FROM dropped d WHERE d.row = s.row AND d.consumer = ?1)",
      id);
  if (group.open) {
    recount.none(named + "needed for training, and may go", "s.sample_id",
                 refs_in_windows("s.state > 0 AND (t.step IS NULL OR t.step > c.durable_step)"), id);
  }
  recount_passes(recount, id, group);
  recount.count(named + "samples dropped, and in a window", 0,
                "SELECT COUNT(*) FROM window_ref w JOIN dropped d ON d.consumer = w.consumer AND d.row = w.row"
                " WHERE w.consumer = ?1",
                id);
  same("windows", "SELECT windows FROM consumer WHERE id = ?1", "SELECT COUNT(*) FROM training_window WHERE consumer = ?1");
  same("windows by number", "SELECT windows FROM consumer WHERE id = ?1",
       "SELECT MAX(number) + 1 FROM training_window WHERE consumer = ?1");
  same("trained windows", "SELECT trained_windows FROM consumer WHERE id = ?1",
       "SELECT COUNT(*) FROM training_window WHERE consumer = ?1 AND step IS NOT NULL");
  same("trained windows by number", "SELECT trained_windows FROM consumer WHERE id = ?1",
       "SELECT MAX(number) + 1 FROM training_window WHERE consumer = ?1 AND step IS NOT NULL");
  same("samples that were handed to a sweeper", "SELECT SUM(going) FROM training_window WHERE consumer = ?1",
       ("SELECT COUNT(*) FROM " + refs_in_windows("s.state >= 2")).c_str());
  recount.count(named + "windows with gaps", 0,
                "SELECT COUNT(*) FROM (SELECT t.number FROM training_window t LEFT JOIN window_ref w ON w.consumer = t.consumer"
                " AND w.number = t.number LEFT JOIN training_window b ON b.consumer = t.consumer AND b.number = t.number - 1"
                " WHERE t.consumer = ?1 GROUP BY t.number, t.refs_through, b.refs_through HAVING COUNT(w.row) = 0 OR"
                " COUNT(w.row) <> t.refs_through - COALESCE(b.refs_through, 0) OR MIN(w.position) <> 0"
                " OR MAX(w.position) <> COUNT(w.row) - 1) AS x",
                id);
  recount.count(
      named + "windows of other sizes than its windows may have", 0,
      "SELECT COUNT(*) FROM (SELECT w.number FROM window_ref w JOIN sample s ON s.row = w.row JOIN consumer c ON c.id ="
      " w.consumer WHERE w.consumer = ?1 GROUP BY w.number, c.window_size, c.max_window_tokens HAVING"
      " COUNT(*) > c.window_size OR (c.max_window_tokens = 0 AND COUNT(*) < c.window_size) OR"
      " (c.max_window_tokens > 0 AND COUNT(*) > 1 AND SUM(s.tokens) > c.max_window_tokens)) AS x",
      id);
  recount.none(named + "released, durable, trained and dealt windows out of their order", "c.name",
               "consumer c WHERE c.id = ?1 AND NOT (0 <= released_windows AND released_windows <= durable_windows"
               " AND durable_windows <= trained_windows AND trained_windows <= windows AND durable_step <= trained_step)"
               " AND c.open = 1",
               id);
}

void recount_claims(Recount& recount) {
  recount.none("samples whose claims are not those of the groups", "s.sample_id",
               std::string(kSamples) + " WHERE s.state = 0 AND s.claims <> " + kClaims);
  recount.none("files in place that may go", "s.sample_id", std::string(kSamples) + " WHERE s.state > 0 AND s.in_place = 1");
  recount.none("samples that may go and are claimed", "s.sample_id",
               std::string(kSamples) + " WHERE s.state > 0 AND s.claims <> 0");
}

void check_prompt(Recount& recount, const std::string& id, const std::string& json) {
  try {
    if (const PromptTask task = prompt_task_from_json(json); task.task_id.str() != id) {
      recount.say_record(
          fmt::format("prompt '{}' has the record of prompt '{}'", printable(id), printable(task.task_id.str())));
    }
  } catch (const Error& error) {
    recount.say_record(fmt::format("the record of prompt '{}' cannot be read: {}", printable(id), error.what()));
  }
}

using RefText = std::function<std::string(const sql::Query& row, int column)>;

void check_sample(Recount& recount, const sql::Query& row, const RefText& ref_text) {
  const std::string id = row.text(1);
  try {
    const SampleRef ref = sample_ref_from_json(ref_text(row, 1));
    if (ref.sample_id.str() != id) {
      recount.say_record(fmt::format("sample '{}' has the ref of '{}'", printable(id), printable(ref.sample_id.str())));
    }
    const auto held = [&](const char* what, std::int64_t on_row, std::int64_t in_ref) {
      if (on_row == in_ref) return;
      recount.say_record(
          fmt::format("sample '{}': {} is {} in its row and {} in its ref", printable(id), what, on_row, in_ref));
    };
    held("generation", row.integer(2), static_cast<std::int64_t>(ref.generation));
    held("bytes", row.integer(3), static_cast<std::int64_t>(ref.estimated_bytes));
    held("tokens", row.integer(4), ref.num_tokens);
    held("in place", row.integer(7), is_in_place(ref) ? 1 : 0);
  } catch (const Error& error) {
    recount.say_record(fmt::format("the ref of sample '{}' cannot be read: {}", printable(id), error.what()));
  }
}

void check_records(Recount& recount, sql::Database& db, const LedgerStatus& status, const RefText& ref_text) {
  const auto pages = [&](std::int64_t end, const char* sql, const auto& check) {
    for (std::int64_t from = 0; from < end; from += kPage) {
      sql::Query page = db.query(sql, from, from + kPage);
      while (page.step()) check(page);
    }
  };
  pages(status.prompts,
        "SELECT p.row, p.task_id, t.json FROM prompt p JOIN prompt_task t ON t.row = p.row WHERE p.row >= ?1 AND p.row < ?2",
        [&](const sql::Query& row) { check_prompt(recount, row.text(1), row.text(2)); });
  static const std::string kRefs = fmt::format(
      "SELECT s.row, {}, s.in_place FROM sample s JOIN sample_ref r ON r.row = s.row WHERE s.row >= ?1 AND s.row < ?2",
      kRefColumns);
  pages(status.committed, kRefs.c_str(), [&](const sql::Query& row) { check_sample(recount, row, ref_text); });
  pages(
      status.committed,
      "SELECT q.row, s.sample_id, q.shard FROM queue_ref q JOIN sample s ON s.row = q.row WHERE q.row >= ?1 AND q.row < ?2",
      [&](const sql::Query& row) {
        if (row.integer(2) == dp_partition(row.text(1), kShardModulus)) return;
        recount.say_record(fmt::format("sample '{}' is in another shard of a queue than its id says", printable(row.text(1))));
      });
  recount.end_records();
}

}  // namespace

std::vector<std::string> SqlLedger::recount() {
  Recount recount(*db_);
  const LedgerStatus status = read_status();
  recount_run(recount, status);
  std::vector<std::int64_t> ids;
  {
    sql::Query groups = db_->query("SELECT id FROM consumer ORDER BY id");
    while (groups.step()) ids.push_back(groups.integer(0));
  }
  for (std::size_t i = 0; i < status.groups.size(); ++i) {
    const bool queue = status.groups[i].kind == GroupKind::kQueue;
    queue ? recount_queue(recount, ids[i], status.groups[i]) : recount_windows(recount, ids[i], status.groups[i]);
  }
  recount_claims(recount);
  check_records(recount, *db_, status, [&](const sql::Query& row, int column) { return ref_json_of(row, column); });
  return recount.take();
}

std::vector<std::string> SqlLedger::check() {
  const sql::Snapshot snapshot(*db_);
  std::vector<std::string> found;
  try {
    for (const std::string& one : db_->damage())
      found.push_back(fmt::format("the database's own check: {}", printable(one, 400)));
    for (std::string& one : recount()) found.push_back(std::move(one));
  } catch (const Corrupt& error) {  // what cannot be read cannot be counted
    found.emplace_back(error.what());
  }
  return found;
}

}  // namespace draftflow
