// SPDX-License-Identifier: Apache-2.0
//
// The promise, checked from outside when a run has come to its end and nothing of it is alive: the final checkpoint of each
// group, the ledger's tables row by row, and every file of the store. What the ledger says of itself is believed nowhere.
#pragma once

#include <string>
#include <vector>

#include "chaos/stage.h"

namespace draftflow::chaos {

std::vector<std::string> check_books(Stage& stage);  // what is wrong

}  // namespace draftflow::chaos
