// SPDX-License-Identifier: Apache-2.0
//
// A reference's ledger as the lines of an export: what it knows, in our words.
#include <algorithm>
#include <unordered_set>
#include <utility>

#include "draftflow/base/random.h"
#include "draftflow/ledger/reference_ledger.h"
#include "ledger/export_lines.h"

namespace draftflow {
namespace {

// The group that stands for the reference's trainer. Closed: it needs nothing any more.
constexpr const char* kGroup = "reference";
constexpr const char* kToken = "reference";

bool is_in_place(const SampleRef& ref) {
  return ref.feature_store_uri.starts_with("file://");
}

}  // namespace

ReferenceImport import_reference_ledger(Ledger& ledger, const ReferenceLedger& reference) {
  std::unordered_set<std::string> done;
  if (reference.optimizer_durable) done.insert(reference.acked.begin(), reference.acked.end());
  ReferenceImport result;
  ExportedHeader header;
  LedgerStatus& status = header.status;
  status.ledger_id = random_hex128();
  status.prompts_closed = true;
  for (const SampleRef& ref : reference.committed) {
    const bool is_done = done.contains(ref.sample_id.str());
    ++(is_done ? result.done : result.waiting);
    ++status.committed;
    status.committed_tokens += ref.num_tokens;
    if (is_done) ++status.freed;
    if (!is_done && !is_in_place(ref)) status.resident_bytes += ref.estimated_bytes;
  }
  std::vector<ExportedLine> head{header};
  if (!reference.committed.empty()) {
    status.run_id = reference.committed.front().run_id.str();
    head.front() = header;
    head.emplace_back(ExportedFact{"run_id", status.run_id});
  }
  head.emplace_back(ExportedGroup{.config = {.group = GroupId(kGroup), .kind = GroupKind::kQueue}, .open = false});
  const std::size_t samples = reference.committed.size();
  std::size_t at = 0;
  ledger.import_from([&]() -> std::optional<std::string> {
    const std::size_t line = at++;
    if (line < head.size()) return to_line(head[line]);
    if (line == head.size() + samples) return to_line(ExportedEnd{static_cast<std::int64_t>(line)});
    if (line > head.size() + samples) return std::nullopt;
    const SampleRef& ref = reference.committed[line - head.size()];
    ExportedSample sample{.state = "needed", .ref = sample_ref_to_json(ref), .groups = {}};
    if (done.contains(ref.sample_id.str())) {
      sample.state = "freed";
      sample.groups.emplace_back(kGroup, ExportedPlace{.state = "acked", .ended_token = kToken});
    }
    return to_line(sample);
  });
  return result;
}

}  // namespace draftflow
