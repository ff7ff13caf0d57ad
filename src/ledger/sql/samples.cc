// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/ledger/partition.h"
#include "ledger/sql/lists.h"
#include "ledger/sql/rows.h"

namespace draftflow {

void SqlLedger::note_run_id(const RunId& run_id) {
  db_->run("INSERT INTO fact(key, value) VALUES ('run_id', ?1) ON CONFLICT DO NOTHING", run_id.str());
}

void SqlLedger::add_token_counts(const TokenSums& sums) {
  static const sql::RowList kAdd(
      "INSERT INTO token_count(token, count, first_row) VALUES ", 3,
      " ON CONFLICT(token) DO UPDATE SET count = token_count.count + excluded.count, first_row = CASE WHEN"
      " token_count.first_row < excluded.first_row THEN token_count.first_row ELSE excluded.first_row END");
  auto next = sums.all().begin();
  kAdd.for_parts(sums.all().size(), [&](const std::string& sql, std::size_t from, std::size_t to) {
    std::vector<sql::Value> values;
    for (std::size_t i = from; i < to; ++i, ++next) {
      const TokenCount& sum = next->second;
      values.insert(values.end(), {sum.token, sum.count, sum.first_row});
    }
    db_->run(sql, values);
  });
}

std::string SqlLedger::ref_json_of(const sql::Query& row, int column) {
  const sql::RefColumns columns(row.text(column), row.integer(column + 1), row.integer(column + 2), row.integer(column + 3));
  return templates_.unpack(row.integer(column + 4), row.text(column + 5), columns);
}

SampleRef SqlLedger::ref_of(const sql::Query& row, int column) {
  return sample_ref_from_json(ref_json_of(row, column));
}

SqlLedger::NewSample SqlLedger::new_sample(const SampleRef& ref) {
  NewSample sample{.ref = &ref, .json = ref_json(ref), .packed = std::nullopt};
  sample.packed = templates_.pack(sample.json, sql::RefColumns(ref));
  sample.tried = templates_.known();
  return sample;
}

void SqlLedger::pack(NewSample& sample, sql::RefTemplates::Making& making) {
  if (!sample.packed) sample.packed = making.pack(sample.json, sql::RefColumns(*sample.ref), sample.tried);
}

// As rows `row`, row + 1 ... of the samples, and last in every open queue.
void SqlLedger::insert_samples(std::vector<NewSample> samples, std::int64_t row, sql::RefTemplates::Making& making) {
  static const sql::RowList kSamples(
      "INSERT INTO sample(row, sample_id, generation, incarnation, bytes, tokens, in_place, claims) VALUES ", 8);
  static const sql::RowList kRefs("INSERT INTO sample_ref(row, template, packed) VALUES ", 3);
  std::int64_t claims = 0, tokens = 0, resident = 0;
  std::vector<std::int64_t> queues;
  {
    sql::Query open = db_->query("SELECT id, kind FROM consumer WHERE open = 1");
    for (; open.step(); ++claims) {
      if (open.integer(1) == kQueueGroup) queues.push_back(open.integer(0));
    }
  }
  std::vector<sql::Value> values;
  kSamples.for_parts(samples.size(), [&](const std::string& sql, std::size_t from, std::size_t to) {
    values.clear();
    for (std::size_t i = from; i < to; ++i) {
      const SampleRef& ref = *samples[i].ref;
      const bool in_place = is_in_place(ref);
      const auto bytes = static_cast<std::int64_t>(ref.estimated_bytes);
      values.insert(values.end(),
                    {row + static_cast<std::int64_t>(i), ref.sample_id.str(), static_cast<std::int64_t>(ref.generation),
                     ref.incarnation, bytes, ref.num_tokens, std::int64_t{in_place}, claims});
      add_within(tokens, ref.num_tokens, "tokens");
      add_within(resident, in_place ? 0 : bytes, "bytes");
    }
    db_->run(sql, values);
  });
  for (NewSample& sample : samples) pack(sample, making);
  kRefs.for_parts(samples.size(), [&](const std::string& sql, std::size_t from, std::size_t to) {
    values.clear();
    for (std::size_t i = from; i < to; ++i) {
      values.insert(values.end(), {row + static_cast<std::int64_t>(i), samples[i].packed->number, samples[i].packed->text});
    }
    db_->run(sql, values);
  });
  if (!queues.empty()) {
    std::vector<Place> places;
    for (std::size_t i = 0; i < samples.size(); ++i) {
      places.push_back({row + static_cast<std::int64_t>(i), dp_partition(samples[i].ref->sample_id.str(), kShardModulus)});
    }
    for (const std::int64_t queue : queues) enqueue(queue, places);
  }
  db_->run(
      "UPDATE run SET committed = committed + ?1, committed_tokens = committed_tokens + ?2, resident_bytes = resident_bytes + "
      "?3"
      " WHERE id = 1",
      samples.size(), tokens, resident);
  db_->run("UPDATE consumer SET available = available + ?1 WHERE open = 1", samples.size());
}

void SqlLedger::replace_sample(NewSample sample, std::int64_t row, sql::RefTemplates::Making& making) {
  const SampleRef& ref = *sample.ref;
  std::uint64_t generation = 0;
  std::int64_t bytes = 0, tokens = 0, in_place = 0, state = 0, claims = 0;
  {
    sql::Query old = db_->query("SELECT generation, bytes, tokens, in_place, state, claims FROM sample WHERE row = ?1", row);
    old.step();
    generation = static_cast<std::uint64_t>(old.integer(0));
    bytes = old.integer(1);
    tokens = old.integer(2);
    in_place = old.integer(3);
    state = old.integer(4);
    claims = old.integer(5);
  }
  if (ref.generation <= generation) throw refusals::no_newer(ref, generation);
  const bool dealt = db_->find("SELECT 1 FROM consumer WHERE next_row > ?1 LIMIT 1", row).has_value();
  // A lease that ran out may still be acked: its ref is taken, too.
  const bool leased =
      db_->find("SELECT 1 FROM queue_ref WHERE row = ?1 AND (state > 0 OR token IS NOT NULL) LIMIT 1", row).has_value();
  // What every group has dropped, or was closed over, may be gone already; of files in place no state tells it.
  const bool done_with =
      state != kNeeded || (in_place != 0 && claims == 0 && db_->find("SELECT 1 FROM consumer LIMIT 1").has_value());
  if (dealt || leased || done_with) throw refusals::taken_already(ref, generation);
  const bool now_in_place = is_in_place(ref);
  db_->run("UPDATE sample SET generation = ?2, incarnation = ?3, bytes = ?4, tokens = ?5, in_place = ?6 WHERE row = ?1", row,
           ref.generation, ref.incarnation, ref.estimated_bytes, ref.num_tokens, now_in_place ? 1 : 0);
  pack(sample, making);
  db_->run("UPDATE sample_ref SET template = ?2, packed = ?3 WHERE row = ?1", row, sample.packed->number, sample.packed->text);
  const auto now_bytes = now_in_place ? 0 : static_cast<std::int64_t>(ref.estimated_bytes);
  db_->run("UPDATE run SET committed_tokens = committed_tokens + ?1, resident_bytes = resident_bytes + ?2 WHERE id = 1",
           ref.num_tokens - tokens, now_bytes - (in_place != 0 ? 0 : bytes));
}

void SqlLedger::commit_sample(const SampleRef& ref, const PromptLease& lease) {
  check_ref(ref);
  check_completes(ref, lease.task);
  NewSample sample = new_sample(ref);
  sql::Transaction transaction(*db_);
  sql::RefTemplates::Making making(templates_);
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
    replace_sample(std::move(sample), *row, making);
  } else {
    const std::int64_t next = db_->find("SELECT committed FROM run WHERE id = 1").value_or(0);
    if (next == 0) note_run_id(ref.run_id);
    insert_samples({std::move(sample)}, next, making);
  }
  transaction.commit();
}

