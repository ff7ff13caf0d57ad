// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/capture_layers.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>

#include "draftflow/base/error.h"

namespace draftflow {

std::vector<int> default_capture_layers(int num_layers) {
  if (num_layers < 7) {
    throw InvalidArgument(
        fmt::format("the usual three layers {{1, L/2 - 1, L - 4}} are not three different ones for a target of {} "
                    "layers: name them (--layers 1,2,3, counted from 0)",
                    num_layers));
  }
  return {1, num_layers / 2 - 1, num_layers - 4};
}

void check_capture_layers(const std::vector<int>& layers, int num_layers) {
  const std::set<int> distinct(layers.begin(), layers.end());
  if (layers.size() != 3 || distinct.size() != 3 || *distinct.begin() < 0 || *distinct.rbegin() >= num_layers) {
    throw InvalidArgument(
        fmt::format("layers {} cannot be captured: three different ones from 0 to {} are needed", layers, num_layers - 1));
  }
}

}  // namespace draftflow
