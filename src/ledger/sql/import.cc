// SPDX-License-Identifier: Apache-2.0
//
// The tables made from an export's lines, in one transaction. What a line says is taken as it is; counters, claims and what
// else follows from the rows is counted from them, and at the end the books must balance as they do for check().
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>
#include <variant>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/ledger/partition.h"
#include "ledger/export_lines.h"
#include "ledger/sql/lists.h"
#include "ledger/sql/rows.h"

namespace draftflow {
namespace {

// Rows of one table, written 256 at a time. Texts are kept until then. A row whose key is there already is refused.
class Rows {
 public:
  Rows(sql::Database& db, std::string_view table, int columns)
      : db_(db), list_(fmt::format("INSERT INTO {} VALUES ", table), columns, " ON CONFLICT DO NOTHING"), columns_(columns) {}

  struct Cell {
    std::variant<std::int64_t, std::string, std::nullptr_t> value;
    Cell(std::int64_t number) : value(number) {}
    Cell(std::string text) : value(std::move(text)) {}
    template <class T>
    Cell(const std::optional<T>& maybe) : value(nullptr) {
      if (maybe) value = *maybe;
    }
  };

  void add(std::vector<Cell> row) {
    for (Cell& cell : row) cells_.push_back(std::move(cell));
    if (cells_.size() / static_cast<std::size_t>(columns_) >= sql::kMostRows) flush();
  }
  void flush() {
    const auto width = static_cast<std::size_t>(columns_);
    const auto rows = static_cast<std::int64_t>(cells_.size() / width);
    std::int64_t made = 0;
    list_.for_parts(cells_.size() / width, [&](const std::string& sql, std::size_t from, std::size_t to) {
      std::vector<sql::Value> values;
      for (std::size_t i = from * width; i < to * width; ++i) {
        std::visit([&](const auto& value) { values.emplace_back(value); }, cells_[i].value);
      }
      made += db_.run(sql, values);
    });
    cells_.clear();
    if (made != rows)
      throw Corrupt(fmt::format("{} of the last {} records were there before: nothing may come twice", rows - made, rows));
  }

 private:
  sql::Database& db_;
  const sql::RowList list_;
  const int columns_;
  std::vector<Cell> cells_;
};

int index_of(const std::string& state, const std::vector<std::string>& states) {
  return static_cast<int>(std::find(states.begin(), states.end(), state) - states.begin());
}

}  // namespace

class SqlLedger::Import {
 public:
  explicit Import(SqlLedger& ledger) : ledger_(ledger), db_(*ledger.db_) {}

  void run(const std::function<std::optional<std::string>()>& next_line) {
    for (std::optional<std::string> text = next_line(); text; text = next_line()) {
      try {
        if (ended_) throw Corrupt("a line after the end");
        ExportedLine line = parse_line(*text);
        if ((lines_ == 0) != std::holds_alternative<ExportedHeader>(line)) {
          throw Corrupt("the line of kind 'ledger' is the first one, and no other");
        }
        std::visit([&](auto& one) { take(one); }, line);
        ++lines_;
      } catch (const Corrupt& error) {
        throw Corrupt(fmt::format("line {} of the export: {}; nothing was imported", lines_ + 1, error.what()));
      } catch (const InvalidArgument& error) {  // an id, a ref or a group that the ledger would not take either
        if (lines_ == 0) throw;                 // another version
        throw Corrupt(fmt::format("line {} of the export: {}; nothing was imported", lines_ + 1, error.what()));
      }
    }
    if (!ended_) {
      throw Corrupt(fmt::format(
          "the export ends after line {} without its last line: it was cut short; nothing was imported, export again", lines_));
    }
    derive();
    verify();
  }

 private:
  struct Group {
    std::int64_t id = 0;
    ExportedGroup line;
    std::int64_t windows = 0, trained_windows = 0;
  };

  void take(const ExportedHeader& header) {
    status_ = header.status;
    db_.run("UPDATE run SET ledger_id = ?1, prompts_closed = ?2 WHERE id = 1", status_.ledger_id,
            status_.prompts_closed ? 1 : 0);
  }
  void take(const ExportedFact& fact) { facts_.add({fact.key, fact.value}); }
  void take(const ExportedTokens& tokens) {
    for (const TokenCount& one : tokens.counts) tokens_.add({one.token, one.count, one.first_row});
  }

  void take(const ExportedPrompt& prompt) {
    const PromptTask task = prompt_task_from_json(prompt.task);
    const std::int64_t state = prompt.state == "pending" ? kPending : prompt.state == "done" ? kDone : kPromptFailed;
    prompt_rows_.add(
        {prompts_, task.task_id.str(), state, prompt.attempts, prompt.expiries, prompt.ended_token, prompt.reason});
    task_rows_.add({prompts_, prompt_task_to_json(task)});
    ++prompts_;
  }