std::int64_t SqlLedger::commit_samples(const std::vector<SampleRef>& refs, const std::vector<std::vector<TokenCount>>& counts) {
  check_counts(refs.size(), "refs", counts.size());
  std::vector<NewSample> samples;
  std::vector<std::string> ids;
  for (const SampleRef& ref : refs) {
    check_ref(ref);
    samples.push_back(new_sample(ref));  // before the write turn, for which others wait
    ids.push_back(ref.sample_id.str());
  }
  sql::Transaction transaction(*db_);
  sql::RefTemplates::Making making(templates_);
  struct Known {
    std::int64_t row = 0;
    std::uint64_t generation = 0;
    std::string incarnation;
    bool of_this_call = false;
  };
  std::unordered_map<std::string, Known> known;
  static const sql::InList kKnown("SELECT sample_id, row, generation, incarnation FROM sample WHERE sample_id IN ", 1);
  kKnown.for_parts(ids, [&](const std::string& sql, const std::vector<sql::Value>& part) {
    sql::Query found = db_->query(sql, part);
    while (found.step()) {
      known[found.text(0)] = {found.integer(1), static_cast<std::uint64_t>(found.integer(2)), found.text(3), false};
    }
  });
  const std::int64_t row = db_->find("SELECT committed FROM run WHERE id = 1").value_or(0);
  std::vector<NewSample> fresh;
  TokenSums sums;
  bool replaced = false;
  for (std::size_t i = 0; i < refs.size(); ++i) {
    const std::int64_t next = row + static_cast<std::int64_t>(fresh.size());
    const auto [one, is_new] = known.try_emplace(ids[i], Known{next, refs[i].generation, refs[i].incarnation, true});
    if (is_new) {
      if (!counts.empty()) sums.add(counts[i], next);
      fresh.push_back(std::move(samples[i]));
      continue;
    }
    if (one->second.generation == refs[i].generation && one->second.incarnation == refs[i].incarnation) {
      one->second.of_this_call = true;
      continue;
    }
    if (one->second.of_this_call) throw refusals::comes_twice(refs[i], one->second.generation);
    replace_sample(std::move(samples[i]), one->second.row, making);
    one->second = {one->second.row, refs[i].generation, refs[i].incarnation, true};
    replaced = true;
  }
  if (fresh.empty() && !replaced) return 0;
  const auto added = static_cast<std::int64_t>(fresh.size());
  if (row == 0) note_run_id(fresh.front().ref->run_id);
  if (added > 0) insert_samples(std::move(fresh), row, making);
  add_token_counts(sums);
  transaction.commit();
  return added;
}

