// SPDX-License-Identifier: Apache-2.0
//
// Holds a store against its ledger: what the books have and the store lacks, and what the store has that is on no books.
// Changes nothing; both may be in use, so what is on its way between put and commit, or between remove and freed, may show up
// for a moment. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "draftflow/ledger/ledger.h"
#include "draftflow/store/feature_store.h"

namespace draftflow {

// The fact of a ledger that says which store its samples are in, and its value for a store: "name/incarnation".
inline constexpr const char* kStoreFact = "store";
std::string store_fact(const StoreHealth& health);
// For producers: the ledger's samples are in this store and no other. Conflict, naming both, if they are in another.
void declare_store(Ledger& ledger, FeatureStore& store);
// For consumers: the same, where a producer has said so. Where none has, the first of the ledger's samples whose bytes are not
// freed tells; of an offline set also the first file in place. True: the ledger knows its store, and it is this one; false: it
// has no such sample yet, so ask again once there is one.
bool check_store(Ledger& ledger, FeatureStore& store);
// For who reads all of the ledger's samples from this store: check_store, and Conflict also for a stream of which only files in
// place are there yet, which no other store than file:// reads.
bool check_reader(Ledger& ledger, FeatureStore& store);

struct CrossCheck {
  std::int64_t matching = 0;  // on the books and there, the same generation
  std::int64_t missing = 0;   // on the books, not freed, and not there: training will fail them by name
  std::int64_t newer = 0;     // there in a greater generation than the books know: the ledger is older than the store, or a
                              // producer has not committed yet
  std::int64_t orphans = 0;   // there, and never committed: of a producer that died, or has not committed yet
  std::uint64_t orphan_bytes = 0;
  std::vector<std::string> examples;  // a few, each with what is wrong
};

struct CrossCheckOptions {
  double settle_seconds = 60;  // what is younger is on its way, and left out
  int examples = 5;
  std::function<void(std::int64_t seen)> progress;  // if wanted
};

CrossCheck cross_check(Ledger& ledger, FeatureStore& store, const CrossCheckOptions& options);

struct OrphanSweep {
  std::int64_t removed = 0;
  std::uint64_t bytes = 0;
};

// Removes from the store what the ledger never committed and what it replaced, if it is older than `orphan_age_seconds`, which
// must be longer than any producer takes from put to commit. From any process, at any time. Conflict, as check_store: all of
// another ledger's samples would be orphans.
OrphanSweep sweep_orphans(Ledger& ledger, FeatureStore& store, double orphan_age_seconds);

}  // namespace draftflow
