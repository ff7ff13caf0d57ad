// SPDX-License-Identifier: Apache-2.0
//
// Trains a small Llama from nothing on a flat file of token ids: how the example target is made. This header needs no
// libtorch. One call per process at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

namespace draftflow {

struct PretrainOptions {
  std::filesystem::path config;            // config.json of the Llama
  std::filesystem::path tokens, held_out;  // little-endian uint16 ids, documents separated by BOS
  std::filesystem::path out;               // gets model.safetensors (bfloat16) beside the config.json
  std::int64_t steps = 4000;
  std::int64_t batch = 8, length = 256;  // sequences a step, tokens a sequence
  double learning_rate = 3e-3, weight_decay = 0.1;
  std::uint64_t seed = 1;
  int threads = 2;
  std::int64_t evaluate_every = 250;
};

struct PretrainProgress {
  std::int64_t step = 0, steps = 0;
  double loss = 0;           // nats a token, mean since the last callback
  double held_out_loss = 0;  // nats a token over the same 64 sequences each time
  double tokens_per_second = 0;
};

void run_pretrain(const PretrainOptions& options, const std::function<void(const PretrainProgress&)>& on_progress);

}  // namespace draftflow
