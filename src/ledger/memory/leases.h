// SPDX-License-Identifier: Apache-2.0
//
// Leases by number. To a caller a lease's token is a text that no other ledger gives; in here it is the number in it. The refs
// that one call leased from a queue share the number, the holder and the time, for as long as any of them is held. Private to
// this room; not thread-safe, but for LeaseTokens.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "draftflow/base/random.h"

namespace draftflow {

namespace memory {

using LeaseNumber = std::uint64_t;  // from 1; 0: none

}  // namespace memory

// 16 random hex digits of the ledger, 16 of the number.
class LeaseTokens {
 public:
  std::string text_of(memory::LeaseNumber number) const {
    std::string text = prefix_;
    for (int shift = 60; shift >= 0; shift -= 4) text += kHex[number >> shift & 15];
    return text;
  }

  // 0 for a text that this ledger never gave.
  memory::LeaseNumber number_of(std::string_view text) const {
    if (text.size() != 32 || !text.starts_with(prefix_)) return 0;
    memory::LeaseNumber number = 0;
    for (const char digit : text.substr(16)) {
      const std::size_t value = kHex.find(digit);
      if (value == std::string_view::npos) return 0;
      number = number << 4 | value;
    }
    return number;
  }

 private:
  static constexpr std::string_view kHex = "0123456789abcdef";
  const std::string prefix_ = random_hex128().substr(0, 16);
};

namespace memory {

struct RefLeaseOf {
  std::string holder;
  std::int64_t expires_ms = 0;
  std::size_t held = 0;             // how many of the rows
  std::vector<std::uint32_t> rows;  // also those that are not held any more
};

class RefLeases {
 public:
  void add(LeaseNumber number, RefLeaseOf lease) {
    expiries_.emplace(lease.expires_ms, number);
    holders_[lease.holder].insert(number);
    leases_.emplace(number, std::move(lease));
  }

  const RefLeaseOf& of(LeaseNumber number) const { return leases_.at(number); }
  const RefLeaseOf* find(LeaseNumber number) const {
    const auto at = leases_.find(number);
    return at == leases_.end() ? nullptr : &at->second;
  }

  // One of its refs is held no more.
  void let_go(LeaseNumber number) {
    const auto at = leases_.find(number);
    if (--at->second.held == 0) forget(at);
  }

  // One whose time `ran_out` says is over, whatever lies between the first and the last, or 0.
  template <class RanOut>
  LeaseNumber find_expired(RanOut ran_out) const {
    if (expiries_.empty()) return 0;
    if (ran_out(expiries_.begin()->first)) return expiries_.begin()->second;
    return ran_out(expiries_.rbegin()->first) ? expiries_.rbegin()->second : 0;
  }

  RefLeaseOf take(LeaseNumber number) {
    const auto at = leases_.find(number);
    RefLeaseOf lease = std::move(at->second);
    at->second.holder = lease.holder;
    forget(at);
    return lease;
  }

  std::vector<LeaseNumber> of_holder(const std::string& holder) const {
    const auto at = holders_.find(holder);
    if (at == holders_.end()) return {};
    return {at->second.begin(), at->second.end()};
  }

  std::vector<LeaseNumber> all() const {
    std::vector<LeaseNumber> numbers;
    for (const auto& [expires, number] : expiries_) numbers.push_back(number);
    return numbers;
  }

  void extend(LeaseNumber number, std::int64_t expires_ms) {
    RefLeaseOf& lease = leases_.at(number);
    expiries_.erase({lease.expires_ms, number});
    lease.expires_ms = expires_ms;
    expiries_.emplace(expires_ms, number);
  }

 private:
  using ByNumber = std::unordered_map<LeaseNumber, RefLeaseOf>;

  void forget(ByNumber::iterator at) {
    expiries_.erase({at->second.expires_ms, at->first});
    const auto holder = holders_.find(at->second.holder);
    holder->second.erase(at->first);
    if (holder->second.empty()) holders_.erase(holder);
    leases_.erase(at);
  }

  ByNumber leases_;
  std::set<std::pair<std::int64_t, LeaseNumber>> expiries_;
  std::unordered_map<std::string, std::set<LeaseNumber>> holders_;
};

}  // namespace memory
}  // namespace draftflow
