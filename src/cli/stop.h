// SPDX-License-Identifier: Apache-2.0
//
// Stopping cleanly: the first SIGINT or SIGTERM sets the flag that every long operation watches, the second one ends the
// process at once with exit code 130. The flag belongs to the process; reading it is thread-safe.
#pragma once

#include <atomic>

namespace draftflow::cli {

constexpr int kInterruptedExitCode = 130;

std::atomic<bool>& stop_flag();
void install_stop_signals();

}  // namespace draftflow::cli
