// SPDX-License-Identifier: Apache-2.0
//
// Faults in the file calls of this program, for tests only: testing_faults.cc defines the names of libc's file calls in the
// executable, where they win over libc's, so that code linked statically needs no seam. While a ScopedFaults lives, the calls
// of its own thread are counted, and those that its plan picks fail, transfer too little, or kill the process. It holds in a
// child forked meanwhile too. Calls of other threads, and those that libc makes inside itself, pass by uncounted.
//
//   ScopedFaults faults({.at = 3, .action = fail(EIO)});
//   EXPECT_THROW(store->put(...), Unavailable) << faults.last_call();
//   if (faults.calls_made() < 3) ...  // it made fewer calls
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace draftflow::store_testing {

struct Fault {
  enum class Kind { kNone, kFail, kShort, kKill } kind = Kind::kNone;
  int error = 0;
};

// The call does nothing (a close closes all the same) and fails with this errno. EINTR and ENOSPC, and the errnos of a full
// disk like it, only meet calls that can fail so; another is left alone, and hit() stays false.
constexpr Fault fail(int error) {
  return {Fault::Kind::kFail, error};
}
// A read or write of several bytes transfers half of them; any other call is left alone.
constexpr Fault short_transfer() {
  return {Fault::Kind::kShort};
}
// SIGKILL before the call does anything: use it in a forked child.
constexpr Fault kill_process() {
  return {Fault::Kind::kKill};
}

// A call that this file system does not know: fails each time, and is counted.
struct Unsupported {
  std::string call;
  int error = 0;
};

struct FaultPlan {
  std::uint64_t at = 0;  // the number of the call, from 1; 0: none, only count
  Fault action = {};
  std::string only = {};      // number only the calls of this name; empty: all
  bool from_then_on = false;  // every later call, too
  std::vector<Unsupported> unsupported = {};
};

class ScopedFaults {
 public:
  explicit ScopedFaults(FaultPlan plan);
  ScopedFaults(const ScopedFaults&) = delete;
  ScopedFaults& operator=(const ScopedFaults&) = delete;
  ~ScopedFaults();

  bool hit() const { return hit_ != 0; }                            // a fault happened
  std::uint64_t calls_made() const { return numbered_; }            // those that the plan numbers
  const std::vector<const char*>& calls() const { return calls_; }  // the names of all, in order
  std::string last_call() const;                                    // "3: pwrite", of the first one hit or the last

  // For the wrappers: whether the call named so meets a fault now.
  enum class May : unsigned { kOnlyFail = 0, kInterrupt = 1, kFillDisk = 2, kBoth = 3 };
  Fault meet(const char* name, May may);

 private:
  FaultPlan plan_;
  ScopedFaults* outer_;
  std::uint64_t numbered_ = 0;
  std::uint64_t hit_ = 0;  // the number of the first one hit
  std::string hit_name_;
  std::vector<const char*> calls_;
};

// The names that have a wrapper, sorted.
std::vector<std::string> wrapped_calls();

}  // namespace draftflow::store_testing
