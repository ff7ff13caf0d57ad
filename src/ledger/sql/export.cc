// SPDX-License-Identifier: Apache-2.0
//
// The tables as lines of JSON (docs/formats/ledger_export.md): on one view, a page of rows at a time.
#include <fmt/format.h>

#include <map>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "ledger/export_lines.h"
#include "ledger/sql/rows.h"

namespace draftflow {
namespace {

constexpr std::int64_t kPage = 512;  // rows read at once
constexpr std::size_t kTokensALine = 256;

std::optional<std::string> text_if(const sql::Query& row, int column) {
  return row.is_null(column) ? std::nullopt : std::optional(row.text(column));
}
std::optional<std::int64_t> integer_if(const sql::Query& row, int column) {
  return row.is_null(column) ? std::nullopt : std::optional(row.integer(column));
}

class Export {
 public:
  using RefText = std::function<std::string(const sql::Query& row, int column)>;
  Export(sql::Database& db, const std::function<void(const std::string&)>& write, const RefText& ref_text)
      : db_(db), write_(write), ref_text_(ref_text) {}

  void run(LedgerStatus status) {
    const std::int64_t prompts = status.prompts, samples = status.committed;
    status.prompts_pending += std::exchange(status.prompts_leased, 0);  // leases end
    status.groups.clear();
    write(ExportedHeader{std::move(status)});
    facts();
    tokens();
    for (std::int64_t from = 0; from < prompts; from += kPage) prompts_page(from);
    groups();
    for (std::int64_t from = 0; from < samples; from += kPage) samples_page(from);
    write(ExportedEnd{lines_});
  }

 private:
  struct Group {
    std::string name;
    std::int64_t kind = 0, open = 0, next_row = 0, durable_windows = 0, pass_windows = 0, trained_windows = 0;
  };
  struct Sample {
    ExportedSample line;
    std::map<std::int64_t, ExportedPlace> places;  // by the group's id
  };

  void write(const ExportedLine& line) {
    write_(to_line(line));
    ++lines_;
  }

  void facts() {
    sql::Query fact = db_.query("SELECT key, value FROM fact");
    std::map<std::string, std::string> sorted;  // by bytes, whatever the server's language; they are few
    while (fact.step()) sorted.emplace(fact.text(0), fact.text(1));
    for (const auto& [key, value] : sorted) write(ExportedFact{key, value});
  }

  void tokens() {
    for (std::int64_t from = 0;;) {
      ExportedTokens part;
      sql::Query row = db_.query("SELECT token, count, first_row FROM token_count WHERE token >= ?1 ORDER BY token LIMIT ?2",
                                 from, kTokensALine);
      while (row.step()) part.counts.push_back({row.integer(0), row.integer(1), row.integer(2)});
      if (part.counts.empty()) return;
      from = part.counts.back().token + 1;
      write(part);
    }
  }

  void prompts_page(std::int64_t from) {
    sql::Query row = db_.query(
        // Who has it leased may go on writing when the lease has ended by this: as if its time had run out.
        "SELECT p.row, t.json, p.state, p.attempts, p.expiries + CASE WHEN p.state = 1 THEN 1 ELSE 0 END, p.ended_token,"
        " p.reason FROM prompt p JOIN prompt_task t ON t.row = p.row WHERE p.row >= ?1 AND p.row < ?2 ORDER BY p.row",
        from, from + kPage);
    while (row.step()) {
      constexpr const char* kStates[] = {"pending", "pending", "done", "failed"};
      ExportedPrompt prompt{.task = row.text(1), .state = kStates[row.integer(2) & 3]};
      prompt.attempts = row.integer(3);
      prompt.expiries = row.integer(4);
      prompt.ended_token = text_if(row, 5);
      prompt.reason = text_if(row, 6);
      write(prompt);
    }
  }

  void groups() {
    std::vector<ExportedGroup> lines;
    std::vector<std::int64_t> ids;
    {
      sql::Query row = db_.query(
          "SELECT id, name, kind, window_size, resumable_checkpoints, tail, max_attempts, open, next_row, durable_windows,"
          " released_windows, timeline, width, trained_step, durable_step, passes, pass_windows,"
          " trained_windows, max_window_tokens FROM consumer ORDER BY id");
      while (row.step()) {
        ExportedGroup group{.config = {.group = GroupId(row.text(1))}};
        group.config.kind = row.integer(2) == kWindowGroup ? GroupKind::kWindows : GroupKind::kQueue;
        group.config.window = static_cast<int>(row.integer(3));
        group.config.resumable_checkpoints = static_cast<int>(row.integer(4));
        group.config.tail = row.integer(5) == 0 ? TailPolicy::kDrop : TailPolicy::kCarry;
        group.config.max_attempts = static_cast<int>(row.integer(6));
        group.open = row.integer(7) != 0;
        int column = 8;
        for (std::int64_t* field : {&group.next_row, &group.durable_windows, &group.released_windows, &group.timeline,
                                    &group.width, &group.trained_step, &group.durable_step}) {
          *field = row.integer(column++);
        }
        group.config.passes = static_cast<int>(row.integer(15));
        group.pass_windows = row.integer(16);
        group.config.max_window_tokens = row.integer(18);
        groups_[row.integer(0)] = {row.text(1),    row.integer(2),  row.integer(7), row.integer(8),
                                   row.integer(9), row.integer(16), row.integer(17)};
        ids.push_back(row.integer(0));
        lines.push_back(std::move(group));
      }
    }
    for (std::size_t i = 0; i < ids.size(); ++i) {
      write(lines[i]);
      timelines(ids[i]);
      checkpoints(ids[i]);
      windows(ids[i]);
    }
  }

