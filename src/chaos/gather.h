// SPDX-License-Identifier: Apache-2.0
//
// Gather: how the ranks of a launch meet at each step, in place of a trainer's collectives. Rank 0 listens at a Unix socket,
// the others come to it. Used by one thread. A peer that is dead, or that does not come within 10 s, is PeerLost; one that is
// only stopped is waited for.
#pragma once

#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "draftflow/base/file.h"

namespace draftflow::chaos {

struct PeerLost : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Gather {
 public:
  Gather(const std::filesystem::path& socket, int rank, int width);

  std::vector<std::string> all(const std::string& mine);  // what each rank said, in their order; the same for all of them

 private:
  const int rank_, width_;
  std::vector<UniqueFd> peers_;  // of rank 0: by rank, its own place empty; of the others: rank 0 alone
};

}  // namespace draftflow::chaos
