// SPDX-License-Identifier: Apache-2.0
#include "draftflow/flow/cross_check.h"

#include <fmt/format.h>

#include <string_view>
#include <unordered_map>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

constexpr int kPage = 1024;

bool in_place(const SampleRef& ref) {
  return ref.feature_store_uri.starts_with("file://");
}

// The store that a ref's bytes are in, as store_fact says it: what its URI has before the sample. A store's id may hold '/'.
std::string fact_of(const SampleRef& ref) {
  std::string_view uri = ref.feature_store_uri;
  if (const auto scheme = uri.find("://"); scheme != uri.npos) uri.remove_prefix(scheme + 3);
  const std::string sample = "/" + ref.sample_id.str();
  const auto end = uri.ends_with(sample) ? uri.size() - sample.size() : uri.rfind('/');
  return std::string(uri.substr(0, end)) + "/" + ref.incarnation;
}

// The place of files in place, if the first sample is one.
std::optional<std::string> files_in_place(Ledger& ledger) {
  const std::vector<std::string> ids = ledger.all_committed_ids();
  const auto first = ids.empty() ? std::nullopt : ledger.get_committed(SampleId(ids.front()));
  if (!first || !in_place(*first)) return std::nullopt;
  return fmt::format("files where they lie ({} is one), which the store file:// reads", printable(first->feature_store_uri));
}

// Where the ledger's samples are, if that is not this store. What a producer has declared counts; without it the first sample
// whose bytes are not freed.
std::optional<std::string> other_place(Ledger& ledger, const StoreHealth& health, bool& known) {
  const std::string here = store_fact(health);
  auto there = ledger.declared(kStoreFact);
  if (!there) {
    const RefPage page = ledger.resident_refs(0, 1);
    if (!page.refs.empty()) there = fact_of(page.refs.front());
  }
  known = there.has_value();
  if (there) return *there == here ? std::nullopt : std::optional("store " + printable(*there));
  // An offline set's ids are read at once in any case; a stream's are not.
  if (health.backend == "files" || ledger.declared("kind") != "offline") return std::nullopt;
  const auto files = files_in_place(ledger);
  known = files.has_value();
  return files;
}

std::string shown(const StoreHealth& health) {
  if (health.backend == "files") return "this is file://, which reads files where they lie";
  return fmt::format("{} is store {}", health.root.empty() ? "this" : printable(health.root), printable(store_fact(health)));
}

[[noreturn]] void throw_elsewhere(Ledger& ledger, const std::string& place, const StoreHealth& health) {
  throw Conflict(
      fmt::format("ledger {} has its samples in {}, and {}: name the store that belongs to the ledger, or begin another run "
                  "with a ledger of its own",
                  ledger.id(), place, shown(health)));
}

}  // namespace

std::string store_fact(const StoreHealth& health) {
  return health.store_id + "/" + health.incarnation;
}

bool check_store(Ledger& ledger, FeatureStore& store) {
  const StoreHealth health = store.health();
  bool known = false;
  if (const auto other = other_place(ledger, health, known)) throw_elsewhere(ledger, *other, health);
  return known;
}

bool check_reader(Ledger& ledger, FeatureStore& store) {
  if (check_store(ledger, store)) return true;
  const StoreHealth health = store.health();
  const LedgerStatus status = ledger.status();
  if (health.backend == "files" || status.committed == status.freed) return false;
  if (const auto files = files_in_place(ledger)) throw_elsewhere(ledger, *files, health);
  return false;
}

void declare_store(Ledger& ledger, FeatureStore& store) {
  check_store(ledger, store);
  ledger.declare(kStoreFact, store_fact(store.health()));
}

CrossCheck cross_check(Ledger& ledger, FeatureStore& store, const CrossCheckOptions& options) {
  CrossCheck found;
  const auto tell = [&](const std::string& what) {
    if (static_cast<int>(found.examples.size()) < options.examples) found.examples.push_back(what);
  };
  std::unordered_map<std::string, std::uint64_t> there;  // the generations that are no orphans
  std::int64_t seen = 0;
  store.for_each(
      [&](const ResidentSample& sample) {
        if (options.progress) options.progress(++seen);
        const auto ref = ledger.get_committed(sample.sample_id);
        if (ref && ref->generation == sample.generation) {
          there.emplace(sample.sample_id.str(), sample.generation);
        } else if (sample.age_s >= options.settle_seconds) {
          const bool newer = ref && ref->generation < sample.generation;
          newer ? ++found.newer : ++found.orphans;
          if (!newer) found.orphan_bytes += sample.bytes;
          tell(fmt::format("sample '{}': the store has generation {}, the ledger {}", printable(sample.sample_id.str()),
                           sample.generation, ref ? fmt::format("generation {}", ref->generation) : std::string("none")));
        }
        return true;
      },
      [&](const std::filesystem::path&, const std::string& why) { tell(printable(why, 400)); });
  for (std::optional<std::int64_t> from = 0; from;) {
    const RefPage page = ledger.resident_refs(*from, kPage);
    for (const SampleRef& ref : page.refs) {
      if (there.contains(ref.sample_id.str())) {
        ++found.matching;
        continue;
      }
      try {
        store.resident(ref);  // committed since the walk
        ++found.matching;
      } catch (const NotFound&) {
        const auto now = ledger.get_committed(ref.sample_id);
        if (now && now->generation != ref.generation) continue;  // replaced since
        ++found.missing;
        tell(fmt::format("sample '{}' generation {} is committed and not in the store", printable(ref.sample_id.str()),
                         ref.generation));
      }
    }
    from = page.next;
  }
  return found;
}

OrphanSweep sweep_orphans(Ledger& ledger, FeatureStore& store, double orphan_age_seconds) {
  check_store(ledger, store);  // all of another ledger's samples would be orphans
  OrphanSweep sweep;
  std::vector<std::pair<ResidentSample, SampleRef>> old;
  store.for_each(
      [&](const ResidentSample& sample) {
        if (sample.age_s < orphan_age_seconds) return true;
        const auto ref = ledger.get_committed(sample.sample_id);
        if (ref && ref->generation == sample.generation) return true;
        try {
          old.emplace_back(sample, store.find(sample.sample_id, sample.generation));
        } catch (const NotFound&) {  // gone meanwhile
        }
        return true;
      },
      [](const std::filesystem::path&, const std::string&) {});
  for (const auto& [sample, ref] : old) {
    const auto committed = ledger.get_committed(sample.sample_id);  // it may have been committed since
    if (committed && committed->generation == sample.generation) continue;
    if (!store.remove(ref)) continue;
    ++sweep.removed;
    sweep.bytes += sample.bytes;
  }
  return sweep;
}

}  // namespace draftflow
