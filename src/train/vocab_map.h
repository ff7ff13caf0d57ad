// SPDX-License-Identifier: Apache-2.0
//
// Which D of the target's V tokens the draft can say: the most frequent ones under the loss mask. Plain value.
//   target id of draft id j = used[j] = j + d2t[j];   t2d[v] = v is used
#pragma once

#include <cstdint>
#include <vector>

#include "draftflow/ledger/ledger.h"

namespace draftflow {

struct VocabMap {
  std::vector<std::int64_t> used;  // [D] target ids, ascending
};

// The D most frequent tokens; ties go to the row first seen, within it to the lower id; if fewer than D occur, the lowest
// unseen ids fill up. D = 0 or D = V: every token. InvalidArgument for D outside 0..V or a token outside 0..V-1.
VocabMap make_vocab_map(std::vector<TokenCount> counts, std::int64_t draft_vocab, std::int64_t vocab);

}  // namespace draftflow
