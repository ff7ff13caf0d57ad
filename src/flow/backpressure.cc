// SPDX-License-Identifier: Apache-2.0
#include "draftflow/flow/backpressure.h"

#include <fmt/format.h>

#include <limits>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

void check_not_negative(const char* name, std::int64_t value) {
  if (value < 0) throw InvalidArgument(fmt::format("{} is {}: it cannot be negative", name, value));
}

std::uint64_t saturating_add(std::uint64_t a, std::uint64_t b) {
  std::uint64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? std::numeric_limits<std::uint64_t>::max() : sum;
}

std::uint64_t saturating_multiply(std::uint64_t a, std::uint64_t b) {
  std::uint64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<std::uint64_t>::max() : product;
}

}  // namespace

Backpressure::Backpressure(Watermarks marks) : marks_(marks) {
  if (marks.low_bytes == 0 || marks.low_bytes > marks.high_bytes) {
    throw InvalidArgument(fmt::format("watermarks: low is {} bytes and high is {}: 0 < low <= high is needed", marks.low_bytes,
                                      marks.high_bytes));
  }
}

bool Backpressure::update(std::uint64_t resident_bytes) {
  if (!paused_ && resident_bytes >= marks_.high_bytes) {
    paused_ = true;
    ++pauses_;
  } else if (paused_ && resident_bytes <= marks_.low_bytes && resident_bytes < marks_.high_bytes) {
    paused_ = false;
  }
  return paused_;
}

std::uint64_t needed_bytes(const FlowDemand& demand) {
  check_not_negative("checkpoint_every", demand.checkpoint_every);
  check_not_negative("resumable_checkpoints", demand.resumable_checkpoints);
  check_not_negative("prefetch_windows", demand.prefetch_windows);
  check_not_negative("window", demand.window);
  const auto u = [](std::int64_t value) { return static_cast<std::uint64_t>(value); };
  const std::uint64_t unfreed = saturating_multiply(u(demand.checkpoint_every), u(demand.resumable_checkpoints));
  const std::uint64_t windows = saturating_add(saturating_add(unfreed, u(demand.prefetch_windows)), 1);
  return saturating_multiply(saturating_multiply(windows, u(demand.window)), demand.largest_sample_bytes);
}

void check_progress(const Watermarks& marks, const FlowDemand& demand) {
  const std::uint64_t needed = needed_bytes(demand);
  if (needed <= marks.high_bytes) return;
  throw InvalidArgument(
      fmt::format("training cannot make progress: ({} steps between checkpoints x {} resumable checkpoints + {} windows "
                  "fetched ahead + 1) windows"
                  " x {} samples x {} bytes of the largest sample = {} bytes ({}), but producers pause at the high mark of {} "
                  "bytes ({}); raise"
                  " the high mark, checkpoint more often, or use a smaller window",
                  demand.checkpoint_every, demand.resumable_checkpoints, demand.prefetch_windows, demand.window,
                  demand.largest_sample_bytes, needed, human_bytes(needed), marks.high_bytes, human_bytes(marks.high_bytes)));
}

}  // namespace draftflow