  void take(const ExportedGroup& group) {
    GroupConfig config = group.config;
    if (config.kind == GroupKind::kWindows) config.max_attempts = std::max(config.max_attempts, 1);  // of an older version
    check_config(config);
    Group& made = groups_[config.group.str()];
    if (made.id != 0) throw Corrupt(fmt::format("group '{}' comes twice", printable(config.group.str())));
    made = {.id = static_cast<std::int64_t>(groups_.size()), .line = group};
    db_.run(
        "INSERT INTO consumer(id, name, kind, window_size, resumable_checkpoints, tail, max_attempts, open, next_row,"
        " durable_windows, released_windows, timeline, width, trained_step, durable_step, passes, pass_windows,"
        " max_window_tokens) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
        made.id, config.group.str(), config.kind == GroupKind::kWindows ? 0 : 1, config.window, config.resumable_checkpoints,
        config.tail == TailPolicy::kDrop ? 0 : 1, group.config.max_attempts, group.open ? 1 : 0, group.next_row,
        group.durable_windows, group.released_windows, group.timeline, group.width, group.trained_step, group.durable_step,
        config.passes, group.pass_windows, config.max_window_tokens);
  }

  Group& group_of(const std::string& name) {
    const auto at = groups_.find(name);
    if (at == groups_.end()) throw Corrupt(fmt::format("group '{}' has no line of its own before", printable(name)));
    return at->second;
  }

  void take(const ExportedTimeline& t) {
    const std::int64_t id = group_of(t.group).id;
    timelines_.add({id, t.number, t.parent, t.first_step, t.first_window, t.width, t.launch, t.lost});
    for (const auto& [rank, holder] : t.ranks) ranks_.add({id, t.number, rank, holder});
  }
  void take(const ExportedCheckpoint& c) {
    checkpoints_.add({group_of(c.group).id, c.timeline, c.step, std::int64_t{c.abandoned}});
  }
  void take(const ExportedWindow& window) {
    Group& group = group_of(window.group);
    windows_.add({group.id, window.number, window.timeline, window.step});
    ++group.windows;
    if (window.step) ++group.trained_windows;
  }

  void take(const ExportedSample& sample) {
    const SampleRef ref = sample_ref_from_json(sample.ref);
    check_ref(ref);
    static const std::vector<std::string> kStates = {"needed", "may_go", "going", "freed"};
    samples_.add({row_, ref.sample_id.str(), static_cast<std::int64_t>(ref.generation), ref.incarnation,
                  static_cast<std::int64_t>(ref.estimated_bytes), ref.num_tokens, std::int64_t{is_in_place(ref)},
                  std::int64_t{index_of(sample.state, kStates)}});
    sql::RefTemplates::Packed packed = making_.pack(sample_ref_to_json(ref), sql::RefColumns(ref));
    refs_.add({row_, packed.number, std::move(packed.text)});
    for (const auto& [name, place] : sample.groups) {
      const Group& group = group_of(name);
      const bool queue = group.line.config.kind == GroupKind::kQueue;
      const std::string fits = queue ? place_in_queue(group, place, ref) : place_in_windows(group, place);
      if (fits.empty()) continue;
      throw Corrupt(fmt::format("sample '{}' cannot be '{}' in group '{}': {}", printable(ref.sample_id.str()), place.state,
                                printable(name), fits));
    }
    ++row_;
  }

  // Each returns why the sample cannot be what it is said to be, or nothing.
  std::string place_in_queue(const Group& group, const ExportedPlace& place, const SampleRef& ref) {
    static const std::vector<std::string> kStates = {"available", "", "acked", "failed"};
    if (place.state == "dropped") return drop(group, place);
    const int state = index_of(place.state, kStates);
    if (state == static_cast<int>(kStates.size()) || place.window || place.position || !place.later_failures.empty()) {
      return "the group is a queue";
    }
    queue_refs_.add({group.id, row_, std::int64_t{state}, dp_partition(ref.sample_id.str(), kShardModulus), place.attempts,
                     place.ended_token, place.reason});
    return "";
  }
  std::string place_in_windows(const Group& group, const ExportedPlace& place) {
    if (!place.later_failures.empty() && !(place.window && place.position)) return "it is in no window that could fail";
    if (place.state == "dropped") return drop(group, place);
    std::string state = "available";
    if (place.window && place.position) {
      const std::int64_t first_pass = group.line.pass_windows > 0 ? group.line.pass_windows : group.windows;
      if (*place.window >= first_pass) return fmt::format("the first pass has {} windows", first_pass);
      for (const auto& [window, reason] : place.later_failures) {
        const std::int64_t pass_windows = group.line.pass_windows;
        if (pass_windows == 0 || window < pass_windows || window >= group.windows || window % pass_windows != *place.window) {
          return fmt::format("window {} of a later pass is none that has it", window);
        }
        later_failures_.push_back({group.id, window, *place.position, reason});
      }
      window_refs_.add({group.id, *place.window, *place.position, row_, place.reason});
      state = window_state(*place.window, group.trained_windows, group.line.durable_windows, place.reason.has_value());
    } else if (!group.line.open || row_ < group.line.next_row) {
      return "the group never had it, or has it no more";
    }
    return state == place.state ? "" : fmt::format("by its window it is '{}'", state);
  }
  std::string drop(const Group& group, const ExportedPlace& place) {
    dropped_.add({group.id, row_, place.reason.value_or("")});
    return "";
  }

