// SPDX-License-Identifier: Apache-2.0
#include "train/vocab_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "draftflow/base/error.h"

namespace draftflow {

VocabMap make_vocab_map(std::vector<TokenCount> counts, std::int64_t draft_vocab, std::int64_t vocab) {
  if (draft_vocab < 0 || draft_vocab > vocab) {
    throw InvalidArgument(
        fmt::format("a draft vocabulary of {} is not possible: 0 (all) to {} are allowed", draft_vocab, vocab));
  }
  const auto size = static_cast<std::size_t>(draft_vocab == 0 ? vocab : draft_vocab);
  std::sort(counts.begin(), counts.end(), [](const TokenCount& a, const TokenCount& b) {
    return std::tuple(-a.count, a.first_row, a.token) < std::tuple(-b.count, b.first_row, b.token);
  });
  std::vector<bool> taken(static_cast<std::size_t>(vocab), false);
  VocabMap map;
  for (const TokenCount& entry : counts) {
    if (entry.token < 0 || entry.token >= vocab) {
      throw InvalidArgument(fmt::format(
          "the data holds token {}, but the target's vocabulary has {}: another tokenizer made it", entry.token, vocab));
    }
    if (map.used.size() == size) continue;
    taken[static_cast<std::size_t>(entry.token)] = true;
    map.used.push_back(entry.token);
  }
  for (std::int64_t token = 0; map.used.size() < size; ++token) {
    if (!taken[static_cast<std::size_t>(token)]) map.used.push_back(token);
  }
  std::sort(map.used.begin(), map.used.end());
  return map;
}

}  // namespace draftflow