bool SqlLedger::is_committed(const SampleId& id) {
  return db_->find("SELECT row FROM sample WHERE sample_id = ?1", id.str()).has_value();
}

std::vector<SampleRef> SqlLedger::read_refs(const std::vector<std::int64_t>& rows) {
  static const sql::InList kRefs(
      fmt::format("SELECT r.row, {} FROM sample_ref r JOIN sample s ON s.row = r.row WHERE r.row IN ", kRefColumns), 1);
  std::unordered_map<std::int64_t, SampleRef> found;
  kRefs.for_parts(rows, [&](const std::string& sql, const std::vector<sql::Value>& part) {
    sql::Query ref = db_->query(sql, part);
    while (ref.step()) found.emplace(ref.integer(0), ref_of(ref, 1));
  });
  std::vector<SampleRef> refs;
  refs.reserve(rows.size());
  for (const std::int64_t row : rows) {
    const auto ref = found.find(row);
    if (ref == found.end()) throw Corrupt(fmt::format("ledger {} has lost the ref of sample {}", db_->name(), row));
    refs.push_back(std::move(ref->second));
  }
  return refs;
}

std::optional<SampleRef> SqlLedger::get_committed(const SampleId& id) {
  const std::optional<std::int64_t> row = db_->find("SELECT row FROM sample WHERE sample_id = ?1", id.str());
  if (!row) return std::nullopt;
  return std::move(read_refs({*row}).front());
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
  static const std::string kResident = fmt::format(
      "SELECT s.row, {} FROM sample s JOIN sample_ref r ON r.row = s.row WHERE s.row >= ?1"
      " AND s.state < 3 AND s.in_place = 0 ORDER BY s.row LIMIT ?2",
      kRefColumns);
  sql::Query query = db_->query(kResident, from, std::max(limit, 1));
  while (query.step()) {
    last = query.integer(0);
    page.refs.push_back(ref_of(query, 1));
  }
  if (static_cast<std::int64_t>(page.refs.size()) == std::max(limit, 1)) page.next = last + 1;
  return page;
}

