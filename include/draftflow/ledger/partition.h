// SPDX-License-Identifier: Apache-2.0
//
// Which of n consumers a sample belongs to: the reference runtime's rule, so that both sides of a mixed run agree. The same on
// every machine, for ever; thread-safe.
//
//   if (dp_partition("run:00000007", 4) == 1) ...   // it is the second consumer's
#pragma once

#include <cstdint>
#include <string_view>

namespace draftflow {

// The SHA-1 of the id's bytes (UTF-8), read as a 160-bit big-endian integer, modulo n; 0 for n <= 1.
std::int64_t dp_partition(std::string_view sample_id, std::int64_t n);

}  // namespace draftflow
