// SPDX-License-Identifier: Apache-2.0
//
// FeatureHandle: what get gives beside the tensors and release takes back: which lease on which bytes. It owns nothing; a
// copy names the same lease. Plain value; thread-safe as such.
#pragma once

#include <cstdint>
#include <string>

#include "draftflow/base/ids.h"

namespace draftflow {

struct FeatureHandle {
  SampleId sample_id;
  std::uint64_t generation = 0;
  std::string lease_token;  // opaque; unique over all stores and processes
};

}  // namespace draftflow
