// SPDX-License-Identifier: Apache-2.0
//
// Account: what a store holds, in counters that every process can read at once (docs/formats/shared_dir.md). Each host (each
// boot of one) has a file of its own, mapped by its processes; the store's figure is the sum over the files. Exact over
// the processes of a host; other hosts' counters are as fresh as the file system's attributes. A process that dies in mid-step
// leaves a figure that is too high, never too low, until gc recounts. Thread-safe and process-safe.
//
//   const Account::Change change(account, fan_out);   // around the step that makes or ends a generation
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "store/shared_dir/folder.h"

namespace draftflow::store {

constexpr std::size_t kFanOuts = 256;
constexpr std::size_t kHolders = kFanOuts;  // in place of a fan-out: what holders have leased and reserved
constexpr std::size_t kAgeBuckets = 16384;
constexpr std::int64_t kAgeBucketSeconds = 64;

struct AccountTotals {
  std::int64_t samples = 0, bytes = 0, reserved = 0, leases = 0, freed = 0, freed_bytes = 0, codec_saved_bytes = 0, errors = 0;
  std::int64_t birth_seconds = 0;  // sum over the resident generations
  std::vector<std::int64_t> born;  // by absolute time / kAgeBucketSeconds modulo kAgeBuckets
};

struct FanOutCount {
  std::int64_t samples = 0, bytes = 0, birth_seconds = 0;
};

class Account {
 public:
  // Where the disk is too full for a new file, or with `read_only`, what this object counts is its own alone, and is_private.
  Account(Folder folder, const Folder& temporaries, bool read_only = false);
  ~Account();
  Account(const Account&) = delete;
  Account& operator=(const Account&) = delete;

  // Marks a step in a fan-out folder, or of a holder, as going on, so that a recount does not take it for settled.
  class Change {
   public:
    Change(Account& account, std::size_t fan_out);
    ~Change();
    Change(const Change&) = delete;
    Change& operator=(const Change&) = delete;

   private:
    Account& account_;
    std::size_t fan_out_;
  };

  bool is_private() const { return private_; }

  // False, and nothing is reserved, if reserved + resident bytes would pass `cap` (0: none). Before it refuses it waits up to
  // a tenth of a second for steps that are going on.
  bool reserve(std::uint64_t bytes, std::uint64_t cap);

  void add(std::size_t fan_out, std::uint64_t bytes, std::int64_t birth_seconds);
  void subtract(std::size_t fan_out, std::uint64_t bytes, std::int64_t birth_seconds);
  void count_freed(std::uint64_t bytes);
  void count_codec_saved(std::uint64_t bytes);
  void count_error();
  void add_leases(std::int64_t count);
  void add_reserved(std::int64_t bytes);

  std::int64_t resident_bytes() const;  // reserved included
  AccountTotals totals() const;

  // The number to give to `settle` with a count taken after it; nothing while a step goes on there. A step whose process
  // died counts as going on until kStuckSeconds have passed over two calls.
  std::optional<std::uint64_t> begin_count(std::size_t fan_out, std::int64_t now_seconds);
  // Makes the figures of the fan-out those counted, unless something changed since begin_count: then false.
  bool settle(std::size_t fan_out, std::uint64_t begun, const FanOutCount& counted);
  // The same for what the holders' own files say, begun with kHolders.
  bool settle_holders(std::uint64_t begun, std::int64_t reserved, std::int64_t leases);
  // Of births before `before_seconds`, whose number can only fall, takes away those that a walk begun after it did not see.
  void settle_births(const std::vector<std::int64_t>& seen, std::int64_t before_seconds);

 private:
  struct Counters;
  struct Others;
  UniqueFd make(const Folder& temporaries);
  bool try_reserve(std::uint64_t bytes, std::uint64_t cap);
  bool is_changing() const;  // on this host
  void enter(std::size_t fan_out, std::int64_t sign, std::uint64_t bytes, std::int64_t birth_seconds);
  Others others() const;
  std::uint64_t steps(std::size_t fan_out, bool ended) const;

  Folder folder_;
  std::string name_;  // this host's file
  bool private_ = false;
  Counters* counters_ = nullptr;
};

}  // namespace draftflow::store
