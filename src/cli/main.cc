// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <iostream>

#include "cli/app.h"
#include "cli/stop.h"

int main(int argc, char** argv) {
  draftflow::cli::install_stop_signals();
  return draftflow::cli::run_cli(argc, argv, {std::cout, std::cerr, ::isatty(STDERR_FILENO) == 1});
}
