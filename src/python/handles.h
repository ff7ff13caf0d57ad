// SPDX-License-Identifier: Apache-2.0
//
// What Python's Store and Ledger hold. A forked child opens both anew (PerProcess). Private to this room.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "draftflow/ledger/ledger.h"
#include "draftflow/store/feature_store.h"
#include "python/bindings.h"

namespace draftflow::python {

struct StoreHandle {
  std::string url;
  std::optional<std::filesystem::path> secret_file;
  bool secret_given = false;  // as bytes, which go nowhere
  bool retain_on_release = false;
  std::int64_t lease_ms = 60'000;
  PerProcess<FeatureStore> opened;
};

// A Ledger is used by one thread at a time: Python's threads take turns, without Python's lock.
struct OpenLedger {
  std::unique_ptr<Ledger> ledger;
  std::timed_mutex mutex;

  // Interruptible: another thread may be in a long wait.
  std::unique_lock<std::timed_mutex> turn() {
    std::unique_lock lock(mutex, std::defer_lock);
    while (!lock.try_lock_for(kInterruptEvery)) check_interrupt();
    return lock;
  }
};

struct LedgerHandle {
  std::string url;
  bool read_only = false;
  std::function<std::unique_ptr<Ledger>()> open;  // another Ledger on the same books, for another thread
  PerProcess<OpenLedger> opened;

  // What `call` returns of the Ledger, while other Python threads run.
  template <class Call>
  auto with(Call&& call) {
    const std::shared_ptr<OpenLedger> held = opened.get();
    const Unlocked unlocked;
    const auto turn = held->turn();
    return call(*held->ledger);
  }
};

// A fence of a put, made by Ledger.fence.
struct PyFence {
  std::shared_ptr<LedgerHandle> ledger;
  PromptLease lease;
  std::int64_t lease_ms = 60'000;
};

}  // namespace draftflow::python
