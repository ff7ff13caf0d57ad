// SPDX-License-Identifier: Apache-2.0
//
// The collector: what gc does to a shared directory, and the walk over everything in it. Any process may run it at any time,
// several at once; it asks nobody and touches no live lease. Cost: in proportion to the resident samples.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "draftflow/store/feature_store.h"
#include "store/shared_dir/account.h"
#include "store/shared_dir/layout.h"
#include "store/shared_dir/store_file.h"

namespace draftflow::store {

struct Collection {
  const Layout& layout;
  const Folder &temporaries, &leases;
  Account& account;
  const Books& books;
  const StoreFile& file;
  std::optional<std::int64_t> silent_ms;  // on network file systems: a holder silent for longer is dead
};

GcReport collect(const Collection& collection);

void walk(const Layout& layout, const Books& books, std::int64_t now_seconds,
          const std::function<bool(const ResidentSample&)>& visit,
          const std::function<void(const std::filesystem::path&, const std::string&)>& damaged);

// One generation's file, whose header is read but not its tensors; names beyond its `own_names` are leases. Corrupt or
// InvalidArgument if it is not that of `place`.
ResidentSample describe_file(int fd, const std::string& path, const SamplePlace& place, std::uint64_t generation,
                             std::int64_t now_seconds, std::uint64_t own_names);

// By the account's buckets: at most kAgeBucketSeconds too high; ages past kAgeBuckets of them are told too low.
double oldest_age(const AccountTotals& totals, std::int64_t now_seconds);

// Makes a file with two names and takes it away. InvalidArgument, naming the file system, where the count of names is not
// 2 (sshfs says 1 always) or hard links are not possible: leases could not work.
void check_links(const Folder& temporaries);

}  // namespace draftflow::store
