// SPDX-License-Identifier: Apache-2.0
#include "cli/stop.h"

#include <unistd.h>

#include <csignal>

namespace draftflow::cli {
namespace {

std::atomic<bool> g_stop{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may only touch lock-free atomics");

extern "C" void on_stop_signal(int) {
  if (g_stop.exchange(true)) ::_exit(kInterruptedExitCode);
}

}  // namespace

std::atomic<bool>& stop_flag() {
  return g_stop;
}

void install_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

}  // namespace draftflow::cli
