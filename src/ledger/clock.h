// SPDX-License-Identifier: Apache-2.0
//
// The ledger's time: milliseconds since boot, valid together with the boot's id. A seam, so that a test decides when a lease
// runs out and when the machine was started again. Private to this room.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "draftflow/ledger/ledger.h"

namespace draftflow {

struct LedgerClock {
  std::string boot_id;
  std::function<std::int64_t()> now_ms;
};

// CLOCK_BOOTTIME (which goes on while the machine sleeps) and /proc/sys/kernel/random/boot_id.
LedgerClock boot_clock();

std::int64_t wall_milliseconds();  // this machine's, since 1970

std::unique_ptr<Ledger> open_sqlite_ledger(const std::filesystem::path& path, LedgerClock clock);
std::unique_ptr<Ledger> open_memory_ledger(std::shared_ptr<MemoryBooks> books, LedgerClock clock);
// Makes nothing: NotFound where there is no ledger.
std::unique_ptr<Ledger> open_postgres_ledger_read_only(const std::string& url);
std::unique_ptr<Ledger> open_postgres_ledger(const std::string& url, std::optional<std::function<std::int64_t()>> test_clock);

}  // namespace draftflow
