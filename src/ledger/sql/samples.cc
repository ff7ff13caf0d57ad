// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "ledger/sql/rows.h"

namespace draftflow {
namespace {

constexpr std::uint64_t kMaxSampleBytes = 1ULL << 48;
constexpr std::int64_t kMaxSampleTokens = 1LL << 40;
constexpr std::uint64_t kMaxGeneration = 1ULL << 53;

void check_ref(const SampleRef& ref) {
  const auto refuse = [&](const std::string& what) {
    throw InvalidArgument(fmt::format("ref of sample '{}': {}", printable(ref.sample_id.str()), what));
  };
  if (ref.estimated_bytes > kMaxSampleBytes) {
    refuse(fmt::format("estimated_bytes is {}: at most {} are allowed", ref.estimated_bytes, kMaxSampleBytes));
  }
  if (ref.num_tokens < 0 || ref.num_tokens > kMaxSampleTokens) {
    refuse(fmt::format("num_tokens is {}: 0 to {} are allowed", ref.num_tokens, kMaxSampleTokens));
  }
  if (ref.generation > kMaxGeneration) {
    refuse(fmt::format("generation is {}: at most {} is allowed", ref.generation, kMaxGeneration));
  }
}

// Files of the user's: never counted as resident, never freed.
bool is_in_place(const SampleRef& ref) {
  return ref.feature_store_uri.starts_with("file://");
}

std::string ref_json(const SampleRef& ref) {
  try {
    return sample_ref_to_json(ref);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {  // the JSON library's own
    throw InvalidArgument(fmt::format("ref of sample '{}' cannot be written as JSON: {}", printable(ref.sample_id.str()),
                                      printable(error.what())));
  }
}

}  // namespace

void SqlLedger::note_run_id(const RunId& run_id) {
  db_->run("INSERT INTO fact(key, value) VALUES ('run_id', ?1) ON CONFLICT DO NOTHING", run_id.str());
}

void SqlLedger::add_token_counts(const std::vector<TokenCount>& counts, std::int64_t row) {
  for (const TokenCount& entry : counts) {
    if (entry.token < 0 || entry.count < 0 || entry.count > kMaxSampleTokens) {
      throw InvalidArgument(fmt::format("token {} counted {} times: token ids start at 0, counts are 0 to {}", entry.token,
                                        entry.count, kMaxSampleTokens));
    }
    if (entry.count == 0) continue;
    db_->run(
        "INSERT INTO token_count(token, count, first_row) VALUES (?1, ?2, ?3) ON CONFLICT(token) DO UPDATE SET"
        " count = token_count.count + excluded.count, first_row = CASE WHEN token_count.first_row < excluded.first_row"
        " THEN token_count.first_row ELSE excluded.first_row END",
        entry.token, entry.count, row);
  }
}

void SqlLedger::insert_sample(const SampleRef& ref) {
  const std::int64_t row = db_->find("SELECT committed FROM run WHERE id = 1").value_or(0);
  const bool in_place = is_in_place(ref);
  if (row == 0) note_run_id(ref.run_id);
  db_->run(
      "INSERT INTO sample(row, sample_id, generation, incarnation, bytes, tokens, in_place, claims) VALUES (?1, ?2, ?3, ?4, ?5,"
      " ?6, ?7, (SELECT COUNT(*) FROM consumer WHERE open = 1))",
      row, ref.sample_id.str(), ref.generation, ref.incarnation, ref.estimated_bytes, ref.num_tokens, in_place ? 1 : 0);
  db_->run("INSERT INTO sample_ref(row, json) VALUES (?1, ?2)", row, ref_json(ref));
  db_->run(
      "UPDATE run SET committed = committed + 1, committed_tokens = committed_tokens + ?1, resident_bytes = resident_bytes + ?2"
      " WHERE id = 1",
      ref.num_tokens, in_place ? 0 : ref.estimated_bytes);
  db_->run("UPDATE consumer SET available = available + 1 WHERE open = 1");
}

void SqlLedger::replace_sample(const SampleRef& ref, std::int64_t row) {
  std::uint64_t generation = 0;
  std::int64_t bytes = 0, tokens = 0, in_place = 0;
  {
    sql::Query old = db_->query("SELECT generation, bytes, tokens, in_place FROM sample WHERE row = ?1", row);
    old.step();
    generation = static_cast<std::uint64_t>(old.integer(0));
    bytes = old.integer(1);
    tokens = old.integer(2);
    in_place = old.integer(3);
  }
  const std::string what = fmt::format("sample '{}' is committed with generation {}; generation {}",
                                       printable(ref.sample_id.str()), generation, ref.generation);
  if (ref.generation <= generation) throw Conflict(what + " is no newer: remove it from the store");
  if (db_->find("SELECT 1 FROM consumer WHERE next_row > ?1 LIMIT 1", row)) {
    throw Conflict(what + " comes too late, a group has taken the sample: remove it from the store");
  }
  const bool now_in_place = is_in_place(ref);
  db_->run("UPDATE sample SET generation = ?2, incarnation = ?3, bytes = ?4, tokens = ?5, in_place = ?6 WHERE row = ?1", row,
           ref.generation, ref.incarnation, ref.estimated_bytes, ref.num_tokens, now_in_place ? 1 : 0);
  db_->run("UPDATE sample_ref SET json = ?2 WHERE row = ?1", row, ref_json(ref));
  const auto now_bytes = now_in_place ? 0 : static_cast<std::int64_t>(ref.estimated_bytes);
  db_->run("UPDATE run SET committed_tokens = committed_tokens + ?1, resident_bytes = resident_bytes + ?2 WHERE id = 1",
           ref.num_tokens - tokens, now_bytes - (in_place != 0 ? 0 : bytes));
}

void SqlLedger::commit_sample(const SampleRef& ref, const PromptLease& lease) {
  check_ref(ref);
  if (ref.sample_id.str() != lease.task.task_id.str()) {
    throw InvalidArgument(fmt::format("sample '{}' cannot complete prompt '{}': a prompt becomes the sample of the same id",
                                      printable(ref.sample_id.str()), printable(lease.task.task_id.str())));
  }
  sql::Transaction transaction(*db_);
  std::optional<std::int64_t> row;
  {
    sql::Query found = db_->query("SELECT row, generation, incarnation FROM sample WHERE sample_id = ?1", ref.sample_id.str());
    if (found.step()) {
      if (static_cast<std::uint64_t>(found.integer(1)) == ref.generation && found.text(2) == ref.incarnation) return;
      row = found.integer(0);
    }
  }
  const Prompt prompt = find_prompt(lease.task.task_id.str());
  const bool said_before = prompt.state == kDone && !lease.token.empty() && prompt.ended_token == lease.token;
  if (!said_before) complete_prompt(lease, prompt);
  if (row) {
    replace_sample(ref, *row);
  } else {
    insert_sample(ref);
  }
  transaction.commit();
}

std::int64_t SqlLedger::commit_samples(const std::vector<SampleRef>& refs, const std::vector<std::vector<TokenCount>>& counts) {
  if (!counts.empty() && counts.size() != refs.size()) {
    throw InvalidArgument(
        fmt::format("{} refs with {} lists of token counts: one for each, or none", refs.size(), counts.size()));
  }
  for (const SampleRef& ref : refs) check_ref(ref);
  std::int64_t added = 0;
  sql::Transaction transaction(*db_);
  for (std::size_t i = 0; i < refs.size(); ++i) {
    if (db_->find("SELECT row FROM sample WHERE sample_id = ?1", refs[i].sample_id.str())) continue;
    const std::int64_t row = db_->find("SELECT committed FROM run WHERE id = 1").value_or(0);
    insert_sample(refs[i]);
    if (!counts.empty()) add_token_counts(counts[i], row);
    ++added;
  }
  transaction.commit();
  return added;
}

bool SqlLedger::is_committed(const SampleId& id) {
  return db_->find("SELECT row FROM sample WHERE sample_id = ?1", id.str()).has_value();
}

SampleRef SqlLedger::read_ref(std::int64_t row) {
  sql::Query query = db_->query("SELECT json FROM sample_ref WHERE row = ?1", row);
  if (!query.step()) throw Corrupt(fmt::format("ledger {} has lost the ref of sample {}", db_->name(), row));
  return sample_ref_from_json(query.text(0));
}

std::optional<SampleRef> SqlLedger::get_committed(const SampleId& id) {
  const std::optional<std::int64_t> row = db_->find("SELECT row FROM sample WHERE sample_id = ?1", id.str());
  if (!row) return std::nullopt;
  return read_ref(*row);
}

std::vector<std::string> SqlLedger::all_committed_ids() {
  std::vector<std::string> ids;
  sql::Query query = db_->query("SELECT sample_id FROM sample ORDER BY row");
  while (query.step()) ids.push_back(query.text(0));
  return ids;
}

std::vector<TokenCount> SqlLedger::token_counts() {
  std::vector<TokenCount> counts;
  sql::Query query = db_->query("SELECT token, count, first_row FROM token_count ORDER BY token");
  while (query.step()) counts.push_back({query.integer(0), query.integer(1), query.integer(2)});
  return counts;
}

RefPage SqlLedger::resident_refs(std::int64_t from, int limit) {
  RefPage page;
  std::int64_t last = from;
  sql::Query query = db_->query(
      "SELECT sample.row, sample_ref.json FROM sample JOIN sample_ref ON sample_ref.row = sample.row WHERE sample.row >= ?1"
      " AND sample.state < 3 AND sample.in_place = 0 ORDER BY sample.row LIMIT ?2",
      from, std::max(limit, 1));
  while (query.step()) {
    last = query.integer(0);
    page.refs.push_back(sample_ref_from_json(query.text(1)));
  }
  if (static_cast<std::int64_t>(page.refs.size()) == std::max(limit, 1)) page.next = last + 1;
  return page;
}

std::vector<SampleRef> SqlLedger::freeable(int limit) {
  if (limit < 1) return {};
  std::vector<std::int64_t> rows, fresh;
  {
    sql::Query going = db_->query("SELECT row FROM sample WHERE state = 2 ORDER BY row LIMIT ?1", limit);
    while (going.step()) rows.push_back(going.integer(0));
  }
  const auto room = limit - static_cast<std::int64_t>(rows.size());
  if (room > 0 && db_->find("SELECT 1 FROM sample WHERE state = 1 LIMIT 1")) {
    // Written down before the sweeper removes the first byte: a later rewind must know what may be gone.
    sql::Transaction transaction(*db_);
    {
      sql::Query may_go = db_->query("SELECT row FROM sample WHERE state = 1 ORDER BY row LIMIT ?1", room);
      while (may_go.step()) fresh.push_back(may_go.integer(0));
    }
    for (const std::int64_t row : fresh) {
      db_->run("UPDATE sample SET state = 2 WHERE row = ?1", row);
      db_->run(
          "UPDATE training_window SET going = going + 1 WHERE (consumer, number) IN"
          " (SELECT consumer, number FROM window_ref WHERE row = ?1)",
          row);
    }
    transaction.commit();
    rows.insert(rows.end(), fresh.begin(), fresh.end());
  }
  std::vector<SampleRef> refs;
  for (const std::int64_t row : rows) refs.push_back(read_ref(row));
  return refs;
}

void SqlLedger::free_sample(const SampleId& id) {
  std::int64_t row = 0, state = 0, bytes = 0;
  {
    sql::Query found = db_->query("SELECT row, state, bytes FROM sample WHERE sample_id = ?1", id.str());
    if (!found.step()) {
      throw InvalidArgument(
          fmt::format("sample '{}' is not in ledger {}: it cannot be freed", printable(id.str()), db_->name()));
    }
    row = found.integer(0);
    state = found.integer(1);
    bytes = found.integer(2);
  }
  if (state == kFreed) return;
  if (state != kGoing) {
    throw Conflict(fmt::format("sample '{}' was not handed out by freeable(): a checkpoint to resume from may still need it",
                               printable(id.str())));
  }
  db_->run("UPDATE sample SET state = 3 WHERE row = ?1", row);
  db_->run("UPDATE run SET freed = freed + 1, resident_bytes = resident_bytes - ?1 WHERE id = 1", bytes);
}

void SqlLedger::freed(const std::vector<SampleId>& ids) {
  if (ids.empty()) return;
  sql::Transaction transaction(*db_);
  for (const SampleId& id : ids) free_sample(id);
  transaction.commit();
}

}  // namespace draftflow
