// SPDX-License-Identifier: Apache-2.0
//
// One chaos run: real producers, trainer ranks and consumers of a queue on one store and one ledger, and everything that may
// happen to them; then they are left alone until all is done, and the books are checked. Returns in bounded time and leaves
// nothing behind. Used by one thread, which must have lived as long as the server.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "chaos/stage.h"
#include "ledger/postgres/testing_server.h"

namespace draftflow::chaos {

enum class Scenario {
  kStream,   // four groups of one pass and three queues, of which one joins late and one is closed
  kWindows,  // the same without the queues, so that more happens to the others
  kPasses,   // two groups of several passes, whose stream ends early: until then nothing may go
  kQueue     // the queues alone
};

struct ChaosOptions {
  Scenario scenario = Scenario::kStream;
  std::uint64_t seed = 0;
  double seconds = 0;                                // of chaos; the end takes some more
  testing_support::TestingServer* server = nullptr;  // none: a SQLite file
  Bug bug = Bug::kNone;
};

struct ChaosResult {
  std::vector<std::string> violations;  // the first ones; a run ends with the first that is seen
  std::string events;                   // what was done, and when: the last of it
  std::string summary;
  std::int64_t kills = 0, steps = 0, takeovers = 0, acks = 0;
  double seconds = 0;
};

ChaosResult run_chaos(const ChaosOptions& options);

}  // namespace draftflow::chaos