  void take(const ExportedEnd& end) {
    if (end.lines != lines_) throw Corrupt(fmt::format("{} lines should come before it, and {} did", end.lines, lines_));
    for (Rows* rows : {&facts_, &tokens_, &prompt_rows_, &task_rows_, &timelines_, &ranks_, &checkpoints_, &windows_, &samples_,
                       &refs_, &window_refs_, &queue_refs_, &dropped_}) {
      rows->flush();
    }
    ended_ = true;
  }

  // The windows of later passes have the samples of the first one's.
  void deal_again() {
    db_.run(
        "INSERT INTO window_ref(consumer, number, position, row) SELECT t.consumer, t.number, f.position, f.row FROM"
        " training_window t JOIN consumer c ON c.id = t.consumer JOIN window_ref f ON f.consumer = t.consumer AND"
        " f.number = t.number % c.pass_windows WHERE c.pass_windows > 0 AND t.number >= c.pass_windows");
    for (const LaterFailure& one : later_failures_) {
      db_.run("UPDATE window_ref SET reason = ?4 WHERE consumer = ?1 AND number = ?2 AND position = ?3", one.group, one.window,
              one.position, one.reason);
    }
  }

  void derive() {
    deal_again();
    db_.run(
        "UPDATE training_window SET refs_through = x.through FROM (SELECT consumer AS c, number AS n, CAST(SUM(COUNT(*)) OVER"
        " (PARTITION BY consumer ORDER BY number) AS BIGINT) AS through FROM window_ref GROUP BY consumer, number) AS x WHERE"
        " x.c = training_window.consumer AND x.n = training_window.number");
    db_.run(
        "UPDATE training_window SET failed = CASE WHEN step IS NULL THEN 0 ELSE (SELECT COUNT(*) FROM window_ref w WHERE"
        " w.consumer = training_window.consumer AND w.number = training_window.number AND w.reason IS NOT NULL) END,"
        " going = (SELECT COUNT(*) FROM window_ref w JOIN sample s ON s.row = w.row WHERE w.consumer = training_window.consumer"
        " AND w.number = training_window.number AND s.state >= 2)");
    for (const auto& [name, group] : groups_) {
      const std::int64_t id = group.id;
      const auto of = [&](const char* sql) { return db_.find(sql, id).value_or(0); };
      if (group.line.config.kind == GroupKind::kQueue) {
        db_.run("UPDATE consumer SET available = ?2, acked = ?3, failed = ?4 WHERE id = ?1", id,
                of("SELECT COUNT(*) FROM queue_ref WHERE consumer = ?1 AND state = 0"),
                of("SELECT COUNT(*) FROM queue_ref WHERE consumer = ?1 AND state = 2"),
                of("SELECT COUNT(*) FROM queue_ref WHERE consumer = ?1 AND state = 3"));
      } else {
        db_.run(
            "UPDATE consumer SET windows = ?2, trained_windows = ?3, failed_trained = ?4, failed_durable = ?5, available = ?6"
            " WHERE id = ?1",
            id, group.windows, group.trained_windows,
            of("SELECT SUM(t.failed) FROM training_window t JOIN consumer c ON c.id = t.consumer WHERE t.consumer = ?1"
               " AND t.number >= c.durable_windows"),
            of("SELECT SUM(t.failed) FROM training_window t JOIN consumer c ON c.id = t.consumer WHERE t.consumer = ?1"
               " AND t.number < c.durable_windows"),
            group.line.open
                ? of("SELECT COUNT(*) FROM sample s JOIN consumer c ON c.id = ?1 WHERE s.row >= c.next_row AND"
                     " s.state = 0 AND NOT EXISTS (SELECT 1 FROM dropped d WHERE d.row = s.row AND d.consumer = ?1)")
                : 0);
      }
      db_.run("UPDATE consumer SET dropped = ?2 WHERE id = ?1", id, of("SELECT COUNT(*) FROM dropped WHERE consumer = ?1"));
    }
    db_.run(fmt::format("UPDATE sample AS s SET claims = {} WHERE s.state = 0", kClaims));
    const auto all = [&](const char* sql) { return db_.find(sql).value_or(0); };
    db_.run(
        "UPDATE run SET prompts = ?1, prompts_pending = ?2, prompts_done = ?3, prompts_failed = ?4, committed = ?5,"
        " committed_tokens = ?6, resident_bytes = ?7, freed = ?8 WHERE id = 1",
        prompts_, all("SELECT COUNT(*) FROM prompt WHERE state = 0"), all("SELECT COUNT(*) FROM prompt WHERE state = 2"),
        all("SELECT COUNT(*) FROM prompt WHERE state = 3"), row_, all("SELECT SUM(tokens) FROM sample"),
        all("SELECT SUM(bytes) FROM sample WHERE state < 3 AND in_place = 0"),
        all("SELECT COUNT(*) FROM sample WHERE state = 3"));
  }

