// SPDX-License-Identifier: Apache-2.0
#include "ledger/rules.h"

#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

constexpr std::int64_t kMaxLeaseMs = 7LL * 24 * 3600 * 1000;
constexpr std::uint64_t kMaxSampleBytes = 1ULL << 48;
constexpr std::int64_t kMaxSampleTokens = 1LL << 40;
constexpr std::uint64_t kMaxGeneration = 1ULL << 53;
constexpr int kMaxWindow = 1 << 20;
constexpr int kMaxResumable = 1 << 20;
constexpr int kMaxAttempts = 1 << 20;
constexpr int kMaxPasses = 1 << 20;
constexpr std::int64_t kMaxWindowTokens = 1LL << 60;

}  // namespace

bool is_in_place(const SampleRef& ref) {
  return ref.feature_store_uri.starts_with("file://");
}

void check_fact(const std::string& key, const std::string& value) {
  for (const std::string* text : {&key, &value}) {
    if (find_invalid_utf8(*text) != std::string::npos || text->find('\0') != std::string::npos) {
      throw InvalidArgument(fmt::format("fact '{}' of the ledger is not UTF-8 text without U+0000", printable(key)));
    }
  }
}

void check_lease_ms(std::int64_t lease_ms) {
  if (lease_ms < 1 || lease_ms > kMaxLeaseMs) {
    throw InvalidArgument(fmt::format("lease of {} ms: 1 to {} are allowed", lease_ms, kMaxLeaseMs));
  }
}

void check_max_tasks(int max_tasks) {
  if (max_tasks < 1) throw InvalidArgument(fmt::format("lease of {} prompts: at least 1 is allowed", max_tasks));
}

void check_max_attempts(int max_attempts) {
  if (max_attempts < 1) throw InvalidArgument(fmt::format("max_attempts is {}: at least 1 is allowed", max_attempts));
}

void check_counts(std::size_t items, const char* what, std::size_t lists) {
  if (lists == 0 || lists == items) return;
  throw InvalidArgument(fmt::format("{} {} with {} lists of token counts: one for each, or none", items, what, lists));
}

void check_ref(const SampleRef& ref) {
  const auto refuse = [&](const std::string& what) {
    throw InvalidArgument(fmt::format("ref of sample '{}': {}", printable(ref.sample_id.str()), what));
  };
  if (ref.estimated_bytes > kMaxSampleBytes) {
    refuse(fmt::format("estimated_bytes is {}: at most {} are allowed", ref.estimated_bytes, kMaxSampleBytes));
  }
  if (ref.num_tokens < 0 || ref.num_tokens > kMaxSampleTokens) {
    refuse(fmt::format("num_tokens is {}: 0 to {} are allowed", ref.num_tokens, kMaxSampleTokens));
  }
  if (ref.generation > kMaxGeneration) {
    refuse(fmt::format("generation is {}: at most {} is allowed", ref.generation, kMaxGeneration));
  }
}

void check_completes(const SampleRef& ref, const PromptTask& task) {
  if (ref.sample_id.str() == task.task_id.str()) return;
  throw InvalidArgument(fmt::format("sample '{}' cannot complete prompt '{}': a prompt becomes the sample of the same id",
                                    printable(ref.sample_id.str()), printable(task.task_id.str())));
}

void check_config(const GroupConfig& config) {
  const auto check = [&](const char* name, int value, int least, int most) {
    if (value >= least && value <= most) return;
    throw InvalidArgument(
        fmt::format("group '{}': {} is {}: {} to {} are allowed", printable(config.group.str()), name, value, least, most));
  };
  check("resumable_checkpoints", config.resumable_checkpoints, 1, kMaxResumable);
  check("max_attempts", config.max_attempts, 1, kMaxAttempts);
  check("passes", config.passes, 1, config.kind == GroupKind::kWindows ? kMaxPasses : 1);
  const std::int64_t most = config.kind == GroupKind::kWindows ? kMaxWindowTokens : 0;
  if (config.max_window_tokens < 0 || config.max_window_tokens > most) {
    throw InvalidArgument(fmt::format("group '{}': max_window_tokens is {}: 0 (no cap){} is allowed",
                                      printable(config.group.str()), config.max_window_tokens,
                                      most > 0 ? fmt::format(" to {}", most) : ""));
  }
  if (config.kind == GroupKind::kWindows) return check("window", config.window, 1, kMaxWindow);
  if (config.window != 0) {
    throw InvalidArgument(fmt::format("group '{}' is a queue with a window of {}: a queue has none, 0 is allowed",
                                      printable(config.group.str()), config.window));
  }
}

void check_ranks(const TimelineRequest& request) {
  if (request.width >= 1 && request.rank >= 0 && request.rank < request.width) return;
  throw InvalidArgument(fmt::format("group '{}': rank {} of {}: ranks are 0 to width - 1, and the width is at least 1",
                                    printable(request.group.str()), request.rank, request.width));
}

void check_request(const RefRequest& request) {
  const auto refuse = [&](const std::string& what) { throw InvalidArgument(what); };
  check_lease_ms(request.lease_ms);
  if (request.max_refs < 1) {
    refuse(
        fmt::format("lease of {} refs of group '{}': at least 1 is allowed", request.max_refs, printable(request.group.str())));
  }
  if (request.max_tokens < 0) {
    refuse(fmt::format("lease of refs of group '{}' with max_tokens {}: 0 (no cap) or more is allowed",
                       printable(request.group.str()), request.max_tokens));
  }
  if (!request.partition) return;
  const auto& [index, count] = *request.partition;
  if (count < 1) {
    refuse(fmt::format("partition into {} of group '{}': at least 1 is allowed", count, printable(request.group.str())));
  }
  if (index < 0 || index >= count) {
    refuse(fmt::format("partition {} of {} of group '{}': the index is 0 to {}", index, count, printable(request.group.str()),
                       count - 1));
  }
}

void add_within(std::int64_t& sum, std::int64_t value, const char* what) {
  if (__builtin_add_overflow(sum, value, &sum)) {
    throw InvalidArgument(fmt::format("the refs of one call say that they have more than 2^63 {} together", what));
  }
}

std::string task_json(const PromptTask& task) {
  try {
    return prompt_task_to_json(task);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {  // the JSON library's own
    throw InvalidArgument(
        fmt::format("prompt '{}' cannot be written as JSON: {}", printable(task.task_id.str()), printable(error.what())));
  }
}

std::string ref_json(const SampleRef& ref) {
  try {
    return sample_ref_to_json(ref);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {  // the JSON library's own
    throw InvalidArgument(fmt::format("ref of sample '{}' cannot be written as JSON: {}", printable(ref.sample_id.str()),
                                      printable(error.what())));
  }
}

std::string poison_reason() {
  return fmt::format("its lease ran out {} times: the worker that took it died or hung each time", kMaxExpiries);
}

std::string miscounted(const std::string& what, std::int64_t kept, std::int64_t rows) {
  return fmt::format("{}: the counter says {}, the rows {}", what, kept, rows);
}

void TokenSums::add(const std::vector<TokenCount>& counts, std::int64_t row) {
  for (const TokenCount& entry : counts) {
    if (entry.token < 0 || entry.count < 0 || entry.count > kMaxSampleTokens) {
      throw InvalidArgument(fmt::format("token {} counted {} times: token ids start at 0, counts are 0 to {}", entry.token,
                                        entry.count, kMaxSampleTokens));
    }
    if (entry.count == 0) continue;
    add_within(sums_.try_emplace(entry.token, TokenCount{entry.token, 0, row}).first->second.count, entry.count, "tokens");
  }
}

}  // namespace draftflow
