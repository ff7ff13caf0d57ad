// SPDX-License-Identifier: Apache-2.0
//
// How a process computes: its threads and its memory. Call once, before the first tensor.
#pragma once

namespace draftflow {

// Uses `threads` compute threads, and keeps freed memory for the next tensor of the same size: libtorch takes and returns
// every activation, and touching fresh pages costs more than the arithmetic of a small model.
void set_up_compute(int threads);

}  // namespace draftflow