  void verify() {
    std::vector<std::string> found = ledger_.recount();
    const LedgerStatus now = ledger_.read_status();
    const auto held = [&](const char* what, std::int64_t said, std::int64_t here) {
      if (said != here) found.push_back(fmt::format("{}: the first line says {}, the others {}", what, said, here));
    };
    held("prompts", status_.prompts, now.prompts);
    held("prompts pending", status_.prompts_pending, now.prompts_pending);
    held("prompts done", status_.prompts_done, now.prompts_done);
    held("prompts failed", status_.prompts_failed, now.prompts_failed);
    held("samples committed", status_.committed, now.committed);
    held("committed tokens", status_.committed_tokens, now.committed_tokens);
    held("resident bytes", static_cast<std::int64_t>(status_.resident_bytes), static_cast<std::int64_t>(now.resident_bytes));
    held("samples freed", status_.freed, now.freed);
    if (found.empty()) return;
    std::string all;
    for (std::size_t i = 0; i < std::min<std::size_t>(found.size(), 5); ++i) all += "\n  " + found[i];
    throw Corrupt(
        fmt::format("the export does not hold together; nothing was imported. 'draftflow ledger check' shows whether the "
                    "ledger that it came from does. {} findings, the first:{}",
                    found.size(), all));
  }

  struct LaterFailure {
    std::int64_t group = 0, window = 0, position = 0;
    std::string reason;
  };

  SqlLedger& ledger_;
  sql::Database& db_;
  LedgerStatus status_;
  std::map<std::string, Group> groups_;
  std::int64_t lines_ = 0, prompts_ = 0, row_ = 0;
  bool ended_ = false;
  std::vector<LaterFailure> later_failures_;
  sql::RefTemplates::Making making_{ledger_.templates_};
  Rows facts_{db_, "fact(key, value)", 2}, tokens_{db_, "token_count(token, count, first_row)", 3},
      prompt_rows_{db_, "prompt(row, task_id, state, attempts, expiries, ended_token, reason)", 7},
      task_rows_{db_, "prompt_task(row, json)", 2},
      timelines_{db_, "timeline(consumer, number, parent, first_step, first_window, width, launch, lost)", 8},
      ranks_{db_, "trainer_rank(consumer, timeline, number, holder)", 4},
      checkpoints_{db_, "checkpoint(consumer, timeline, step, abandoned)", 4},
      windows_{db_, "training_window(consumer, number, timeline, step)", 4},
      samples_{db_, "sample(row, sample_id, generation, incarnation, bytes, tokens, in_place, state)", 8},
      refs_{db_, "sample_ref(row, template, packed)", 3},
      window_refs_{db_, "window_ref(consumer, number, position, row, reason)", 5},
      queue_refs_{db_, "queue_ref(consumer, row, state, shard, attempts, ended_token, reason)", 7},
      dropped_{db_, "dropped(consumer, row, reason)", 3};
};

void SqlLedger::import_from(const std::function<std::optional<std::string>()>& next_line) {
  sql::Transaction transaction(*db_);
  const LedgerStatus now = read_status();
  const bool facts = db_->find("SELECT 1 FROM fact LIMIT 1") || db_->find("SELECT 1 FROM token_count LIMIT 1");
  if (now.prompts + now.committed > 0 || now.prompts_closed || facts || !now.groups.empty()) {
    throw Conflict(
        fmt::format("ledger {} is not empty: it is ledger {} of run '{}' with {} prompts, {} samples and {} groups; an import "
                    "makes a new ledger, name another file or schema",
                    db_->name(), now.ledger_id, printable(now.run_id), now.prompts, now.committed, now.groups.size()));
  }
  Import(*this).run(next_line);
  transaction.commit();
}

}  // namespace draftflow
