// SPDX-License-Identifier: Apache-2.0
//
// What SQLite must not take over a fork. It keeps the locks that the process has on a database in the process's memory, found
// by the file's number; a forked child inherits that list but none of the locks, believes that it has them, and the parent, the
// last one as far as the kernel knows, removes the log that the child writes to. So a child sees its parent's databases under
// other numbers, and locks them anew. A connection itself must not be used, or closed, on the other side of a fork.
// Thread-safe.
#pragma once

#include <filesystem>

namespace draftflow::sqlite {

// Before a database is opened: from a later fork on, the child's connections to it have nothing of this process's.
void open_anew_after_forks(const std::filesystem::path& database);

}  // namespace draftflow::sqlite