void SqlLedger::hand_out(const std::vector<std::int64_t>& rows) {
  static const sql::InList kGo("UPDATE sample SET state = 2 WHERE row IN ", 1);
  kGo.for_parts(rows, [&](const std::string& sql, const std::vector<sql::Value>& part) { db_->run(sql, part); });
  static const sql::InList kWindows("SELECT consumer, number FROM window_ref WHERE row IN ", 1);
  std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> going;  // refs, by group and window
  kWindows.for_parts(rows, [&](const std::string& sql, const std::vector<sql::Value>& part) {
    sql::Query place = db_->query(sql, part);
    while (place.step()) ++going[{place.integer(0), place.integer(1)}];
  });
  for (const auto& [window, refs] : going) {
    db_->run("UPDATE training_window SET going = going + ?3 WHERE consumer = ?1 AND number = ?2", window.first, window.second,
             refs);
  }
}

std::vector<SampleRef> SqlLedger::freeable(int limit) {
  if (limit < 1) return {};
  std::vector<std::int64_t> rows, fresh;
  {
    sql::Query going = db_->query("SELECT row FROM sample WHERE state = 2 AND in_place = 0 ORDER BY row LIMIT ?1", limit);
    while (going.step()) rows.push_back(going.integer(0));
  }
  const auto room = limit - static_cast<std::int64_t>(rows.size());
  if (room > 0 && db_->find("SELECT row FROM sample WHERE state = 1 ORDER BY row LIMIT 1")) {
    // Written down before the sweeper removes the first byte: a later rewind must know what may be gone.
    sql::Transaction transaction(*db_);
    {
      sql::Query may_go = db_->query("SELECT row FROM sample WHERE state = 1 AND in_place = 0 ORDER BY row LIMIT ?1", room);
      while (may_go.step()) fresh.push_back(may_go.integer(0));
    }
    hand_out(fresh);
    transaction.commit(sql::Wakes::kNobody);
    rows.insert(rows.end(), fresh.begin(), fresh.end());
  }
  return read_refs(rows);
}

void SqlLedger::freed(const std::vector<SampleId>& ids) {
  if (ids.empty()) return;
  std::vector<std::string> texts;
  for (const SampleId& id : ids) texts.push_back(id.str());
  sql::Transaction transaction(*db_);
  std::map<std::string, std::int64_t> states;
  std::vector<std::int64_t> rows;
  std::int64_t bytes = 0;
  static const sql::InList kFind("SELECT sample_id, row, state, bytes FROM sample WHERE sample_id IN ", 1);
  kFind.for_parts(texts, [&](const std::string& sql, const std::vector<sql::Value>& part) {
    sql::Query found = db_->query(sql, part);
    while (found.step()) {
      const bool first = states.emplace(found.text(0), found.integer(2)).second;
      if (!first || found.integer(2) != kGoing) continue;
      rows.push_back(found.integer(1));
      bytes += found.integer(3);
    }
  });
  for (const SampleId& id : ids) {
    const auto state = states.find(id.str());
    if (state == states.end()) throw refusals::unknown_sample(id, db_->name());
    if (state->second != kGoing && state->second != kFreed) throw refusals::not_handed_out(id);
  }
  if (rows.empty()) return;
  static const sql::InList kFree("UPDATE sample SET state = 3 WHERE row IN ", 1);
  kFree.for_parts(rows, [&](const std::string& sql, const std::vector<sql::Value>& part) { db_->run(sql, part); });
  db_->run("UPDATE run SET freed = freed + ?1, resident_bytes = resident_bytes - ?2 WHERE id = 1", rows.size(), bytes);
  transaction.commit();
}

}  // namespace draftflow
