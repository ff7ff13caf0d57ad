// SPDX-License-Identifier: Apache-2.0
//
// What a fork must not share: the numbers of a writer, and the locks that say a process is alive. Thread-safe.
#pragma once

#include <cstdint>

namespace draftflow::store {

// How many forks lie between this process and the first one that asked. A number kept from before a fork differs after it.
std::uint64_t forks_of_this_process();

// A forked child closes the descriptor at once: a lock of flock(2) lives while any process has it open.
void close_in_children(int fd);
void keep_in_children(int fd);  // takes that back; before the descriptor is closed

}  // namespace draftflow::store
