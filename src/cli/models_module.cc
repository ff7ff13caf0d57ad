// SPDX-License-Identifier: Apache-2.0
//
// The one symbol that libdraftflow_models.so exports (models.h).
#include <torch/csrc/api/include/torch/version.h>

#include "cli/models.h"

extern "C" __attribute__((visibility("default"))) const draftflow::cli::Models* draftflow_models() {
  static const draftflow::cli::Models models{DRAFTFLOW_VERSION,      draftflow::cli::kOptionsBytes, TORCH_VERSION,
                                             draftflow::run_capture, draftflow::run_train,          draftflow::run_eval};
  return &models;
}