  void timelines(std::int64_t id) {
    sql::Query row = db_.query(
        "SELECT number, parent, first_step, first_window, width, lost, launch FROM timeline WHERE consumer = ?1 ORDER BY "
        "number",
        id);
    while (row.step()) {
      ExportedTimeline line{.group = groups_[id].name};
      int column = 0;
      for (std::int64_t* field : {&line.number, &line.parent, &line.first_step, &line.first_window, &line.width, &line.lost}) {
        *field = row.integer(column++);
      }
      line.launch = row.text(6);
      sql::Query rank = db_.query(
          "SELECT number, holder FROM trainer_rank WHERE consumer = ?1 AND timeline = ?2 ORDER BY number", id, line.number);
      while (rank.step()) line.ranks.emplace_back(rank.integer(0), rank.text(1));
      write(line);
    }
  }

  void checkpoints(std::int64_t id) {
    sql::Query row =
        db_.query("SELECT timeline, step, abandoned FROM checkpoint WHERE consumer = ?1 ORDER BY timeline, step", id);
    while (row.step()) {
      write(ExportedCheckpoint{groups_[id].name, row.integer(0), row.integer(1), row.integer(2) != 0});
    }
  }

  void windows(std::int64_t id) {
    for (std::int64_t from = 0, seen = kPage; seen == kPage; from += kPage) {
      sql::Query row = db_.query(
          "SELECT number, timeline, step FROM training_window WHERE consumer = ?1 AND number >= ?2 AND number < ?3"
          " ORDER BY number",
          id, from, from + kPage);
      for (seen = 0; row.step(); ++seen) {
        write(ExportedWindow{groups_[id].name, row.integer(0), integer_if(row, 1), integer_if(row, 2)});
      }
    }
  }

  void samples_page(std::int64_t from) {
    std::map<std::int64_t, Sample> page;
    {
      static const std::string kSamples = fmt::format(
          "SELECT s.row, s.state, {} FROM sample s JOIN sample_ref r ON r.row = s.row WHERE s.row >= ?1 AND s.row < ?2",
          kRefColumns);
      sql::Query row = db_.query(kSamples, from, from + kPage);
      while (row.step()) {
        constexpr const char* kStates[] = {"needed", "may_go", "going", "freed"};
        Sample& sample = page[row.integer(0)];
        sample.line = {.state = kStates[row.integer(1) & 3], .ref = ref_text_(row, 2), .groups = {}};
      }
    }
    windows_of(from, page);
    queues_of(from, page);
    dropped_of(from, page);
    for (auto& [row, sample] : page) {
      for (const auto& [id, group] : groups_) {
        const bool waits =
            group.kind == kWindowGroup && group.open != 0 && row >= group.next_row && sample.line.state == "needed";
        if (waits && !sample.places.contains(id)) sample.places[id] = {.state = "available"};
      }
      for (auto& [id, place] : sample.places) sample.line.groups.emplace_back(groups_[id].name, std::move(place));
      write(sample.line);
    }
  }

  void windows_of(std::int64_t from, std::map<std::int64_t, Sample>& page) {
    sql::Query row = db_.query(
        "SELECT row, consumer, number, position, reason FROM window_ref WHERE row >= ?1 AND row < ?2 ORDER BY row, consumer,"
        " number",
        from, from + kPage);
    while (row.step()) {
      const Group& group = groups_[row.integer(1)];
      const std::int64_t window = row.integer(2);
      ExportedPlace& place = page[row.integer(0)].places[row.integer(1)];
      // Of a later pass only a failure is told: the rest follows from the first pass and the windows.
      if (group.pass_windows > 0 && window >= group.pass_windows) {
        if (!row.is_null(4)) place.later_failures.emplace_back(window, row.text(4));
        continue;
      }
      place.state = window_state(window, group.trained_windows, group.durable_windows, !row.is_null(4));
      place.window = window;
      place.position = row.integer(3);
      place.reason = text_if(row, 4);
    }
  }

  void queues_of(std::int64_t from, std::map<std::int64_t, Sample>& page) {
    sql::Query row =
        db_.query("SELECT row, consumer, state, attempts, ended_token, reason FROM queue_ref WHERE row >= ?1 AND row < ?2",
                  from, from + kPage);
    while (row.step()) {
      constexpr const char* kStates[] = {"available", "available", "acked", "failed"};
      ExportedPlace place{.state = kStates[row.integer(2) & 3]};
      place.attempts = row.integer(3);
      place.ended_token = text_if(row, 4);
      place.reason = text_if(row, 5);
      page[row.integer(0)].places[row.integer(1)] = std::move(place);
    }
  }

  void dropped_of(std::int64_t from, std::map<std::int64_t, Sample>& page) {
    for (const auto& [id, group] : groups_) {
      sql::Query row =
          db_.query("SELECT row, reason FROM dropped WHERE consumer = ?1 AND row >= ?2 AND row < ?3", id, from, from + kPage);
      while (row.step()) page[row.integer(0)].places[id] = {.state = "dropped", .reason = row.text(1)};
    }
  }

  sql::Database& db_;
  const std::function<void(const std::string&)>& write_;
  const RefText& ref_text_;
  std::map<std::int64_t, Group> groups_;
  std::int64_t lines_ = 0;
};

}  // namespace

const char* window_state(std::int64_t window, std::int64_t trained_windows, std::int64_t durable_windows, bool failed) {
  if (window >= trained_windows) return "windowed";
  if (failed) return "failed";
  return window < durable_windows ? "durable" : "trained";
}

void SqlLedger::export_to(const std::function<void(const std::string& line)>& write) {
  const sql::Snapshot snapshot(*db_);
  Export(*db_, write, [&](const sql::Query& row, int column) { return ref_json_of(row, column); }).run(read_status());
}

}  // namespace draftflow
