// SPDX-License-Identifier: Apache-2.0
//
// Which decoder layers of the target are captured for an EAGLE-3 draft. Pure functions; thread-safe.
#pragma once

#include <vector>

namespace draftflow {

// {1, L/2 - 1, L - 4}, counted from 0; InvalidArgument below 7 layers, where the formula repeats itself and the layers must
// be named.
std::vector<int> default_capture_layers(int num_layers);

// InvalidArgument unless they are three different layers of the target.
void check_capture_layers(const std::vector<int>& layers, int num_layers);

}  // namespace draftflow
