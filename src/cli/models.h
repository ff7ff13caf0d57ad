// SPDX-License-Identifier: Apache-2.0
//
// The commands that need libtorch live in libdraftflow_models.so, which is opened only when one of them runs, so that the
// others start in milliseconds. The module exports draftflow_models(), which returns this table. Loading is not
// thread-safe; the table is constant and lives as long as the process. Errors thrown inside reach the caller as they are.
//
//   const Models& models = load_models();   // Unavailable, saying where it looked
//   models.train(options, on_step, stop);
#pragma once

#include <atomic>
#include <cstddef>
#include <filesystem>
#include <vector>

#include "draftflow/capture/worker.h"
#include "draftflow/train/evaluate.h"
#include "draftflow/train/trainer.h"

namespace draftflow::cli {

struct Models {
  const char* version;        // of draftflow; must equal the binary's
  std::size_t options_bytes;  // sizes of the option structs together: a module of another build is refused
  const char* libtorch_version;
  CaptureProgress (*capture)(const CaptureOptions&, const CaptureCallback&, const std::atomic<bool>&);
  TrainProgress (*train)(const TrainOptions&, const TrainCallback&, const std::atomic<bool>&);
  EvalReport (*eval)(const EvalOptions&, const EvalCallback&, const std::atomic<bool>&);
};

constexpr std::size_t kOptionsBytes = sizeof(CaptureOptions) + sizeof(TrainOptions) + sizeof(EvalOptions) +
                                      sizeof(CaptureProgress) + sizeof(TrainProgress) + sizeof(EvalReport);

// Beside the binary (../lib), then where it would be installed.
std::vector<std::filesystem::path> models_places();

const Models& load_models();
const Models& load_models_from(const std::vector<std::filesystem::path>& places);

}  // namespace draftflow::cli
